"""How long an attempt may speak for its run where nobody can stop it.

A store refuses the commits of an attempt whose run another one has taken; Weights & Biases takes
whatever comes. A machine that was believed dead may wake after its successor has finished, so an
attempt sends only while the last look at the store's head that found it its own is young, and no
pause of the process that sends has come after it. That is another process: the time of the look is
in a file of the attempt's own.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from pathlib import Path

from .. import environment
from ..clock import boot_seconds
from ..files import read_json, write_json

FRESH_SECONDS = float(environment.CONFIRMED.of())
PAUSE_SECONDS = FRESH_SECONDS / 3
"""Who has not run for so long was asleep or stopped, and knows nothing any more."""


class Confirmation:
    """When the head was last seen to be this attempt's, in the attempt's `folder`.

    Who relies on it says by `tick`, more often than every `PAUSE_SECONDS`, that it runs.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = boot_seconds) -> None:
        self.path, self.clock = folder / "confirmed.json", clock
        self._lock = threading.Lock()
        self._ticked, self._woke = clock(), -math.inf

    def note(self, asked: float) -> None:
        """The head is this attempt's, said the store when it was asked at `asked` on this clock: a
        moment before the answer, since the machine may sleep in between."""
        with contextlib.suppress(OSError):  # a full disk: then it is not fresh for long
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, asked)

    def tick(self) -> float:
        """This process runs now; returns when the last pause of its has ended."""
        with self._lock:
            now = self.clock()
            if now - self._ticked > PAUSE_SECONDS:
                self._woke = now
            self._ticked = now
            return self._woke

    @property
    def is_fresh(self) -> bool:
        """Whether nobody else can have had the run for longer than `FRESH_SECONDS`, and not while
        this process did not run."""
        woke, asked = self.tick(), read_json(self.path, float)
        return asked is not None and asked >= woke and self.clock() - asked < FRESH_SECONDS
