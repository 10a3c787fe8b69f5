"""Randomness is keyed, not carried: every generator is seeded from (seed, what it is for, where in
the run).

So dropout and augmentation are the same whoever computes a micro-batch, and nothing about them has
to be saved.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from .sampler import key

INIT, LOOP, DATA, EVALUATION = range(4)
"""What a seed is for: building the model, forward passes, fetching samples, evaluation."""


def seed_generators(*parts: int) -> None:
    """Seed torch (CPU and, where it is in use, the current CUDA device), numpy and random.

    The generators are seeded directly: `torch.manual_seed` walks over every backend and costs a
    hundred times as much.
    """
    seed = key(*parts)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
