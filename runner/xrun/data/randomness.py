"""Randomness is keyed, not carried: every generator is seeded from (seed, what it is for, where in
the run).

So dropout and augmentation are the same whoever computes a micro-batch, and nothing about them has
to be saved.
"""

from __future__ import annotations

import functools
import random

import numpy as np
import torch

from .sampler import key

INIT, LOOP, DATA, EVALUATION = range(4)
"""What a seed is for: building the model, forward passes, fetching samples, evaluation."""


_random = random.seed.__self__  # type: ignore[attr-defined]  # the instance whose methods the module's functions are
_seed_random = super(random.Random, _random).seed
_of_run = functools.lru_cache(maxsize=64)(key)
"""The key of a run's seed and a purpose, to which each place in the run is added."""


def seed_generators(seed: int, purpose: int, *place: int) -> None:
    """Seed torch (CPU and, where it is in use, the current CUDA device), numpy and random.

    The generators are seeded directly: `torch.manual_seed` walks over every backend and costs a
    hundred times as much, and `random.seed` looks first which kind of seed it has been given.
    """
    seed = key(*place, mixed=_of_run(seed, purpose))
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    _seed_random(seed)
    _random.gauss_next = None  # the second half of a pair of normal numbers, as `random.seed` does
