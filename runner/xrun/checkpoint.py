"""Checkpoints: save (copy -> write -> commit), restore (newest committed and verified), and which ones to keep.

The loop is never blocked by writing. A save copies the state while the next forward and backward pass run, because parameters
and optimizer state change in `optimizer.step()` only; the loop waits for the copy before that. Hashing, writing and the commit
happen in a thread of their own, one save at a time. Whatever goes wrong there loses that save and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import tensor_file
from .errors import CheckpointCorrupt, CheckpointError, LeaseLost, XrunError
from .interval import SaveSchedule
from .state import TrainState, local, rows
from .store import Head, Store, StoredFile
from .tracker import Tracker

log = logging.getLogger("xrun")


@dataclass(frozen=True)
class Checkpoint:
    """One committed state of a run; its JSON form is the manifest. `digest` is the recipe's, `numbers` TrainState's."""

    step: int
    attempt: str
    digest: str
    time: float
    numbers: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return {**vars(self), "files": {name: file.to_json() for name, file in self.files.items()}}

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> Checkpoint:
        """Read a manifest; keys that a newer xrun has added are ignored."""
        files = {name: StoredFile.from_json(file) for name, file in manifest["files"].items()}
        known = {name: manifest[name] for name in cls.__dataclass_fields__ if name in manifest}
        return cls(**{**known, "files": files})


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last` (never below two), every `every` steps, and the best one."""

    last: int = 2
    every: int | None = None

    def select(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The ones to keep, by step."""
        ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
        stay = {checkpoint.step for checkpoint in ordered[-max(2, self.last) :]}
        stay |= {c.step for c in ordered if self.every and c.step and c.step % self.every == 0}
        best = ordered[-1].numbers.get("best") if ordered else None
        stay |= {best["step"]} if best else set()
        return [checkpoint for checkpoint in ordered if checkpoint.step in stay]


def checkpoints_of(head: Head | None) -> list[Checkpoint]:
    """The committed checkpoints that a head names, oldest first."""
    manifests = head.record.get("checkpoints", []) if head else []
    return sorted((Checkpoint.from_json(manifest) for manifest in manifests), key=lambda checkpoint: checkpoint.step)


def newest(store: Store, head: Head) -> tuple[Head, Checkpoint | None, list[Any]]:
    """The newest checkpoint whose every file has the bytes that were committed, with the files' paths.

    Damaged ones are moved away by the store; the head that names their steps as rejected is committed before the older
    checkpoint is used, so that they may be written again. Without any commit of a checkpoint: None.

    Raises:
        CheckpointCorrupt: there are checkpoints and none of them is whole.
    """
    rejected, reasons = [], []
    for checkpoint in reversed(checkpoints_of(head)):
        try:
            paths = [store.fetch(file) for file in checkpoint.files.values()]
        except CheckpointCorrupt as error:
            rejected.append(checkpoint.step)
            reasons.append(f"step {checkpoint.step}: {error.message}")
            log.warning("The checkpoint of step %d is damaged: %s Taking the one before.", checkpoint.step, error.message)
            continue
        return (_reject(store, head, rejected) if rejected else head), checkpoint, paths
    if rejected:
        raise CheckpointCorrupt(
            "Every checkpoint of this run is damaged: " + " ".join(reasons),
            "Nothing was started from step 0. Start a new run with --new, or restore the run's state folder from a backup.",
        )
    return head, None, []


def _reject(store: Store, head: Head, steps: list[int]) -> Head:
    left = [manifest for manifest in head.record["checkpoints"] if manifest["step"] not in steps]
    known = sorted({*head.record.get("rejected", []), *steps})
    return store.commit({**head.record, "checkpoints": left, "rejected": known}, head)


def load(state: TrainState, checkpoint: Checkpoint, paths: list[Any]) -> None:
    """Put a checkpoint's state into the modules, on any number of processes.

    Raises:
        CheckpointError: the model does not have the tensors that were saved.
    """
    reader = tensor_file.TensorReader(paths)
    state.load_tensors(reader.names(), lambda name, tensor: reader.fill(name, local(tensor), rows(tensor)))
    state.load_numbers(dict(checkpoint.numbers))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two environments differ, as `threads 2 -> 1, ...`; empty when results stay the same to the last bit."""
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    return ", ".join(f"{name} {saved.get(name)} -> {now.get(name)}" for name in sorted(names))


class Snapshot:
    """A copy of the state in memory that is kept and used again: one copy of the state is all that saving takes."""

    def __init__(self) -> None:
        self.copies: dict[str, Tensor] = {}

    def copy(self, sources: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Copy these tensors; the caller keeps them from changing meanwhile."""
        for name in names:
            source = sources[name]
            target = self.copies.get(name)
            if target is None or target.shape != source.shape:
                pinned = source.device.type == "cuda"
                target = self.copies[name] = torch.empty(source.shape, dtype=source.dtype, pin_memory=pinned)
            _copy(source, target)


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy without using the compute threads, which belong to the step that runs meanwhile."""
    if source.device.type == "cpu" and source.is_contiguous() and source.nbytes:
        np.copyto(np.asarray(tensor_file.bytes_of(target)), np.asarray(tensor_file.bytes_of(source)))
    else:
        target.copy_(source, non_blocking=True)


class Checkpointer:
    """Saves a run's state on this process, and on the first process commits it.

    `writers` is the number of processes that write: all of them where the model is sharded, else one. `group` is a process
    group that nothing else uses.
    """

    def __init__(
        self, state: TrainState, store: Store, *, head: Head, digest: str, attempt: str, keep: Keep, schedule: SaveSchedule,
        tracker: Tracker, environment: Mapping[str, Any], rank: int = 0, writers: int = 1, group: Any = None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.state, self.store, self.head, self.digest, self.attempt = state, store, head, digest, attempt
        self.keep, self.schedule, self.tracker, self.environment = keep, schedule, tracker, environment
        self.rank, self.writers, self.group, self.clock = rank, writers, group, clock
        self.committed_step = max((c.step for c in checkpoints_of(head)), default=-1)
        self._snapshot = Snapshot()
        self._copied = threading.Event()
        self._copied.set()
        self._stall = 0.0
        self._wanted = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="xrun-checkpoint")
        self._saving: Future[None] | None = None
        self._stream = torch.cuda.Stream() if torch.cuda.is_initialized() else None

    @property
    def busy(self) -> bool:
        """Whether a save is on its way."""
        return self._saving is not None and not self._saving.done()

    def want(self) -> bool:
        """Ask for a save, at the next step at which none is on its way; says whether that is now."""
        self._wanted = self.rank == 0
        return self._wanted and not self.busy

    def due(self, step: int) -> bool:
        """Whether a save should begin after `step` steps; only the first process says so, and the others follow it."""
        return self.rank == 0 and (self._wanted or self.schedule.due(step)) and self.want()

    def seconds_to_save(self) -> float:
        """How long a save takes, as measured; what is on its way comes first."""
        return self.schedule.write * (2 if self.busy else 1)

    def begin(self) -> None:
        """Start to save the state as it is now; call `before_step` before it changes, and not while `busy`."""
        if self.rank >= self.writers:
            return
        self.wait()
        started = time.perf_counter()
        self.schedule.started()
        self._wanted = False
        sources = {name: tensor for name, tensor in self.state.tensors().items() if self._writes(tensor)}
        parts = {name: local(tensor) for name, tensor in sources.items()}
        at_once = self.state.changing() & set(parts)
        self._snapshot.copy(parts, at_once)
        self._copied.clear()
        ready = torch.cuda.current_stream().record_event() if self._stream else None
        saving = _Saving(
            step=self.state.step, numbers=self.state.numbers(), parts=parts, at_once=at_once, ready=ready,
            rows={name: rows(tensor) for name, tensor in sources.items() if hasattr(tensor, "to_local")},
            frozen=self.state.frozen(), versions={name: part._version for name, part in parts.items()}, started=started,
        )  # fmt: skip
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
        if self._saving is not None and self._saving.done():
            self._saving.result()

    def is_current(self) -> bool:
        """Whether the state as it is now is committed, waiting for a save on its way; only the first process can tell."""
        self.wait()
        return self.committed_step == self.state.step

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Commit that the run has finished; an empty `facts` leaves it to the first process."""
        if self.rank == 0:
            self.head = self.store.commit({**self.head.record, "finished": {"step": self.state.step, **facts}}, self.head)

    def note(self, **facts: Any) -> None:
        """Facts about this attempt that go along with the next commit."""
        *before, own = self.head.record["attempts"]
        self.head = dataclasses.replace(self.head, record={**self.head.record, "attempts": [*before, {**own, **facts}]})

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
            log.warning("The save of step %d failed: %s Training goes on.", saving.step, error)
        except Exception:
            log.exception("The save of step %d failed. Training goes on.", saving.step)
        finally:
            self._copied.set()
        everybody = self._gather(files)
        if self.rank == 0 and everybody is not None:
            self._commit(saving, everybody)
        elif self.rank == 0:
            self._sweep()

    def _copy(self, saving: _Saving) -> None:
        names = [name for name in saving.parts if name not in saving.at_once]
        if self._stream is None:
            self._snapshot.copy(saving.parts, names)
        else:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(saving.ready)
                self._snapshot.copy(saving.parts, names)
            self._stream.synchronize()
        moved = [name for name in names if saving.parts[name]._version != saving.versions[name]]
        if moved:
            raise CheckpointError(f"{moved[0]} changed while it was copied: it is changed outside of optimizer.step().")
        self._copied.set()

    def _write(self, saving: _Saving) -> dict[str, StoredFile]:
        """Write this process's part of the state; frozen tensors that the head already has are not written again."""
        known = {file.blake3: file for c in checkpoints_of(self.head) for file in c.files.values()}
        groups: dict[str, dict[str, Tensor]] = {}
        for name in saving.parts:
            group = "frozen" if name in saving.frozen else name.partition(".")[0]
            groups.setdefault(group, {})[name] = self._snapshot.copies[name]
        files = {}
        for group, tensors in groups.items():
            for number, part in enumerate(tensor_file.split_by_size(tensors)):
                own_rows = {name: saving.rows[name] for name in part if name in saving.rows}
                file = self._known(part, own_rows, known) if group == "frozen" else None
                files[f"{group}-{self.rank}-{number}"] = file or self.store.put(tensor_file.chunks(part, own_rows))
        return files

    def _known(self, part: dict[str, Tensor], own_rows: dict[str, Any], known: dict[str, StoredFile]) -> StoredFile | None:
        from blake3 import blake3

        hasher = blake3()
        for chunk in tensor_file.chunks(part, own_rows):
            hasher.update(chunk)
        return known.get(hasher.hexdigest())

    def _gather(self, files: dict[str, StoredFile] | None) -> dict[str, StoredFile] | None:
        """All writers' files on the first process; None if any of them failed."""
        if self.writers == 1:
            return files
        everybody: list[dict[str, StoredFile] | None] | None = [None] * self.writers if self.rank == 0 else None
        torch.distributed.gather_object(files, everybody, group=self.group)
        if everybody is None or any(part is None for part in everybody):
            return None
        return {name: file for part in everybody for name, file in (part or {}).items()}

    def _commit(self, saving: _Saving, files: dict[str, StoredFile]) -> None:
        now = Checkpoint(saving.step, self.attempt, self.digest, self.clock(), saving.numbers, files, dict(self.environment))
        try:
            kept = self.keep.select([c for c in checkpoints_of(self.head) if c.step != now.step] + [now])
            manifests = [checkpoint.to_json() for checkpoint in self._twice(kept)]
            rejected = [step for step in self.head.record.get("rejected", []) if step != now.step]
            self.head = self.store.commit({**self.head.record, "checkpoints": manifests, "rejected": rejected}, self.head)
            self.committed_step = now.step
            self.schedule.measured(self._stall, time.perf_counter() - saving.started)
            self.tracker.committed(now.step, self.head.id)
            self.store.sweep()
        except LeaseLost:
            raise
        except XrunError as error:
            log.warning("The commit of step %d failed: %s Training goes on.", saving.step, error)
            self._look_again()
            self._sweep()

    def _sweep(self) -> None:
        """What a failed save has written takes the room that the next one needs."""
        with contextlib.suppress(XrunError):
            self.store.sweep()

    def _look_again(self) -> None:
        """After an error nobody can tell whether the commit has landed; if the head is this attempt's, go on from it."""
        with contextlib.suppress(XrunError):
            head = self.store.head()
            if head is not None and head.attempt == self.attempt:
                self.head = head
                self.committed_step = max((c.step for c in checkpoints_of(head)), default=-1)

    def _twice(self, kept: list[Checkpoint]) -> list[Checkpoint]:
        """Give a file that several kept checkpoints share a second copy: one bad byte must not end them all."""
        uses: dict[str, int] = {}
        for checkpoint in kept:
            for file in checkpoint.files.values():
                uses[file.blake3] = uses.get(file.blake3, 0) + 1
        doubled = {
            file.blake3: self.store.duplicate(file)
            for checkpoint in kept for file in checkpoint.files.values()
            if uses[file.blake3] > 1 and len(file.copies) == 1
        }  # fmt: skip
        return [Checkpoint(**{**vars(c), "files": {name: doubled.get(f.blake3, f) for name, f in c.files.items()}}) for c in kept]


@dataclass(frozen=True)
class _Saving:
    """What one save needs: the state's parts on this process as they were when it began."""

    step: int
    numbers: Mapping[str, Any]
    parts: Mapping[str, Tensor]
    at_once: set[str]
    rows: Mapping[str, tensor_file.Rows]
    frozen: set[str]
    versions: Mapping[str, int]
    started: float
    ready: Any = None
