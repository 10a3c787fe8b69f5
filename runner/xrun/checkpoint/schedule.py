"""When to save.

`auto` balances what a save costs against what a preemption loses (`run/saving.py`). The cost is
what a save takes from training (the stall, measured), not how long writing goes on in the
background; a save never starts before the one before has ended. The time between preemptions
starts from a prior and moves with what the run has seen.

Before a known deadline, such as a cloud's notice gives, training goes on until the last save has to
begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..machine.stop import SPARE_SECONDS
from ..recipe.interval import Every
from ..run.saving import best_interval

LONGER = 0.25
"""By how much of it a last save may take longer than those before."""
FASTER = 3.0
"""How much faster a save may be, at best, when nothing trains beside it."""


@dataclass(frozen=True)
class LastSave:
    """What the save before a deadline takes, in seconds; nothing trains beside it.

    `alone`: how long such saves have taken, `beside`: how long those beside training; 0 if there
    was none. `ahead`: what share of a save is still on its way before it. `delay`: until the store
    takes the next commit.
    """

    alone: float = 0.0
    beside: float = 0.0
    ahead: float = 0.0
    delay: float = 0.0

    @property
    def least(self) -> float:
        """How long it takes at best: where there is less time it is not tried."""
        return max((self.alone or self.beside / FASTER) * (1 + self.ahead), self.delay)

    @property
    def usual(self) -> float:
        """How long it takes, as far as that is known."""
        return max((self.alone or self.beside) * (1 + self.ahead), self.delay)

    @property
    def lead(self) -> float:
        """How long before the deadline it has to begin; infinite while nothing was measured.

        What it may take longer has half of the seconds that every deadline leaves; the other half
        is for the attempt's end.
        """
        known = self.alone or self.beside or math.inf
        return max(
            (known + max(0.0, known * LONGER - SPARE_SECONDS / 2)) * (1 + self.ahead), self.delay
        )


class SaveSchedule:
    """Answers "is a save due?" once per step; every argument in seconds or steps.

    `alone`: how long the last saves of the attempts before have taken. `worth`: how many seconds of
    the machine are to be had for what sending a byte costs.
    """

    def __init__(
        self,
        every: Every,
        steps_per_epoch: int,
        uptime: Callable[[], float],
        clock: Callable[[], float],
        alone: float = 0.0,
        worth: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.worth = worth
        self.every, self.steps_per_epoch, self.uptime, self.clock, self.alone = (
            every,
            steps_per_epoch,
            uptime,
            clock,
            alone,
        )
        self.last_time = clock()
        self.stall = 0.0
        self.write = 0.0
        self.sent = 0.0

    def due(self, step: int, left: float = math.inf) -> bool:
        """Whether a save should start after `step` steps are done, `left` seconds before a
        deadline.

        Near the deadline none does that would still be on its way when the last save begins.
        """
        return self._due(step) and (left == math.inf or left - self.last_save().lead > self.write)

    def _due(self, step: int) -> bool:
        if self.every.steps is not None:
            return step % self.every.steps == 0
        if self.every.epochs is not None:
            return step % (self.every.epochs * self.steps_per_epoch) == 0
        return self.clock() - self.last_time >= self.seconds()

    def seconds(self) -> float:
        """The present interval in seconds, for policies by time."""
        cost = self.stall + self.sent * self.worth()
        return self.every.seconds or best_interval(cost, self.write, self.uptime())

    def last_save(self, busy: bool = False, delay: float = 0.0) -> LastSave:
        """What a last save would take now; `busy`: the save that has started last is still on its
        way."""
        ahead = (
            max(0.0, 1 - (self.clock() - self.last_time) / self.write)
            if busy and self.write
            else float(busy)
        )
        return LastSave(self.alone, self.write, ahead, delay)

    def started(self) -> None:
        """A save has started now."""
        self.last_time = self.clock()

    def measured(self, stall: float, write: float, sent: float = 0.0) -> None:
        """A save took `stall` seconds from training and `write` seconds until it was committed, and
        sent so many bytes; the newest counts half."""
        self.sent = sent if not self.sent else (self.sent + sent) / 2
        self.stall = stall if not self.stall else (self.stall + stall) / 2
        self.write = write if not self.write else (self.write + write) / 2
