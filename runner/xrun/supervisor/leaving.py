"""When this attempt saves and leaves its machines for others: as xrun's plugin in SkyPilot has said
when it asked for them, and by the same policy once the attempt knows how fast it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

from xrun_sky.stay import Stay

from .. import clock, environment
from ..files import number, read_json
from ..run.folder import RunFolder

_LOOKS = 60
"""How often it is looked in the time of one start: every ten seconds where that takes as many
minutes."""


class Leaving:
    """Asked again and again while an attempt trains.

    What was known as the machines were asked for is an estimate, or nothing at all. An attempt that
    has trained for as long as its start may take knows better: its own speed counts from then on.
    Variables that say nothing, or what no plugin has said, mean that it stays.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        folder: RunFolder,
        attempt: str,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self.folder, self.attempt, self.now = folder, attempt, now
        self.told = _time(environment.LEAVE_AT.of(environ))
        self.stay = _stay(environment.STAY.of(environ))
        self._looked = -math.inf
        self._first: tuple[float, int] | None = None
        """When the first step that this attempt has done was seen, and which one it was."""

    def is_due(self) -> bool:
        """Whether it is time to leave."""
        now = self.now()
        stay = self.stay
        if stay is not None and now - self._looked >= stay.terms.changeover / _LOOKS:
            self._looked = now
            if (over := self._is_over(stay, now)) is not None:
                self.told = now if over else None
        return self.told is not None and now >= self.told

    def _is_over(self, stay: Stay, now: float) -> bool | None:
        """By what this attempt has measured; None while that is too little."""
        config = read_json(self.folder.config, dict) or {}
        point = self.folder.last_point()
        step, last = int(number(point.get("step"))), int(number(config.get("steps")))
        if config.get("attempt") != self.attempt or point.get("attempt") != self.attempt:
            return None
        if self._first is None:
            self._first = now, step
        since, first = self._first
        if now - since < stay.terms.changeover or step <= first or last <= step:
            return None
        rate = (step - first) / (now - since) / stay.candidate.speed
        return stay.is_over(now, since, (last - step) / rate)


def _time(text: str) -> float | None:
    """Seconds since 1970; None where nothing is said, or nothing that could be meant."""
    with contextlib.suppress(ValueError):
        return float(text)
    return None


def _stay(text: str) -> Stay | None:
    with contextlib.suppress(ValueError):
        return Stay.from_text(text)
    return None
