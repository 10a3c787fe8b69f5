"""`Quote`: hours and dollars of the rest of a run, with what they leave out and how sure they are.

The middle of each range is what is expected, the ends are what speed, losses and starts that are as
good or as bad as usual make of it. Waiting until a cloud has machines, or until data are read, is
in none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import environment
from ..recipe.schema import Recipe
from ..run.cost import Cost
from ..run.prices import SHARED
from ..run.saving import PRIOR_UPTIME, best_interval, usd_per_byte, worth
from .throughput import Speed, Throughput

LOSSES = (0.03, 0.32, 0.53)
"""Preemptions in an hour of a spot machine: the quartiles of the 14 traces of running instances
that were published with "Can't Be Late" (NSDI 2024; github skypilot-org/spot-traces,
`preemption/`), and between them their mean, 561 losses in 1,777 hours."""
START_SECONDS = (300.0, 600.0, 900.0)
"""From a machine that costs money to the first step: what a new machine installs, and the state
that it fetches. The mean is the changeover that the policies of decision 0053 reckon with."""
SHARED_START_SECONDS = (10.0, 120.0, 600.0)
"""The same where machines are there before the job is: nothing is installed that another job has
installed, or all of it."""
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
    is preempted. `saved` gigabytes (10^9) are sent in an hour to where its state is, for so many
    dollars an hour, which are in `usd`; None where nobody knows how large its state is."""

    hours: Range
    usd: Range
    preemptions: Range
    saved: float | None = None
    saved_usd: float = 0.0

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        told = {"hours": self.hours, "usd": self.usd, "preemptions": self.preemptions}
        ranges = {name: each._asdict() for name, each in told.items()}
        return {**ranges, "saved_gb_per_hour": self.saved, "saved_usd_per_hour": self.saved_usd}


def quote(
    recipe: Recipe,
    throughput: Throughput,
    speed: Speed | None,
    hourly: float,
    *,
    spot: bool,
    cloud: str = "",
) -> Quote | None:
    """The quote for machines of this speed on a cloud; None where steps or speed are not known."""
    if speed is None or throughput.steps_left is None:
        return None
    state = throughput.cost.state if throughput.cost else 0
    usd_of_a_save = state * usd_per_byte(cloud, recipe.checkpoint.store)
    saves = Saves(state / STALL_RATE, worth(usd_of_a_save, hourly))
    slow, fast = speed.spread
    hours, losses = [], []
    paces = (fast, 1.0, slow)
    starts = SHARED_START_SECONDS if cloud and cloud in SHARED else START_SECONDS
    for pace, rate, start in zip(paces, LOSSES, starts, strict=True):
        rate = rate if spot else 0.0
        steps = throughput.steps_left / speed.steps_per_second / pace / 3600
        between = saves.hours_between(recipe, steps, throughput.steps_left)
        if speed.alone:
            steps += _evaluating(recipe, throughput, speed) / pace
            steps *= 1 + saves.stall / 3600 / between
        changeover = start / 3600
        # A loss costs a start and half of the time between two saves, in which losses happen too.
        lost = min(0.9, rate * (changeover + between / 2))
        hours.append((steps + changeover) / (1 - lost))
        losses.append(rate * hours[-1])
    taken = Range(*hours)
    usual = throughput.steps_left / speed.steps_per_second / 3600
    often = 1 / saves.hours_between(recipe, usual, throughput.steps_left)
    sent = usd_of_a_save * often
    saved = state / 1e9 * often if throughput.cost else None
    return Quote(taken, taken.times(hourly + sent), Range(*losses), saved, sent)


@dataclass(frozen=True)
class Saves:
    """Seconds that a save takes from training, and those of the machine that are to be had for what
    it sends."""

    stall: float
    worth: float

    def hours_between(self, recipe: Recipe, hours: float, steps: int) -> float:
        """Hours from one save to the next, of a run that computes so many steps in so many
        hours."""
        every = recipe.checkpoint.every
        if every.seconds:
            return every.seconds / 3600
        if every.steps:
            return hours * every.steps / max(1, steps)
        spacing = float(environment.HUB_SPACING.default) if recipe.checkpoint.store.on_hub else 0.0
        return best_interval(self.stall + self.worth, spacing, PRIOR_UPTIME) / 3600


def _evaluating(recipe: Recipe, throughput: Throughput, speed: Speed) -> float:
    """Hours of all evaluations."""
    cost, step = throughput.cost, throughput.flops()
    if cost is None or cost.evaluation is None or not cost.val_samples or not step:
        return 0.0
    flops = cost.evaluation.flops / cost.evaluation.samples * cost.val_samples
    once = flops / step / speed.steps_per_second / 3600
    return evaluations(recipe, cost, throughput.steps_left or 0) * once


def evaluations(recipe: Recipe, cost: Cost, steps: int) -> int:
    """How often so many steps are evaluated."""
    every, train = recipe.train.evaluate.every, recipe.train
    epochs = every.epochs if every else (1 if train.epochs else None)
    if every and every.steps:
        return max(1, steps // every.steps)
    per_epoch = -(-(cost.train_samples or 0) // train.global_batch)
    return max(1, steps // (epochs * per_epoch)) if epochs and per_epoch else 1
