"""Where a run's configuration and metrics go. A tracker never ends training, and no point is lost
or doubled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Dropped:
    """Points of an earlier attempt after the step that a run resumed from: they are computed again.

    `last` is the last step that had been logged, `seconds` the time to it from the resumed step's
    point, or from the start of the attempt that logged it if that was later.
    """

    last: int
    seconds: float


class Tracker(Protocol):
    """Five verbs; `step` counts finished optimizer steps."""

    def start(self, config: Mapping[str, Any], step: int) -> Dropped | None:
        """Begin or go on at `step`: keep the configuration, drop the points after `step`."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep one point."""

    def committed(self, step: int, head: str) -> None:
        """Remember the newest commit of the store: the second witness of what must not be lost."""

    def last_commit(self) -> tuple[int, str] | None:
        """Step and head id of the newest commit that this tracker knows of."""

    def finish(self) -> None:
        """Everything that was logged is safe when this returns."""
