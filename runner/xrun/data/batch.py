"""A batch: what a dataset's `collate` makes of its samples. Tensors in any containers: mappings,
tuples, named tuples, lists, dataclasses, one in another.

Nothing here guesses how many samples a batch has: whoever asked for it knows.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = Any
"""Tensors, and whatever else, in containers."""


def leaves(batch: Batch) -> Iterator[Any]:
    """Everything in a batch that is no container, in order."""
    inside = _inside(batch)
    if inside is None:
        yield batch
        return
    for value in inside:
        yield from leaves(value)


def mapped(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """The same containers with each leaf changed; what has a method `to` is one, whatever is in
    it."""
    inside = None if hasattr(batch, "to") else _inside(batch)
    return change(batch) if inside is None else refilled(batch, [mapped(v, change) for v in inside])


def as_tensors(batch: Batch) -> Batch:
    """The batch with tensors where it has numpy arrays of numbers, as torch's `default_collate`
    makes them."""
    if type(batch) in (list, tuple) and {*map(type, batch)} == {Tensor}:
        return batch  # as most are, and this is asked for each
    has_arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves(batch))
    return mapped(batch, _as_tensor) if has_arrays else batch


def batch_bytes(batch: Batch) -> int:
    """Bytes of all tensors in a batch."""
    tensors = (leaf for leaf in leaves(batch) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; pinned memory is copied without waiting."""
    if device.type == "cpu":
        return batch
    from accelerate.utils import send_to_device

    # Accelerate knows every kind of leaf, and does not look into dataclasses.
    return mapped(batch, lambda leaf: send_to_device(leaf, device, non_blocking=True))


def described(batch: Batch) -> str:
    """A batch in words, for a sentence: `{x: float32 (4, 8), y: int64 (4,)}`."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return _listed("{}", (f"{name}: {described(value)}" for name, value in batch.items()))
    inside = _inside(batch)
    if inside is None:
        return "None" if batch is None else type(batch).__name__
    kind = "" if type(batch) in (list, tuple) else type(batch).__name__
    return kind + _listed("[]" if isinstance(batch, list) else "()", map(described, inside))


def _listed(brackets: str, parts: Iterable[str]) -> str:
    told = list(parts)
    shown = ", ".join([*told[:3], f"... {len(told)} in all"] if len(told) > 6 else told)
    return brackets[0] + shown + brackets[1]


def _inside(batch: Batch) -> Iterable[Any] | None:
    """What a container holds; None of what is none."""
    if isinstance(batch, Tensor | str):
        return None
    if isinstance(batch, Mapping):
        return batch.values()
    if isinstance(batch, list | tuple | UserList | deque):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return None


def refilled(batch: Batch, values: list[Any]) -> Batch:
    """The same container with other values; a dataclass with other fields."""
    if isinstance(batch, Mapping):
        new: Any = copy.copy(batch) if isinstance(batch, MutableMapping) else {}
        new.update(zip(list(batch), values, strict=True))
        return new
    if isinstance(batch, tuple):
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    new = copy.copy(batch)
    if isinstance(batch, list | UserList | deque):
        for place, value in enumerate(values):
            new[place] = value
        return new
    for field, value in zip(dataclasses.fields(batch), values, strict=True):
        object.__setattr__(new, field.name, value)  # it may be frozen
    return new


def _as_tensor(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        return torch.as_tensor(np.require(leaf, requirements=["C", "W"]))
    return leaf
