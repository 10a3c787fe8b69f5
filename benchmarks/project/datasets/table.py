"""Random inputs and labels out of one table in memory: what a loop costs besides them is the
loop's."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096


class Table:
    """`samples` pairs of a float32 `shape` and a label."""

    def __init__(self, samples: int, shape: list[int], classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = samples
        self.rows = min(ROWS, samples)
        self.x = torch.randn(self.rows, *shape, generator=generator)
        self.y = torch.randint(classes, (self.rows,), generator=generator)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index % self.rows], self.y[index % self.rows]


def build(samples: int, shape: list[int], classes: int = 10) -> dict[str, Table]:
    """Only `train`."""
    return {"train": Table(samples, shape, classes)}
