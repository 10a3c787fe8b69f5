"""`Quote`: hours and dollars of the rest of a run, with what they leave out and how sure they are.

The middle of each range is what is expected, the ends are what speed, losses and starts that are as
good or as bad as usual make of it. Waiting until a cloud has machines is in none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..recipe.schema import Recipe
from ..run.cost import Cost
from ..run.saving import PRIOR_UPTIME, best_interval
from .throughput import Speed, Throughput

LOSSES = (0.03, 0.32, 0.53)
"""Preemptions in an hour of a spot machine: the quartiles of the 14 traces of running instances
that were published with "Can't Be Late" (NSDI 2024; github skypilot-org/spot-traces,
`preemption/`), and between them their mean, 561 losses in 1,777 hours."""
START_SECONDS = (300.0, 600.0, 900.0)
"""From a machine that costs money to the first step: what a new machine installs, and the state
that it fetches. The mean is the changeover that the policies of decision 0053 reckon with."""
STALL_RATE = 10e9
"""Bytes of state that are copied in a second while training waits, over PCIe 4."""


class Range(NamedTuple):
    """The least, the expected and the most."""

    low: float
    likely: float
    high: float

    def times(self, factor: float) -> Range:
        """All three, multiplied."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True)
class Quote:
    """What the rest of a run takes: `hours` of machines that cost money, dollars, and how often it
    is preempted."""

    hours: Range
    usd: Range
    preemptions: Range

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        told = {"hours": self.hours, "usd": self.usd, "preemptions": self.preemptions}
        return {name: each._asdict() for name, each in told.items()}


def quote(
    recipe: Recipe, throughput: Throughput, speed: Speed | None, hourly: float, *, spot: bool
) -> Quote | None:
    """The quote for machines of this speed; None where steps or speed are not known."""
    if speed is None or throughput.steps_left is None:
        return None
    slow, fast = speed.spread
    hours, losses = [], []
    paces = (fast, 1.0, slow)
    for pace, rate, start in zip(paces, LOSSES, START_SECONDS, strict=True):
        rate = rate if spot else 0.0
        steps = throughput.steps_left / speed.steps_per_second / pace / 3600
        besides = _besides(recipe, throughput, speed, steps) / pace if speed.alone else 0.0
        changeover = start / 3600
        whole = steps + besides + changeover
        # A loss costs a start and half of what lies between two saves, and so do those meanwhile.
        lost = min(0.9, rate * (changeover + _interval(recipe, throughput, steps) / 2))
        hours.append(whole / (1 - lost))
        losses.append(rate * hours[-1])
    taken = Range(*hours)
    return Quote(taken, taken.times(hourly), Range(*losses))


def _besides(recipe: Recipe, throughput: Throughput, speed: Speed, hours: float) -> float:
    """Hours of evaluations and of saves beside so many of steps."""
    cost = throughput.cost
    if cost is None:
        return 0.0
    step, evaluated = throughput.flops() or 0.0, cost.evaluation
    once = 0.0
    if evaluated is not None and cost.val_samples and step:
        flops = evaluated.flops / evaluated.samples * cost.val_samples
        once = flops / step / speed.steps_per_second / 3600
    stall = cost.state / STALL_RATE / 3600
    return evaluations(recipe, cost, throughput.steps_left or 0) * once + stall * hours / max(
        _interval(recipe, throughput, hours), 1 / 3600
    )


def evaluations(recipe: Recipe, cost: Cost, steps: int) -> int:
    """How often so many steps are evaluated."""
    every, train = recipe.train.evaluate.every, recipe.train
    epochs = every.epochs if every else (1 if train.epochs else None)
    if every and every.steps:
        return max(1, steps // every.steps)
    per_epoch = -(-(cost.train_samples or 0) // train.global_batch)
    return max(1, steps // (epochs * per_epoch)) if epochs and per_epoch else 1


def _interval(recipe: Recipe, throughput: Throughput, hours: float) -> float:
    """Hours between two saves."""
    every, steps = recipe.checkpoint.every, throughput.steps_left or 1
    if every.seconds:
        return every.seconds / 3600
    if every.steps:
        return hours * every.steps / steps
    stall = throughput.cost.state / STALL_RATE if throughput.cost else 0.1
    return best_interval(stall, 0.0, PRIOR_UPTIME) / 3600
