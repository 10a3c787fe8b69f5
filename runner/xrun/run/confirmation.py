"""How long an attempt may speak for its run where nobody can stop it.

A store refuses the commits of an attempt whose run another one has taken; Weights & Biases takes
whatever comes. A machine that was believed dead may wake after its successor has finished, so an
attempt sends only while the last look at the store's head that found it its own is young. Who
sends is another process: the time of the look is in a file of the attempt's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from .. import environment
from ..files import read_json, write_json

FRESH_SECONDS = float(environment.CONFIRMED.of())
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Seconds that go on while the machine sleeps, and that nobody sets back."""
    return time.clock_gettime(_CLOCK)


class Confirmation:
    """When the head was last seen to be this attempt's, in the attempt's `folder`."""

    def __init__(self, folder: Path, clock: Callable[[], float] = boot_seconds) -> None:
        self.path, self.clock = folder / "confirmed.json", clock

    def note(self, asked: float) -> None:
        """The head is this attempt's, said the store when it was asked at `asked` on this clock: a
        moment before the answer, since the machine may sleep in between."""
        with contextlib.suppress(OSError):  # a full disk: then it is not fresh for long
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, asked)

    @property
    def is_fresh(self) -> bool:
        """Whether nobody else can have had the run for longer than `FRESH_SECONDS`."""
        asked = read_json(self.path)
        return isinstance(asked, float) and self.clock() - asked < FRESH_SECONDS
