"""Saving: copy -> write -> commit, beside the training.

The loop is never blocked by writing. A save copies the state while the next forward and backward
pass run, because parameters and optimizer state change in `optimizer.step()` only; the loop waits
for the copy before that. Hashing, writing and the commit happen in a thread of their own, one save
at a time. Whatever goes wrong there loses that save and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointCorrupt, CheckpointError, LeaseLost, StoreUnavailable, XrunError
from ..run import logs as attempt_logs
from ..run import points as point_log
from ..store.durable import hash_of
from ..store.protocol import Head, Store, StoredFile
from ..tracker.protocol import Tracker
from . import tensor_file
from .manifest import ARITHMETIC, Checkpoint, Keep, checkpoints_of
from .schedule import LastSave, SaveSchedule
from .snapshot import Files, Snapshot
from .state import TrainState, local, rows

log = logging.getLogger("xrun")

_FROZEN = "frozen"


class Checkpointer:
    """Saves a run's state on this process, and on the first process commits it.

    `writers` is the number of processes that write: all of them where the model is sharded, else
    one. `group` is a process group that nothing else uses. `points` is the file of logged points
    that goes along with each commit, if one does, and `logs` the folder with what this attempt's
    processes print, likewise.
    """

    def __init__(
        self,
        state: TrainState,
        store: Store,
        *,
        head: Head,
        digest: str,
        attempt: str,
        keep: Keep,
        schedule: SaveSchedule,
        tracker: Tracker,
        environment: Mapping[str, Any],
        rank: int = 0,
        writers: int = 1,
        group: Any = None,
        points: Path | None = None,
        logs: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state, self.store, self.head, self.digest, self.attempt = (
            state,
            store,
            head,
            digest,
            attempt,
        )
        self.keep, self.schedule, self.tracker, self.environment = (
            keep,
            schedule,
            tracker,
            environment,
        )
        self.rank, self.writers, self.group, self.clock = rank, writers, group, clock
        self.points, self.logs = points, logs
        self.unavailable = ""
        """Why nobody could tell whether the last save was committed; "" if that is not what
        happened to it."""
        self.committed_step = max((c.step for c in checkpoints_of(head)), default=-1)
        self._snapshot = Snapshot()
        self._copied = threading.Event()
        self._copied.set()
        self._facts: dict[str, Any] = {}
        self._stall = 0.0
        self._wanted = False
        schedule.alone = max(
            [a["last_save"] for a in head.record.get("attempts", []) if "last_save" in a][-3:],
            default=0.0,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="xrun-checkpoint")
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
        self._wanted = self.rank == 0
        return self._wanted and not self.busy

    def due(self, step: int, left: float = math.inf) -> bool:
        """Whether a save should begin after `step` steps, `left` seconds before a deadline.

        Only the first process says so, and the others follow it.
        """
        return self.rank == 0 and (self._wanted or self.schedule.due(step, left)) and self.want()

    def last_save(self) -> LastSave:
        """What a last save would take now; what is on its way comes first, and the store may not
        take the next one at once."""
        return self.schedule.last_save(self.busy, self.store.commit_delay())

    def begin(self) -> None:
        """Start to save the state as it is now; call `before_step` before it changes, and not while
        `busy`."""
        if self.rank >= self.writers:
            return
        self.wait()
        started = time.perf_counter()
        self.schedule.started()
        self._wanted = False
        sources = {
            name: tensor for name, tensor in self.state.tensors().items() if self._writes(tensor)
        }
        parts = {name: local(tensor) for name, tensor in sources.items()}
        parts |= {
            name: parts[name].clone() for name in self.state.changing() & set(parts)
        }  # the next forward pass changes them
        self._copied.clear()
        ready = torch.cuda.current_stream().record_event() if self._stream else None
        saving = _Saving(
            step=self.state.step,
            numbers=self.state.numbers(),
            files=self._files(parts),
            ready=ready,
            rows={
                name: rows(tensor)
                for name, tensor in sources.items()
                if hasattr(tensor, "to_local")
            },
            versions={name: part._version for name, part in parts.items()},
            started=started,
        )
        self._saving = self._thread.submit(self._save, saving)
        self._stall = time.perf_counter() - started

    def before_step(self) -> None:
        """Wait until the copy is made; then the state may change."""
        if self._copied.is_set():
            return
        started = time.perf_counter()
        self._copied.wait()
        self._stall += time.perf_counter() - started

    def wait(self) -> None:
        """Wait for the save that is on its way; raises what stopped the run's writing for good."""
        if self._saving is not None:
            self._saving.result()

    def check(self) -> None:
        """Raises LeaseLost once another attempt has taken the run over."""
        if self._saving is not self._checked and self._saving is not None and self._saving.done():
            self._saving.result()
            self._checked = self._saving

    def is_current(self) -> bool:
        """Whether the state as it is now is committed, waiting for a save on its way; only the
        first process can tell."""
        self.wait()
        return self.committed_step == self.state.step

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Commit that the run has finished; an empty `facts` leaves it to the first process."""
        if self.rank == 0:
            self.note(
                ended=self.clock(), code=0, kind="finished", reason="", committed=self.state.step
            )
            finished = {"finished": {"step": self.state.step, **facts}}
            self.head = self.store.commit({**self._record(), **self._logs(), **finished}, self.head)

    def note(self, **facts: Any) -> None:
        """Facts about this attempt that go along with the next commit, also while one is on its
        way."""
        self._facts = {**self._facts, **facts}

    def close(self) -> None:
        """End the thread; a save on its way is finished first."""
        self._thread.shutdown()

    def _writes(self, tensor: Tensor) -> bool:
        return self.rank == 0 or hasattr(tensor, "to_local")

    def _save(self, saving: _Saving) -> None:
        files: dict[str, StoredFile] | None = None
        try:
            self._copy(saving)
            files = self._write(saving)
        except XrunError as error:
            self._failed(saving.step, error)
        except Exception:
            log.exception("The save of step %d failed. Training goes on.", saving.step)
        finally:
            self._copied.set()
        everybody = self._gather(files)
        if self.rank == 0 and everybody is not None:
            self._commit(saving, everybody)
        elif self.rank == 0:
            self._sweep()

    def _files(self, parts: Mapping[str, Tensor]) -> Files:
        """Which file each of this process's tensors goes into: model, optimizer, ema, and what no
        step changes by itself."""
        frozen = self.state.frozen()
        groups: dict[str, dict[str, Tensor]] = {}
        for name, part in parts.items():
            groups.setdefault(_FROZEN if name in frozen else name.partition(".")[0], {})[name] = (
                part
            )
        return {
            f"{group}-{self.rank}-{number}": tensors
            for group, members in groups.items()
            for number, tensors in enumerate(tensor_file.split_by_size(members))
        }

    def _copy(self, saving: _Saving) -> None:
        if self._stream is None:
            self._snapshot.copy(saving.files)
        else:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(saving.ready)
                self._snapshot.copy(saving.files)
            self._stream.synchronize()
        parts = {name: part for tensors in saving.files.values() for name, part in tensors.items()}
        moved = [name for name, part in parts.items() if part._version != saving.versions[name]]
        if moved:
            raise CheckpointError(
                f"{moved[0]} changed while it was copied: it is changed outside of"
                " optimizer.step()."
            )
        self._copied.set()

    def _write(self, saving: _Saving) -> dict[str, StoredFile]:
        """Write this process's part of the state; frozen tensors that the head already has are not
        written again."""
        known = {file.hash: file for c in checkpoints_of(self.head) for file in c.files.values()}
        files = {}
        for name, tensors in saving.files.items():
            own_rows = {tensor: saving.rows[tensor] for tensor in tensors if tensor in saving.rows}
            header = functools.partial(tensor_file.header, tensors, own_rows)
            data = tensor_file.bytes_of(self._snapshot.rooms[name])
            frozen = name.startswith(f"{_FROZEN}-")
            writer, again = self._frozen(header, data, known) if frozen else (self.attempt, None)
            file = again or self.store.put([header(writer), data])
            files[f"{name}-{writer}" if frozen else name] = (
                file if again else self._again(known.get(file.hash)) or file
            )
        return files

    def _frozen(
        self, header: Callable[[str], bytes], data: memoryview, known: Mapping[str, StoredFile]
    ) -> tuple[str, StoredFile | None]:
        """Who has written these frozen tensors first, and the file; without one that is whole, this
        attempt is going to."""
        names = {
            name
            for c in checkpoints_of(self.head)
            for name in c.files
            if name.startswith(f"{_FROZEN}-")
        }
        for writer in sorted({name.split("-", 3)[3] for name in names if name.count("-") > 2}):
            if (again := self._again(known.get(hash_of([header(writer), data])))) is not None:
                return writer, again
        return self.attempt, None

    def _again(self, file: StoredFile | None) -> StoredFile | None:
        """A file that the head has already, with a second copy: one bad byte must not end every
        checkpoint that shares it."""
        try:
            return self.store.duplicate(file) if file is not None else None
        except CheckpointCorrupt as error:
            log.warning("%s It is written again.", error.message)
            return None

    def _gather(self, files: dict[str, StoredFile] | None) -> dict[str, StoredFile] | None:
        """All writers' files on the first process; None if any of them failed."""
        if self.writers == 1:
            return files
        everybody: list[dict[str, StoredFile] | None] | None = (
            [None] * self.writers if self.rank == 0 else None
        )
        torch.distributed.gather_object(files, everybody, group=self.group)
        if everybody is None or any(part is None for part in everybody):
            return None
        return {name: file for part in everybody for name, file in (part or {}).items()}

    def _commit(self, saving: _Saving, files: dict[str, StoredFile]) -> None:
        now = Checkpoint(
            saving.step,
            self.attempt,
            self.digest,
            self.clock(),
            saving.numbers,
            files,
            dict(self.environment),
            ARITHMETIC,
        )
        try:
            self._note_last(time.perf_counter() - saving.started)
            kept = self.keep.select(
                [c for c in checkpoints_of(self.head) if c.step != now.step] + [now]
            )
            manifests = [checkpoint.to_json() for checkpoint in _same_files(kept, now)]
            rejected = [step for step in self.head.record.get("rejected", []) if step != now.step]
            record = {
                **self._record(),
                "checkpoints": manifests,
                "rejected": rejected,
                **self._points(now.step),
                **self._logs(),
            }
            self.head = self.store.commit(record, self.head)
            self.committed_step, self.unavailable = now.step, ""
            self.schedule.measured(self._stall, time.perf_counter() - saving.started)
            self.tracker.committed(now.step, self.head.id)
            self.store.sweep()
        except LeaseLost:
            raise
        except XrunError as error:
            self._failed(saving.step, error)
            self._look_again()
            self._sweep()

    def _note_last(self, seconds: float) -> None:
        """How long the last save of an attempt takes, with nothing beside it, is for the attempts
        after it."""
        if "ended" in self._facts:
            self.note(last_save=round(seconds, 3))

    def _record(self) -> dict[str, Any]:
        """The run's record as the head has it, with what is known of this attempt since."""
        attempts = [dict(attempt) for attempt in self.head.record.get("attempts", [])]
        for own in attempts[-1:]:
            own |= self._facts
        return {**self.head.record, "attempts": attempts}

    def _points(self, step: int) -> dict[str, Any]:
        """The logged points up to this step, in the store."""
        if self.points is None:
            return {}
        return {
            "points": point_log.extended(
                self.store, self.points, self.head.record.get("points", []), step
            )
        }

    def _logs(self) -> dict[str, Any]:
        """What has been printed, in the store."""
        return (
            attempt_logs.kept(self.store, self.logs, self.attempt, self.head.record)
            if self.logs
            else {}
        )

    def _failed(self, step: int, error: XrunError) -> None:
        self.unavailable = error.message if isinstance(error, StoreUnavailable) else ""
        log.warning("The save of step %d failed: %s Training goes on.", step, error)

    def _sweep(self) -> None:
        """What a failed save has written takes the room that the next one needs."""
        with contextlib.suppress(XrunError):
            self.store.sweep()

    def _look_again(self) -> None:
        """After an error nobody can tell whether the commit has landed; if the head is this
        attempt's, go on from it."""
        with contextlib.suppress(XrunError):
            head = self.store.head()
            if head is not None and head.attempt == self.attempt:
                self.head = head
                self.committed_step = max((c.step for c in checkpoints_of(head)), default=-1)


def _same_files(kept: list[Checkpoint], now: Checkpoint) -> list[Checkpoint]:
    """Older checkpoints name the same copies of a file that the newest one names."""
    newest = {file.hash: file for file in now.files.values()}
    return [
        dataclasses.replace(
            c, files={name: newest.get(file.hash, file) for name, file in c.files.items()}
        )
        for c in kept
    ]


@dataclass(frozen=True)
class _Saving:
    """What one save needs: this process's part of the state as it was when the save began."""

    step: int
    numbers: Mapping[str, Any]
    files: Files
    rows: Mapping[str, tensor_file.Rows]
    versions: Mapping[str, int]
    started: float
    ready: Any = None
