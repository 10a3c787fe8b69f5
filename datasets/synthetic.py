"""Samples that are computed from their index: as many as wanted, no memory, no download. For tests and for measuring speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrun.errors import ComponentError


def generator(seed: int, index: int) -> np.random.Generator:
    """Independent random numbers for each (seed, index), by Philox's key (Salmon et al. 2011): no state to step through."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


class Samples:
    """`length` samples from index `first` on."""

    def __init__(self, first: int, length: int, seed: int, shape: list[int], classes: int, noise: float) -> None:
        self.first, self.length, self.noise = first, length, noise
        self.seed, self.shape, self.classes = seed, shape, classes
        self.revision = f"synthetic {seed}"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.sample(self.first + index)

    def sample(self, index: int) -> Any:
        raise NotImplementedError


class Classification(Samples):
    """Pairs of float32 `shape` and a label: each class has a random centre, samples lie around it with deviation 1."""

    def sample(self, index: int) -> tuple[Tensor, int]:
        random = generator(self.seed, index)
        label = int(random.integers(self.classes))
        # Centres come from the end of the index range, where no sample can be, and need not be kept.
        centre = generator(self.seed, 2**64 - 1 - label).standard_normal(self.shape, dtype=np.float32)
        x = torch.from_numpy(centre + random.standard_normal(self.shape, dtype=np.float32))
        return (x + self.noise * torch.randn_like(x) if self.noise else x), label


class Tokens(Samples):
    """Dicts of `input_ids` and `labels`, int64 (shape): a start and a stride modulo `classes`, so two tokens tell the third.

    `noise` is the probability that a token of the input is replaced by a random one; the labels stay.
    """

    def sample(self, index: int) -> dict[str, Tensor]:
        start, stride = generator(self.seed, index).integers(self.classes, size=2).tolist()
        labels = (start + stride * torch.arange(self.shape[0])) % self.classes
        inputs = labels.clone()
        if self.noise:
            replaced = torch.rand(self.shape) < self.noise
            inputs = torch.where(replaced, torch.randint(self.classes, self.shape), labels)
        return {"input_ids": inputs, "labels": labels}


KINDS = {"classification": Classification, "tokens": Tokens}


def build(
    samples: int = 1000,
    val_samples: int = 200,
    shape: list[int] | int = 16,
    classes: int = 10,
    kind: str = "classification",
    seed: int = 0,
    noise: float = 0.0,
) -> dict[str, Samples]:
    """`train` and `val` (the indices after those of `train`), each sample a function of (seed, index) in O(1).

    `kind` is `classification` (pairs of `shape` and label) or `tokens` (`shape` is the context, `classes` the vocabulary).
    `noise` augments `train` from torch's generator, new each time a sample is asked for.
    """
    if kind not in KINDS:
        raise ComponentError(f"datasets/synthetic: kind is `classification` or `tokens` (got {kind!r}).")
    size = shape if isinstance(shape, list) else [shape]
    train = KINDS[kind](0, samples, seed, size, classes, noise)
    return {"train": train, "val": KINDS[kind](samples, val_samples, seed, size, classes, 0.0)}
