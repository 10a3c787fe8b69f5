"""From the points in a run's folder to the rows of W&B's history: one row per step, in order, each
one a function of the files.

A row is complete when a later point is there: the points of training and of evaluation may share a
step. Whoever sends the rows, and however often they begin again, they are the same ones, so the
last row that W&B has tells what comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...run.points import Key, Succession, key_of, parse
from ...run.record import AttemptRecord

STEP = "train/step"
"""The axis of every chart."""
BEFORE_ALL: Key = (-1, 0)


def last_key(row: Mapping[str, Any]) -> Key:
    """The place of the last row that W&B has; BEFORE_ALL if it has none."""
    return key_of(row, int(row[STEP])) if STEP in row else BEFORE_ALL


class PointFile:
    """Reads what is new in a metrics.jsonl that only grows; a torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._succession = Succession()

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole point that was not read before, but for those of an attempt whose successor
        has begun."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if (point := parse(line)) is None:
                    continue
                self._succession.begins(point)
                if self._succession.counts(point):
                    yield point


class Rows:
    """Puts the points after `after` together into rows."""

    def __init__(self, after: Key, attempts: Sequence[AttemptRecord]) -> None:
        self.after, self.attempts = after, attempts
        self._open: dict[str, Any] = {}

    def add(self, points: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows that these points complete."""
        for point in points:
            if key_of(point, point["step"]) <= self.after:
                continue
            if self._open and self._open[STEP] != point["step"]:
                yield from self.rest()
            self._open |= self._row(point)

    def rest(self) -> Iterator[dict[str, Any]]:
        """The row that a later point might still belong to, after all."""
        if self._open:
            row, self._open = self._open, {}
            self.after = last_key(row)
            yield row

    def _row(self, point: Mapping[str, Any]) -> dict[str, Any]:
        own = ("step", "time", "attempt")
        values = {name: value for name, value in point.items() if name not in own}
        when = point.get("time", 0.0)
        number = max(1, sum(attempt.started <= when for attempt in self.attempts))
        preempted = sum(attempt.was_preempted for attempt in self.attempts[: number - 1])
        marks = {"xrun/attempt": number, "xrun/preemptions": preempted}
        return {STEP: point["step"], **values, **marks, "_timestamp": when}
