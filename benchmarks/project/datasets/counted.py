"""Samples that are their own number: as many as wanted, held or streamed in shards that resume in
O(1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Held:
    """`samples` numbers."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), 0


class Shard:
    """`size` consecutive numbers from `first` on."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size, self.position = first, size, 0

    def __iter__(self) -> Iterator[int]:
        while self.position < self.size:
            self.position += 1
            yield self.first + self.position - 1

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Streamed:
    """The same numbers in `num_shards` shards of equal size."""

    def __init__(self, samples: int, num_shards: int = 8) -> None:
        self.num_shards, self.size = num_shards, samples // num_shards

    def shard(self, number: int) -> Shard:
        return Shard(number * self.size, self.size)

    def transform(self, number: int) -> tuple[Tensor, int]:
        return torch.tensor([float(number)]), 0


def build(samples: int, streamed: bool = False) -> dict[str, Any]:
    """Only `train`."""
    return {"train": Streamed(samples) if streamed else Held(samples)}
