"""When to save.

`auto` balances what a save costs against what a preemption loses: with a cost of C seconds per save and M seconds between
preemptions the best interval is sqrt(2 * C * M) (Young 1974, Daly 2006). C is what a save takes from training (the stall,
measured), not how long writing goes on in the background; a save never starts before the one before has ended. M starts from
a prior and moves with what the run has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .every import Every

PRIOR_UPTIME = 3 * 3600.0
"""Seconds between preemptions before a run has seen any: spot machines of the published traces last hours."""
MINIMUM_SECONDS = 10.0
"""No closer than this: below it a save costs more in attention (logs, files, commits) than the seconds it could lose."""
MINIMUM_STALL = 1e-3


def mean_uptime(seconds: float, preemptions: int, prior: float = PRIOR_UPTIME) -> float:
    """Expected seconds between preemptions: the observed ones, and the prior counted as one more observation."""
    return (prior + seconds) / (1 + preemptions)


def best_interval(stall: float, write: float, uptime: float, minimum: float = MINIMUM_SECONDS) -> float:
    """Seconds between saves that lose least.

    `stall`: seconds a save takes from training; `write`: seconds until it is committed; `uptime`: mean seconds between
    preemptions.
    """
    return max(math.sqrt(2 * max(stall, MINIMUM_STALL) * uptime), write, minimum)


class SaveSchedule:
    """Answers "is a save due?" once per step; every argument in seconds or steps."""

    def __init__(self, every: Every, steps_per_epoch: int, uptime: Callable[[], float], clock: Callable[[], float]) -> None:
        self.every, self.steps_per_epoch, self.uptime, self.clock = every, steps_per_epoch, uptime, clock
        self.last_time = clock()
        self.stall = 0.0
        self.write = 0.0

    def due(self, step: int) -> bool:
        """Whether a save should start after `step` steps are done."""
        if self.every.steps is not None:
            return step % self.every.steps == 0
        if self.every.epochs is not None:
            return step % (self.every.epochs * self.steps_per_epoch) == 0
        return self.clock() - self.last_time >= self.seconds()

    def seconds(self) -> float:
        """The present interval in seconds, for policies by time."""
        return self.every.seconds or best_interval(self.stall, self.write, self.uptime())

    def started(self) -> None:
        """A save has started now."""
        self.last_time = self.clock()

    def measured(self, stall: float, write: float) -> None:
        """A save took `stall` seconds from training and `write` seconds until it was committed; the newest counts half."""
        self.stall = stall if not self.stall else (self.stall + stall) / 2
        self.write = write if not self.write else (self.write + write) / 2
