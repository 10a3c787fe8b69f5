"""What a whole sweep would take: the quote of one trial, for as many trials as are expected at each
rung."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..launcher.quote import START_SECONDS, Quote, Range
from ..recipe.schema import Sweep
from .standing import Rules
from .trials import Trials


@dataclass(frozen=True)
class SweepQuote:
    """Hours of machines and dollars of all trials together. `lengths` is what is trained, in
    lengths of a trial."""

    trials: int
    lengths: float
    hours: Range
    usd: Range


def sweep_quote(trials: Trials, one: Quote) -> SweepQuote:
    """What the trials take if each takes what `one` does. Each rung begins with a new machine."""
    counts, parts = list(expected(trials.sweep, trials.count)), list(_parts(trials))
    lengths = sum(count * part for count, part in zip(counts, parts, strict=True))
    hours = Range(
        *(
            lengths * max(0.0, whole - start / 3600) + sum(counts) * start / 3600
            for whole, start in zip(one.hours, START_SECONDS, strict=True)
        )
    )
    usd = Range(
        *(
            taken * paid / whole if whole else 0.0
            for taken, paid, whole in zip(hours, one.usd, one.hours, strict=True)
        )
    )
    return SweepQuote(trials.count, lengths, hours, usd)


def expected(sweep: Sweep, trials: int) -> Iterator[float]:
    """How many trials begin on the way to each rung, the end among them. For `asha` results
    are taken to come in any order: the k-th that comes to a rung goes on if it is among the best of
    k."""
    stop, here = sweep.stop, float(trials)
    yield here
    for _ in range(stop.rungs if stop else 0):
        assert stop is not None
        if stop.method == "halving":
            here = Rules(trials, method=stop.method, reduction=stop.reduction).kept(round(here))
        else:
            here = sum(max(1, k // stop.reduction) / k for k in range(1, round(here) + 1))
        yield here


def _parts(trials: Trials) -> Iterator[float]:
    """The part of a trial's length between each rung and the one before it."""
    before, last = 0.0, trials.base.last_step(None)
    for part in trials.parts:
        step = replace(trials.base, pause=part).pause_step(None)
        here = 1.0 if not part else step / last if step and last else 1 / part
        yield here - before
        before = here
