"""`Cost`: what a recipe's step takes, by the shapes of its tensors alone: bytes and FLOPs. The
container half measures it (`training/costed.py`), the launcher half makes a quote of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

from ..files import typed
from ..recipe.schema import Train


def sizes(global_batch: int, world: int) -> list[int]:
    """The micro-batches that cut a global batch evenly for so many processes, the largest first."""
    return [
        size
        for size in range(global_batch // world, 0, -1)
        if global_batch % size == 0 and global_batch // size % world == 0
    ]


@dataclass(frozen=True)
class Trial:
    """One micro-batch of so many `samples`.

    `first` and `further` are the bytes that live at most while its gradients are made and applied,
    beside weights, optimizer and average: where it is a step's only one, and where its gradients
    add up with those of others. `flops` are those of forward and backward, what is computed again
    included; `calls` are the operations that torch is asked for.
    """

    samples: int
    first: int
    further: int
    flops: float
    calls: int

    def between(self, other: Trial, samples: int) -> Trial:
        """The micro-batch of so many samples on the line through two."""
        span = other.samples - self.samples
        share = (samples - self.samples) / span if span else 0.0

        def on_line(one: float, two: float) -> float:
            return one + (two - one) * share

        return Trial(
            samples,
            round(on_line(self.first, other.first)),
            round(on_line(self.further, other.further)),
            on_line(self.flops, other.flops),
            round(on_line(self.calls, other.calls)),
        )


@dataclass(frozen=True)
class Cost:
    """Bytes of a whole model in one process, what its micro-batches take, and how many samples
    there are.

    `weights` with buffers; `state` is what a checkpoint holds; `unit` is the largest part of a
    model that is spread over processes which each of them has whole for a moment. `trials` is one,
    of the recipe's micro-batch, or the two smallest where that is `auto`; `evaluation` is a batch
    of `val`, whose `first` lives beside weights, optimizer and average. `estimated`: the numbers
    of samples follow from the first rows of each split.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    state: int
    unit: int
    step_calls: int
    trials: tuple[Trial, ...]
    evaluation: Trial | None = None
    train_samples: int | None = None
    val_samples: int | None = None
    estimated: bool = False

    @property
    def held(self) -> int:
        """Bytes that a process holds all the time without sharding."""
        return self.weights + self.optimizer + self.average

    def trial(self, samples: int) -> Trial:
        """What a micro-batch of so many samples takes."""
        return self.trials[0].between(self.trials[-1], samples)

    def bytes_of(self, train: Train, samples: int, world: int) -> int:
        """The most bytes of tensors that live at once in one of `world` processes."""
        trial = self.trial(samples)
        own = max(1, train.global_batch // samples // world)
        taken = trial.further if own > 1 else trial.first
        if train.reduction == "exact":
            taken += int(log2(own) + 1) * self.gradients
        held, evaluated = self.held, self.evaluation.first if self.evaluation else 0
        if train.sharding == "fsdp" and world > 1:
            held = -(-held // world) + 2 * self.unit
            if train.accumulate == "sharded" or own == 1:
                taken += -(-self.gradients // world) - self.gradients
        return held + max(taken, evaluated)

    def to_json(self) -> dict[str, Any]:
        """As one process tells another."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cost:
        """Read what `to_json` wrote. Raises ValueError."""
        known = typed(cls, dict(value))
        try:
            trials = tuple(Trial(**typed(Trial, each)) for each in value["trials"])
            told = value.get("evaluation")
            evaluation = Trial(**typed(Trial, told)) if told else None
            return cls(**{**known, "trials": trials, "evaluation": evaluation})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no cost: {json.dumps(value)[:80]}") from error
