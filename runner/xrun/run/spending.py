"""What a run has cost, over all of its attempts, and how long its budget lasts.

An attempt's record says from when on its machines cost money, how much an hour, and when it ended.
Where something is not known, the answer is the dearer one, so that a budget is never overdrawn
because of it; but time in which no machine was there costs nothing. An attempt whose end nobody
recorded counts until its last sign of life (`AttemptRecord.last_seen`) and for as long after it as
such an attempt may say nothing; one whose price nobody knows as the dearest one that is known. A
machine of one's own costs nothing. Machines on which no attempt has begun are in the record of the
one that followed (`barren_usd`). What a cloud bills after an attempt has ended (a minute or two
until the machine is gone) is not in it, nor are storage and traffic. When a machine went, SkyPilot
tells nobody on the machine that follows. `receipt` makes what people read of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .plan import Limits
from .record import AttemptRecord

WAY_ON = "Raise the budget and start the same command again to go on."
TIDY_SECONDS = 30.0
"""What the end of an attempt takes besides its last save."""
QUIET_SECONDS = 300.0
"""A machine may have lived for so long after its last sign of life; where its commits were further
apart, as long as from one to the next."""


@dataclass(frozen=True)
class Life:
    """From when until when an attempt's machines cost money, in seconds since 1970, and their last
    sign of life. `end` says what its end is: `recorded`, a `bound` beyond the last sign, or now,
    since it is `running`."""

    began: float
    ended: float
    seen: float
    end: Literal["recorded", "bound", "running"]

    @property
    def seconds(self) -> float:
        """How long; never negative, whatever the clocks said."""
        return max(0.0, self.ended - self.began)


def lives(attempts: Sequence[AttemptRecord], now: float, *, running: bool = True) -> list[Life]:
    """How long each attempt's machines were there.

    The last one is until `now` unless it has ended, or is not `running` for all that is known.
    """
    nexts = [*map(_began, attempts[1:]), now][: len(attempts)]
    found = [_life(attempt, after, now) for attempt, after in zip(attempts, nexts, strict=True)]
    if attempts and running and attempts[-1].ended is None:
        found[-1] = Life(found[-1].began, now, now, "running")
    return found


def _life(attempt: AttemptRecord, after: float, now: float) -> Life:
    """The life of an attempt that is not known to run. Time from `after` on is the next
    attempt's."""
    began = _began(attempt)
    if attempt.ended is not None:
        # It has measured its time itself, whatever its clock said.
        return Life(began, attempt.ended, attempt.ended, "recorded")
    seen = min(now, attempt.last_known)
    return Life(began, min(now, _end(attempt, after)), seen, "bound")


def _began(attempt: AttemptRecord) -> float:
    return attempt.started if attempt.billed_from is None else attempt.billed_from


def _end(attempt: AttemptRecord, after: float) -> float:
    """When its machines went. They were there at its last sign of life, also if the next attempt's
    had begun by then."""
    if attempt.last_seen is None and attempt.made_progress:
        return after  # an old record, which does not say when
    quiet = max(QUIET_SECONDS, attempt.silence or 0.0)
    return max(attempt.last_known, min(after, attempt.last_known + quiet))


def is_own(attempt: AttemptRecord) -> bool:
    """Whether it ran on a machine that nobody has rented for it: no cloud, no cluster, no price."""
    return attempt.cloud is None and attempt.cluster is None and attempt.usd_per_hour is None


def rates(attempts: Sequence[AttemptRecord]) -> list[float]:
    """Dollars per hour by which each is counted; of unknown prices the dearest known one, 0 if
    there is none."""
    known = [attempt.usd_per_hour for attempt in attempts if attempt.usd_per_hour is not None]
    dearest = max(known, default=0.0)
    return [0.0 if is_own(each) else _or(each.usd_per_hour, dearest) for each in attempts]


def _or(price: float | None, otherwise: float) -> float:
    return otherwise if price is None else price


def is_known(attempts: Sequence[AttemptRecord]) -> bool:
    """Whether anybody can tell dollars: of a rented machine at least one price is known, or none
    was rented."""
    rented = [attempt for attempt in attempts if not is_own(attempt)]
    return not rented or any(attempt.usd_per_hour is not None for attempt in rented)


def hours(attempts: Sequence[AttemptRecord], now: float) -> float:
    """Hours of machine time over all attempts, whatever the number of nodes."""
    barren = sum(attempt.barren_hours or 0.0 for attempt in attempts)
    return barren + sum(life.seconds for life in lives(attempts, now)) / 3600


def dollars(attempts: Sequence[AttemptRecord], now: float, *, running: bool = True) -> float | None:
    """US dollars over all attempts; None if nobody knows what any of them costs. `running`: see
    `lives`."""
    if not is_known(attempts):
        return None
    found = lives(attempts, now, running=running)
    barren = sum(attempt.barren_usd or 0.0 for attempt in attempts)
    return barren + sum(
        rate * life.seconds / 3600 for rate, life in zip(rates(attempts), found, strict=True)
    )


@dataclass(frozen=True)
class Allowance:
    """How long the running attempt may go on: `until` in seconds of `time.time()`, and what is
    limited.

    `limit` dollars or hours are used up then, at `rate` of them per second.
    """

    until: float = float("inf")
    key: str = ""
    limit: float = 0.0
    rate: float = 0.0

    def spent(self, now: float, ending: float = 0.0) -> str:
        """The sentence that ends the run once no more is left than its end takes, `ending` seconds;
        "" before."""
        if now + ending < self.until:
            return ""
        used = self.limit - (self.until - now) * self.rate
        what = "dollars are spent" if self.key == "usd" else "hours are used"
        return f"budget.{self.key}: {used:.4g} of {self.limit:g} {what}."


def is_spent(sentence: str) -> bool:
    """Whether a sentence is `Allowance.spent`'s."""
    return sentence.startswith("budget.")


def allowance(limits: Limits, attempts: Sequence[AttemptRecord], now: float) -> Allowance:
    """What is left of a budget for the last one of these attempts, which runs."""
    found = [Allowance()]
    if limits.hours:
        left = limits.hours - hours(attempts, now)
        found.append(Allowance(now + left * 3600, "hours", limits.hours, 1 / 3600))
    rate = rates(attempts)[-1] / 3600
    if limits.usd and rate:
        left = limits.usd - (dollars(attempts, now) or 0.0)
        found.append(Allowance(now + left / rate, "usd", limits.usd, rate))
    return min(found, key=lambda one: one.until)


class Watch:
    """Called in each step: the sentence that ends the run before more is spent than its budget
    says, "" while there is some left.

    An end takes `ending()` seconds, and the next step as long as the one before; once it is said,
    it is said again.
    """

    def __init__(
        self, left: Allowance, now: Callable[[], float], ending: Callable[[], float]
    ) -> None:
        self.left, self.now, self.ending = left, now, ending
        self._looked: float | None = None
        self._said = ""

    def __call__(self) -> str:
        """See Watch."""
        before, now = self._looked, self.now()
        self._looked = now
        step = 0.0 if before is None else now - before
        self._said = self._said or self.left.spent(now, TIDY_SECONDS + self.ending() + step)
        return self._said


def unknown(limits: Limits, attempt: AttemptRecord) -> str:
    """The warning about a budget in dollars where nobody knows what the machine costs; ""
    otherwise."""
    if not limits.usd or attempt.usd_per_hour:
        return ""
    counts, way_on = "budget.hours still counts.", "Set budget.hours to limit the run."
    limited = counts if limits.hours else way_on
    what = "the price of this machine is not known, so its dollars are not counted"
    if is_own(attempt) or attempt.usd_per_hour is not None:
        what = "a machine of one's own costs nothing, so this limit never ends the run"
    return f"budget.usd: {what}. {limited}"
