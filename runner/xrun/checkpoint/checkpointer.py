"""Saving: copy -> write -> commit, beside the training.

The loop is never blocked by writing. A save copies the state while the next forward and backward
pass run, because parameters and optimizer state change in `optimizer.step()` only; the loop waits
for the copy before that. Hashing, writing and the commit happen in a thread of their own, one save
at a time. Trouble of the store's loses that save and nothing else. Whatever else goes wrong would
go wrong at every save, so it ends the run at once; so does a failed save of step 0.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import (
    CheckpointCorrupt,
    DiskFull,
    LeaseLost,
    StoreError,
    StoreUnavailable,
    XrunError,
)
from ..store.durable import hash_of
from ..store.protocol import Duplicating, StoredFile, commit_delay
from ..tracker.protocol import Tracker
from . import tensor_file
from .lease import Lease
from .movement import Movement
from .saving import Made, MovedError, Saving, check_weights, fault_of, sample_of
from .schedule import LastSave, SaveSchedule
from .snapshot import Files, Snapshot, on_device
from .state import TrainState, is_sharded, local, rows

log = logging.getLogger("xrun")

SMALL_BYTES = 16 << 20
"""So much of the model is copied before the next forward pass in any case, which takes some
milliseconds: then nothing that a small model does to itself can tear its copy."""
_FROZEN = "frozen"
_FROZEN_NAME = re.compile(rf"{_FROZEN}-\d+-\d+-(?P<writer>.+)")
"""What a manifest calls a file of frozen tensors: rank, number, and the attempt that wrote it
first."""


def _on_device_of_caller() -> Callable[[], None]:
    """What puts a thread onto the caller's GPU: a new one begins on the first, and would make a
    context there."""
    if not torch.cuda.is_initialized():
        return lambda: None
    return functools.partial(torch.cuda.set_device, torch.cuda.current_device())


@dataclass(frozen=True)
class Writers:
    """The processes that write, of which this one has the `rank`: all where the model is sharded,
    else the first. `group` is a process group that nothing else uses."""

    rank: int = 0
    count: int = 1
    group: Any = None


class Checkpointer:
    """Saves a run's state on this process, and on the first process commits it. `folder`: where a
    `Snapshot` has its copy."""

    def __init__(
        self,
        state: TrainState,
        lease: Lease,
        schedule: SaveSchedule,
        tracker: Tracker | None,
        writers: Writers = Writers(),
        small: int = SMALL_BYTES,
        folder: Path | None = None,
    ) -> None:
        self.state, self.lease, self.schedule = state, lease, schedule
        self.tracker, self.writers, self.small = tracker, writers, small
        self.unavailable = ""
        """Why nobody could tell whether the last save was committed; "" if that is not what
        happened to it."""
        self._snapshot, self._movement = Snapshot(folder), Movement()
        self._first = True
        self._watched: Saving | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._stall = 0.0
        self._sent: set[StoredFile] = set()
        self._wanted = False
        self._thread = ThreadPoolExecutor(1, "xrun-checkpoint", _on_device_of_caller())
        self._saving: Future[None] | None = None
        self._checked: Future[None] | None = None
        self._stream = torch.cuda.Stream() if torch.cuda.is_initialized() else None

    @property
    def busy(self) -> bool:
        """Whether a save is on its way."""
        return self._saving is not None and not self._saving.done()

    def want(self) -> bool:
        """Ask for a save, at the next step at which none is on its way; says whether that is
        now."""
        self._wanted = self.writers.rank == 0
        return self._wanted and not self.busy

    def due(self, step: int, left: float = math.inf) -> bool:
        """Whether a save should begin after `step` steps, `left` seconds before a deadline.

        Only the first process says so, and the others follow it.
        """
        first = self.writers.rank == 0
        return first and (self._wanted or self.schedule.due(step, left)) and self.want()

    def last_save(self) -> LastSave:
        """What a last save would take now; what is on its way comes first, and the store may not
        take the next one at once."""
        return self.schedule.last_save(self.busy, commit_delay(self.lease.store))

    def begin(self, alone: bool = False) -> None:
        """Start to save the state as it is now, after a save that is on its way; call `before_step`
        before it changes. `alone`: nothing trains beside it, everything may be copied at once."""
        if self.writers.rank >= self.writers.count:
            return
        self.wait()
        started = time.perf_counter()
        self.schedule.started()
        self._wanted = False
        sources = {
            name: tensor for name, tensor in self.state.tensors().items() if self._writes(tensor)
        }
        parts = {name: local(tensor) for name, tensor in sources.items()}
        early = set(parts) if alone or self._first else self._early(parts)
        self._first = False
        staged = on_device({name: part for name, part in parts.items() if name not in early})
        parts |= staged
        files = self._files(parts, {name for name in parts if is_sharded(sources[name])})
        self._snapshot.copy(files, early)
        self._copied.clear()
        ready = torch.cuda.current_stream().record_event() if self._stream else None
        saving = Saving(
            step=self.state.step,
            numbers=self.state.numbers(),
            parts=parts,
            files=files,
            late=parts.keys() - early,
            trained=self.state.trained(),
            frozen=self.state.frozen(),
            ready=ready,
            rows={name: rows(tensor) for name, tensor in sources.items() if is_sharded(tensor)},
            versions={name: part._version for name, part in parts.items()},
            samples={
                name: sample_of(parts[name]) for name in self.state.trained() - early - set(staged)
            },
            started=started,
            alone=alone,
        )
        if staged:
            self._copied.set()
        self._watched = saving
        self._saving = self._thread.submit(self._save, saving)
        self._stall = time.perf_counter() - started

    def before_step(self) -> None:
        """Wait until the copy is made; then the state may change."""
        if self._watched is None:
            return
        started = time.perf_counter()
        self._copied.wait()
        self._movement.add(self._watched.moved() - self.state.changing())
        self._watched = None
        self._stall += time.perf_counter() - started

    def wait(self) -> None:
        """Wait for the save that is on its way; raises what stopped the run's writing for good."""
        if self._saving is not None:
            self._saving.result()

    def check(self) -> None:
        """Raises what has ended saving for good: another attempt has taken the run over, or the
        state cannot be saved."""
        if self._saving is not self._checked and self._saving is not None and self._saving.done():
            self._saving.result()
            self._checked = self._saving

    def is_current(self) -> bool:
        """Whether the state as it is now is committed, waiting for a save on its way; only the
        first process can tell."""
        self.wait()
        return self.lease.committed_step == self.state.step

    def close(self) -> None:
        """End the thread; a save on its way is finished first."""
        self._thread.shutdown()

    def _writes(self, tensor: Tensor) -> bool:
        return self.writers.rank == 0 or is_sharded(tensor)

    def _early(self, parts: Mapping[str, Tensor]) -> set[str]:
        """Names of what is copied before the next forward pass: what it may change, and what is
        small."""
        moving = self.state.changing() | self._movement.unsure(self.state.frozen())
        of_model = [name for name in parts if name.startswith("model.")]
        smallest = sorted(of_model, key=lambda name: parts[name].nbytes)
        sums = itertools.accumulate(parts[name].nbytes for name in smallest)
        small = {name for name, size in zip(smallest, sums, strict=True) if size <= self.small}
        return moving & set(parts) | small

    def _save(self, saving: Saving) -> None:
        everybody = self._gather(self._make(saving))
        if self.writers.rank:
            return
        faults = [made.fault for made in everybody if made.fault is not None]
        final = [fault for fault in faults if not self._passes(saving.step, fault)]
        if not faults:
            self._commit(saving, {name: file for made in everybody for name, file in made.files})
        else:
            self._failed(saving, (final or faults)[0])
            self._sweep()

    def _make(self, saving: Saving) -> Made:
        """Copy and write this process's part, or say what prevents it."""
        try:
            self._copy(saving)
            check_weights(saving, self._snapshot)
            return Made(list(self._write(saving).items()))
        except Exception as error:
            return Made(fault=fault_of(saving.step, error))
        finally:
            self._copied.set()

    def _files(self, parts: Mapping[str, Tensor], shards: Set[str]) -> Files:
        """Which file each of this process's tensors goes into: model, optimizer, ema, and what no
        step changes by itself. What is no shard comes first in it, since every process reads all of
        that."""
        frozen = self.state.frozen() - self._movement.moving
        groups: dict[str, dict[str, Tensor]] = {}
        for name, part in sorted(parts.items(), key=lambda item: item[0] in shards):
            group = _FROZEN if name in frozen else name.partition(".")[0]
            groups.setdefault(group, {})[name] = part
        return {
            f"{group}-{self.writers.rank}-{number}": tensors
            for group, members in groups.items()
            for number, tensors in enumerate(tensor_file.cut_by_size(members))
        }

    def _copy(self, saving: Saving) -> None:
        if self._stream is None:
            self._snapshot.copy(saving.files, saving.late)
        else:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(saving.ready)
                self._snapshot.copy(saving.files, saving.late)
            self._stream.synchronize()
        moved = (saving.moved() | saving.touched()) & saving.late
        self._copied.set()
        still = saving.frozen - self._movement.moving
        digests = {
            name: hash_of([tensor_file.bytes_of(data)])
            for name, data in self._snapshot.parts(saving.files, still)
        }
        late = self._movement.compare(saving.step, digests) & saving.late
        if moved := moved | late:
            self._movement.add(moved)
            raise MovedError(min(moved))

    def _write(self, saving: Saving) -> dict[str, StoredFile]:
        """Write this process's part of the state; frozen tensors that the head already has are not
        written again."""
        checkpoints = self.lease.record.checkpoints
        known = {file.hash: file for each in checkpoints for file in each.files.values()}
        files = {}
        for name, tensors in saving.files.items():
            own_rows = {tensor: saving.rows[tensor] for tensor in tensors if tensor in saving.rows}
            header = functools.partial(tensor_file.header, tensors, own_rows)
            data = tensor_file.bytes_of(self._snapshot.rooms[name])
            frozen = name.startswith(f"{_FROZEN}-")
            own = self.lease.attempt
            writer, again = self._frozen(header, data, known) if frozen else (own, None)
            file = again or self.lease.store.put([header(writer), data], blocks=bool(own_rows))
            files[f"{name}-{writer}" if frozen else name] = (
                file if again else self._again(known.get(file.hash)) or file
            )
        return files

    def _frozen(
        self, header: Callable[[str], bytes], data: memoryview, known: Mapping[str, StoredFile]
    ) -> tuple[str, StoredFile | None]:
        """Who has written these frozen tensors first, and the file; without one that is whole, this
        attempt is going to."""
        names = {name for each in self.lease.record.checkpoints for name in each.files}
        found = (_FROZEN_NAME.fullmatch(name) for name in names)
        for writer in sorted({match["writer"] for match in found if match}):
            if (again := self._again(known.get(hash_of([header(writer), data])))) is not None:
                return writer, again
        return self.lease.attempt, None

    def _again(self, file: StoredFile | None) -> StoredFile | None:
        """A file that the head has already, with a second copy: one bad byte must not end every
        checkpoint that shares it."""
        store = self.lease.store
        try:
            return store.duplicate(file) if file and isinstance(store, Duplicating) else file
        except CheckpointCorrupt as error:
            log.warning("%s It is written again.", error.message)
            return None

    def _gather(self, made: Made) -> list[Made]:
        """All writers' parts on the first process."""
        if self.writers.count == 1:
            return [made]
        everybody: list[Any] | None = [None] * self.writers.count if not self.writers.rank else None
        torch.distributed.gather_object(made, everybody, group=self.writers.group)
        return everybody or []

    def _commit(self, saving: Saving, files: Mapping[str, StoredFile]) -> None:
        try:
            if self.lease.is_ending:  # how long it took is for the attempts after this one
                self.lease.note(last_save=round(time.perf_counter() - saving.started, 3))
            self.lease.commit(saving.step, saving.numbers, files)
            self.unavailable = ""
            sent = sum(file.size for file in {*files.values()} - self._sent)
            self._sent = {*files.values()}
            self.schedule.measured(self._stall, time.perf_counter() - saving.started, sent)
            if self.tracker is not None:
                self.tracker.committed(saving.step, self.lease.head.id)
            self.lease.store.sweep()
        except LeaseLost:
            raise
        except Exception as error:
            self._failed(saving, fault_of(saving.step, error))
            self.lease.look_again()
            self._sweep()

    def _passes(self, step: int, fault: XrunError) -> bool:
        """Whether the next save may go well, and there is a checkpoint until then."""
        of_store = isinstance(fault, StoreError) and not isinstance(fault, LeaseLost)
        return isinstance(fault, MovedError) or (of_store and step > 0)

    def _failed(self, saving: Saving, fault: XrunError) -> None:
        """Say it, or raise it."""
        step = saving.step
        self.unavailable = fault.message if isinstance(fault, StoreUnavailable) else ""
        self._wanted |= isinstance(fault, MovedError)
        if not self._passes(step, fault):
            raise fault
        fewer = isinstance(fault, DiskFull) and self.lease.keep.last > 2
        hint = " `-s checkpoint.keep=2` keeps fewer checkpoints." if fewer else ""
        on = "" if saving.alone else " Training goes on."
        log.warning("The save of step %d failed: %s%s%s", step, fault, hint, on)

    def _sweep(self) -> None:
        """What a failed save has written takes the room that the next one needs."""
        with contextlib.suppress(XrunError):
            self.lease.store.sweep()
