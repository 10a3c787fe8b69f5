"""What the trials of a sweep have cost together, and whether its budget is spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .. import clock
from ..run import spending
from ..run.folder import RunFolder
from ..run.plan import Limits, Plan
from ..run.record import RunRecord
from ..run.stores import open_store

WAY_ON = "Raise sweep.budget and start the same command again to go on."


@dataclass(frozen=True)
class Spent:
    """Hours of all trials added up, and dollars; None where nobody knows any price."""

    hours: float = 0.0
    usd: float | None = None

    def __add__(self, other: Spent) -> Spent:
        known = [each.usd for each in (self, other) if each.usd is not None]
        return Spent(self.hours + other.hours, sum(known) if known else None)

    def exceeds(self, limits: Limits) -> str:
        """The sentence that ends the sweep; "" while something is left."""
        if limits.hours and self.hours >= limits.hours:
            return f"sweep.budget.hours: {self.hours:.4g} of {limits.hours:g} hours are used."
        if limits.usd and (self.usd or 0.0) >= limits.usd:
            return f"sweep.budget.usd: {self.usd:.4g} of {limits.usd:g} dollars are spent."
        return ""

    def left_for(self, own: Limits, limits: Limits, mine: Spent) -> Limits:
        """The limits of a trial that may have its `own` and what the sweep has left: it has spent
        `mine`, and all trials this."""
        usd = limits.usd and limits.usd - (self.usd or 0.0) + (mine.usd or 0.0)
        hours = limits.hours and limits.hours - self.hours + mine.hours
        return replace(own, usd=_least(own.usd, usd), hours=_least(own.hours, hours))


def spent(plan: Plan) -> Spent:
    """What one run has cost so far. Raises XrunError where its store cannot tell."""
    attempts = RunRecord.of(open_store(plan, "reader", create=False).head()).attempts
    if not attempts:
        return Spent()
    now, running = clock.now(), RunFolder(plan.folder).owner_pid() is not None
    lives = spending.lives(attempts, now, running=running)
    hours = sum(life.seconds for life in lives) / 3600
    return Spent(hours, spending.dollars(attempts, now, running=running))


def spent_together(plans: Iterable[Plan]) -> Spent:
    """What these runs have cost together."""
    return sum(map(spent, plans), Spent())


def _least(one: float | None, other: float | None) -> float | None:
    known = [each for each in (one, other) if each is not None]
    return min(known, default=None)
