"""A sign of life from each rank, which costs the training nothing, and the entrypoint's judgement
of a rank that gives none.

A rank counts its steps in a page of a file that is mapped into its memory. The entrypoint reads it
and ends ranks that do not move: a hang costs as much per hour as training does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import environment
from ..files import reserve

STEPS = 20
"""And neither is anything shorter than so many of the slowest steps."""
LONG_SECONDS = 3600.0
"""The same for what has no steps: the start (data, weights, compilation, the first step), a save,
the export of the model."""
STARTING, STEPPING, SAVING = range(3)
"""What a rank is doing. Evaluation is made of steps too."""
_DOING = ("starting", "training", "saving")
_PAGE = struct.Struct("<QQd")  # beats, what the rank is doing, seconds of the slowest step
_EVALUATED = struct.Struct("<QQ")  # after that: batches of an evaluation that are done, and all
_LOOK_SECONDS = 1.0
"""Two looks count for at most so much: a machine that was suspended has not hung."""


class Heartbeat:
    """A rank's side; without a file (nobody watches, or the disk is full) it does nothing."""

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._beats, self._doing, self._slowest, self._last = 0, STARTING, 0.0, 0.0
        self._page: mmap.mmap | None = None
        if path is not None:
            with contextlib.suppress(OSError):
                self._page = _page(path)

    def beat(self, done: int = 0, of: int = 0) -> None:
        """One more step is done, or one more batch of an evaluation: `done` of so many."""
        now = self.clock()
        if self._doing == STEPPING and now - self._last > self._slowest:
            self._slowest = now - self._last
        self._doing, self._last = STEPPING, now
        self._write(done, of)

    def saving(self) -> None:
        """What comes now has no steps."""
        self._doing = SAVING
        self._write()

    def _write(self, done: int = 0, of: int = 0) -> None:
        self._beats += 1
        if self._page is not None:
            _PAGE.pack_into(self._page, 0, self._beats, self._doing, self._slowest)
            _EVALUATED.pack_into(self._page, _PAGE.size, done, of)


def heartbeat_file(logs: Path, rank: int) -> Path:
    """Where a rank of an attempt counts its steps, beside its log."""
    return logs / f"heartbeat-{rank}"


def evaluated(path: Path) -> tuple[int, int]:
    """How many batches the evaluation has done that a rank is in, of how many; zeros if it is in
    none."""
    try:
        with path.open("rb") as file:
            return _EVALUATED.unpack_from(file.read(_PAGE.size + _EVALUATED.size), _PAGE.size)
    except (OSError, struct.error):
        return 0, 0


def _page(path: Path) -> mmap.mmap:
    """A page of a file; its room on the disk is taken now, since a write to mapped memory without
    room kills the process."""
    path.touch()
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, mmap.PAGESIZE)
        return mmap.mmap(file.fileno(), mmap.PAGESIZE)


def lay_out(path: Path) -> None:
    """A new page for a rank that is about to start, if the disk has room."""
    path.unlink(missing_ok=True)
    reserve(path, mmap.PAGESIZE)


@dataclass(frozen=True)
class Limits:
    """Seconds without a sign of life that count as a hang."""

    step: float = float(environment.HANG_SECONDS.default)
    long: float = LONG_SECONDS

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Limits:
        """As the environment says."""
        step = float(environment.HANG_SECONDS.of(environ))
        return cls(step, max(LONG_SECONDS, 6 * step))

    def seconds(self, doing: int, slowest: float) -> float:
        """For a rank that is doing this and whose slowest step took so long."""
        return max(self.step, STEPS * slowest) if doing == STEPPING else self.long


class Watch:
    """The entrypoint's side: whether the ranks of this node hang."""

    def __init__(
        self, paths: Sequence[Path], limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.paths, self.limits, self.clock = paths, limits, clock
        self._looked = clock()
        self._seen: list[tuple[int, int, float]] = [(0, STARTING, 0.0)] * len(paths)
        self._still = 0.0

    @property
    def starting(self) -> bool:
        """Whether every rank has certainly not done its first step; one without a page of its own,
        for which the disk had no room, may have."""
        unknown = (0, SAVING, 0.0)
        return all(_read(path, unknown)[1] == STARTING for path in self.paths)

    def hang(self) -> str:
        """The sentence that says that the ranks hang; "" while one of them moves."""
        now = self.clock()
        if now - self._looked < _LOOK_SECONDS / 4:
            return ""
        self._still += min(now - self._looked, _LOOK_SECONDS)
        self._looked = now
        seen = [_read(path, before) for path, before in zip(self.paths, self._seen, strict=True)]
        if seen != self._seen:
            self._seen, self._still = seen, 0.0
        limit, doing = max(
            (self.limits.seconds(doing, slowest), doing) for _, doing, slowest in seen
        )
        if self._still < limit:
            return ""
        return f"The ranks hang: no sign of life for {self._still:.0f} s while {_DOING[doing]}."


def _read(path: Path, before: tuple[int, int, float]) -> tuple[int, int, float]:
    try:
        with path.open("rb") as file:
            return _PAGE.unpack(file.read(_PAGE.size))
    except (OSError, struct.error):
        return before
