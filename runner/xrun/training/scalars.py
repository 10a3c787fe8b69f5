"""`Scalars`: what a model with a loss of its own returns beside it while it trains, for the step's
point. Read with the loss, so that the device is waited for once; the steps that are not logged
leave it out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .world import World

_Column = list[tuple[int, float]]
"""Of each micro-batch, or part of one: its samples, and the sum over them."""


class Scalars:
    """A step's further sums by name. A model may return some of them only now and then, or only on
    some processes: each is the mean over the samples of those micro-batches that have it."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._of: list[tuple[str, int]] = []

    def add(self, samples: int, sums: Mapping[str, Tensor]) -> None:
        """Those of so many samples, as the objective gives them; in fp32 at least."""
        loss = sums["loss"]
        kind = torch.promote_types(loss.dtype, torch.float32)
        for name, value in sums.items():
            if name != "loss":
                self._sums.append(value.detach().to(loss.device, kind))
                self._of.append((name, samples))

    def take(self) -> list[Tensor]:
        """What is to be read; `means` takes the numbers in the same order."""
        taken, self._sums = self._sums, []
        return taken

    def means(self, values: Sequence[float], world: World) -> dict[str, float]:
        """The means over the global batch by name, on the first process, the same bits on any
        number of processes; all of them call it, once one has any."""
        own: dict[str, _Column] = {}
        for (name, samples), value in zip(self._of, values, strict=True):
            own.setdefault(name, []).append((samples, value))
        self._of = []
        columns: dict[str, _Column] = {}
        for each in world.gathered(own) or ():
            for name, column in each.items():
                columns.setdefault(name, []).extend(column)
        return {name: _mean(column) for name, column in sorted(columns.items())}


def _mean(column: _Column) -> float:
    values = [value for _, value in column]
    finite = all(map(math.isfinite, values))  # fsum raises on an infinite one
    return (math.fsum(values) if finite else sum(values)) / sum(samples for samples, _ in column)
