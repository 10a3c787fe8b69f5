"""At which steps the trials of a sweep pause: one rule, for who checks a recipe, who trains it and
who reads its points."""

from __future__ import annotations

import math

from .interval import Every


def evaluated_every(
    every: Every | None, by_epochs: bool, steps_per_epoch: int | None
) -> int | None:
    """Steps between two evaluations by this `evaluate.every`, in a recipe whose length is given in
    epochs or not; None where only the last step is evaluated, or nobody knows yet."""
    epochs = every.epochs if every is not None else (1 if by_epochs else None)
    if epochs:
        return epochs * steps_per_epoch if steps_per_epoch else None
    return every.steps if every is not None else None


def rung_step(last: int, every: int | None, part: float) -> int:
    """Where a run of `last` steps pauses for the first of so many `part`s of them: at the next
    evaluation, of which there is one after `every` steps and one after the last."""
    least = math.ceil(round(last / part, 6))
    return min(last, -(-least // every) * every) if every else last
