"""`Lease`: an attempt's hold on its run. Each commit replaces the head that the one before it made,
so whoever takes the run over makes every later commit of this attempt fail."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ..clock import boot_seconds, now
from ..errors import AttemptEnd, LeaseLost, XrunError
from ..run import logs, points
from ..run.checkpoint import ARITHMETIC, Checkpoint, DataFacts
from ..run.folder import RunFolder
from ..run.locked import Lock
from ..run.record import Finished, RunRecord
from ..store.protocol import Head, Store, StoredFile


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last` (never below two), every `every` steps, and the
    best one; where that was not saved, the best of those that were."""

    last: int = 2
    every: int | None = None

    def select(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The ones to keep, by step."""
        ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
        stay = {checkpoint.step for checkpoint in ordered[-max(2, self.last) :]}
        stay |= {c.step for c in ordered if self.every and c.step and c.step % self.every == 0}
        stay |= set([c.step for c in ordered if c.best_step == c.step][-1:])
        return [checkpoint for checkpoint in ordered if checkpoint.step in stay]


class Lease:
    """What is committed of a run that this attempt has taken, and what is committed next.

    `environment` is what the bits of this attempt's steps depend on besides the recipe, `data` what
    they are trained on. `folder` is
    the run's folder where its points and logs go along with each commit; None where the store is
    that folder's own. `found` is what this attempt is made from, as far as it is known by then. One
    thread at a time commits; facts may be noted meanwhile.
    """

    def __init__(
        self,
        store: Store,
        head: Head,
        *,
        environment: Mapping[str, Any],
        data: DataFacts = MappingProxyType({}),
        keep: Keep = Keep(),
        folder: RunFolder | None = None,
        found: Callable[[], Lock] = Lock,
        clock: Callable[[], float] = now,
        ticks: Callable[[], float] = boot_seconds,
    ) -> None:
        self.store, self.head, self.record = store, head, RunRecord.of(head)
        self.environment, self.keep, self.folder, self.clock = environment, keep, folder, clock
        self.ticks, self._committed_at = ticks, math.inf
        self.data, self.found = data, found
        self._facts: dict[str, Any] = {}

    @property
    def attempt(self) -> str:
        """The id of the attempt that has taken the run."""
        return self.head.attempt

    @property
    def committed_step(self) -> int:
        """The step of the newest checkpoint; -1 if there is none."""
        return self.record.committed_step

    def note(self, **facts: Any) -> None:
        """Facts of an `AttemptRecord` that go along with the next commit."""
        self._facts = {**self._facts, **facts}

    @property
    def is_ending(self) -> bool:
        """Whether the next commit is to be the attempt's last one."""
        return "ended" in self._facts

    def commit(
        self, step: int, numbers: Mapping[str, Any], files: Mapping[str, StoredFile]
    ) -> None:
        """Commit a checkpoint of these files. Raises what `Store.commit` raises."""
        record = self.record.with_last(**self._facts, **self._sign())
        now = Checkpoint(
            step=step,
            attempt=self.attempt,
            digest=record.digest,
            time=self.clock(),
            numbers=numbers,
            files=files,
            environment=dict(self.environment),
            arithmetic=ARITHMETIC,
            data=self.data,
        )
        others = [each for each in record.checkpoints if each.step != step]
        record = replace(
            record,
            checkpoints=tuple(_same_files(self.keep.select([*others, now]), now)),
            rejected=tuple(each for each in record.rejected if each != step),
        )
        if self.folder is not None:
            path = self.folder.metrics
            record = replace(record, points=points.extended(self.store, path, record.points, step))
        self._replace_head(record)
        self._committed_at = self.ticks()

    def _sign(self) -> dict[str, float]:
        """Facts for the record: this attempt lives now, and how long it usually says nothing. The
        time between two commits is measured by `ticks`, since clocks of machines are set."""
        last = self.record.attempts[-1]
        silence = max(last.silence or 0.0, self.ticks() - self._committed_at)
        return {"last_seen": max(self.clock(), last.last_known), "silence": round(silence, 3)}

    def check(self) -> None:
        """Ask the store whether the run is still this attempt's: what is not its commit nobody else
        prevents. An answer that is older than its own commit says nothing.

        Raises:
            LeaseLost: another attempt has taken the run over.
            StoreUnavailable: nobody can tell.
        """
        head = self.store.head()
        if head is None or (head.attempt != self.attempt and head.number >= self.head.number):
            holder = head.attempt if head else "(none)"
            run = self.head.run
            raise LeaseLost(f"Run {run} was taken over by attempt {holder}; {self.attempt} stops.")

    def restore_points(self, step: int) -> None:
        """The log of points up to `step` as the store has it: this machine may never have seen the
        run, or not all of it. Raises `StoreUnavailable`."""
        if self.folder is not None:
            path = self.folder.metrics
            whole = points.restore(self.store, path, self.record.points, step)
            self.record = replace(self.record, points=whole)

    def finish(self, finished: Finished) -> None:
        """Commit that the run has finished, and the attempt with it, unless it has not made the
        model. One that was over before keeps the time of its end: what it took is counted until
        then. Raises what `Store.commit` raises."""
        if finished.export_failed is None:
            before = self.record.attempts[-1].ended
            end = {"end": AttemptEnd.FINISHED, "code": 0, "reason": finished.reason or ""}
            ended = self.clock() if before is None else before
            self.note(**end, ended=ended, committed=finished.step)
        self._replace_head(replace(self.record.with_last(**self._facts), finished=finished))

    def look_again(self) -> None:
        """After an error nobody can tell whether a commit has landed; if the head is this
        attempt's, go on from it."""
        with contextlib.suppress(XrunError):
            head = self.store.head()
            if head is not None and head.attempt == self.attempt:
                self.head, self.record = head, RunRecord.of(head)

    def locked(self) -> Lock:
        """What the run was made from, this attempt included."""
        return self.record.lock.followed_by(self.found(), self.record.attempts[-1].first_step)

    def _replace_head(self, record: RunRecord) -> None:
        record = replace(record, lock=self.locked())
        if self.folder is not None:
            folder = self.folder.logs(self.attempt)
            record = replace(record, logs=logs.kept(self.store, folder, self.attempt, record.logs))
        self.head = self.store.commit(record.to_json(), self.head)
        self.record = record


def _same_files(kept: Sequence[Checkpoint], now: Checkpoint) -> list[Checkpoint]:
    """Older checkpoints name the same copies of a file that the newest one names."""
    newest = {file.hash: file for file in now.files.values()}

    def named(files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
        return {name: newest.get(file.hash, file) for name, file in files.items()}

    return [replace(each, files=named(each.files)) for each in kept]
