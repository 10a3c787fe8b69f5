"""A batch: what a dataset's `collate` makes of its samples, a dict of tensors or a pair (inputs,
labels)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Any
"""A dict of tensors, or a pair (inputs, labels)."""


def batch_size(batch: Batch) -> int:
    """Samples in a batch: the first dimension of its first tensor."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    return int(next(len(value) for value in values if isinstance(value, Tensor) and value.dim()))


def batch_bytes(batch: Batch) -> int:
    """Bytes of all tensors in a batch."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, dict):
        return sum(batch_bytes(value) for value in batch.values())
    return sum(batch_bytes(value) for value in batch) if isinstance(batch, list | tuple) else 0


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; pinned memory is copied without waiting."""
    if device.type == "cpu":
        return batch
    from accelerate.utils import send_to_device

    return send_to_device(batch, device, non_blocking=True)
