"""What a run has cost, over all of its attempts, and how long its budget lasts.

An attempt's record says from when on its machines cost money, how much an hour, and when it ended.
Where something is not known, the answer is the dearer one, so that a budget is never overdrawn
because of it; but time in which no machine was there costs nothing. An attempt whose end nobody
recorded counts until its last sign of life (`AttemptRecord.last_seen`) and for as long after it as
such an attempt may say nothing; one whose price nobody knows as the dearest one that is known. What
a cloud bills after an attempt has ended (a minute or two until the machine is gone) is not in it,
nor are storage and traffic. When a machine went, SkyPilot tells nobody on the machine that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Limits
from .record import AttemptRecord

WAY_ON = "Raise the budget and start the same command again to go on."
TIDY_SECONDS = 30.0
"""What the end of an attempt takes besides its last save."""
QUIET_SECONDS = 300.0
"""A machine may have lived for so long after its last sign of life; where its commits were further
apart, as long as from one to the next."""


def seconds(attempts: Sequence[AttemptRecord], now: float, *, running: bool = True) -> list[float]:
    """How long each attempt's machines have run.

    The last one runs until `now` unless it has ended, or is not `running` for all that is known.
    """
    begins = [_began(attempt) for attempt in attempts]
    nexts = [*begins[1:], now]
    # One that has ended has measured its time itself, whatever its clock said.
    ends = [
        min(now, _end(attempt, after)) if attempt.ended is None else attempt.ended
        for attempt, after in zip(attempts, nexts, strict=True)
    ]
    if attempts and running and attempts[-1].ended is None:
        ends[-1] = now
    return [max(0.0, end - begin) for begin, end in zip(begins, ends, strict=True)]


def _began(attempt: AttemptRecord) -> float:
    return attempt.started if attempt.billed_from is None else attempt.billed_from


def _end(attempt: AttemptRecord, after: float) -> float:
    """When its machines went. They were there at its last sign of life, also if the next attempt's
    had begun by then; nobody else's time (from `after` on) counts as theirs."""
    if attempt.ended is not None:
        return attempt.ended
    if attempt.last_seen is None and attempt.made_progress:
        return after  # an old record, which does not say when
    quiet = max(QUIET_SECONDS, attempt.silence or 0.0)
    return max(attempt.last_known, min(after, attempt.last_known + quiet))


def hours(attempts: Sequence[AttemptRecord], now: float) -> float:
    """Hours of machine time over all attempts, whatever the number of nodes."""
    return sum(seconds(attempts, now)) / 3600


def dollars(attempts: Sequence[AttemptRecord], now: float, *, running: bool = True) -> float | None:
    """US dollars over all attempts; None if nobody knows what any of them costs. `running`: see
    `seconds`."""
    if all(attempt.usd_per_hour is None for attempt in attempts):
        return None
    times = seconds(attempts, now, running=running)
    return sum(rate * time for rate, time in zip(_rates(attempts), times, strict=True))


def _rates(attempts: Sequence[AttemptRecord]) -> list[float]:
    """Dollars per second of each."""
    known = [attempt.usd_per_hour for attempt in attempts if attempt.usd_per_hour is not None]
    dearest = max(known, default=0.0)
    prices = (attempt.usd_per_hour for attempt in attempts)
    return [(dearest if price is None else price) / 3600 for price in prices]


@dataclass(frozen=True)
class Cost:
    """What one attempt has cost: `usd` is None where nobody knows any price. `of_dearest`: its own
    price is not known, and the dearest known one counts. `until_guess`: nobody has recorded its
    end."""

    hours: float
    usd: float | None
    of_dearest: bool
    until_guess: bool


def receipt(attempts: Sequence[AttemptRecord], now: float) -> list[Cost]:
    """What each attempt has cost, by the rules of `seconds` and `dollars`; the last one may run."""
    if not attempts:
        return []
    known = any(attempt.usd_per_hour is not None for attempt in attempts)
    lived = zip(attempts, seconds(attempts, now), _rates(attempts), strict=True)
    return [
        Cost(
            hours=time / 3600,
            usd=rate * time if known else None,
            of_dearest=known and attempt.usd_per_hour is None,
            until_guess=attempt.ended is None and attempt is not attempts[-1],
        )
        for attempt, time, rate in lived
    ]


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
    rate = _rates(attempts)[-1]
    if limits.usd and rate:
        left = limits.usd - (dollars(attempts, now) or 0.0)
        found.append(Allowance(now + left / rate, "usd", limits.usd, rate))
    return min(found, key=lambda one: one.until)


def unknown(limits: Limits, attempt: AttemptRecord) -> str:
    """The warning about a budget in dollars where nobody knows what the machine costs; ""
    otherwise."""
    if not limits.usd or attempt.usd_per_hour:
        return ""
    counts, way_on = "budget.hours still counts.", "Set budget.hours to limit the run."
    limited = counts if limits.hours else way_on
    what = "nobody has said what this machine costs, so its dollars are not counted"
    return f"budget.usd: {what}. {limited}"
