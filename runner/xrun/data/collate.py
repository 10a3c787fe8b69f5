"""Samples -> a batch, where a split has no `collate` of its own: torch's `default_collate`, and for
what that refuses the values in a list, one for each sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from .batch import Batch, refilled

_KNOWN = tuple(default_collate_fn_map)
"""Tensors, arrays, numbers and texts."""


class _Kept(NamedTuple):
    """A value of a sample that is not looked into."""

    value: Any


def collated(items: Sequence[Any]) -> Batch:
    """The samples' batch. None, dates, pictures and other objects come as lists of what the samples
    have, dataclasses field by field; the first sample says what is what."""
    kinds = set(_refused(items[0])) if len(items) else set()
    if not kinds:
        return default_collate(list(items))
    ways = default_collate_fn_map | dict.fromkeys(kinds, _listed)
    return collate(list(items), collate_fn_map=ways)


def collated_rows(rows: Sequence[Any]) -> Batch:
    """A batch of rows as Hugging Face gives them without a format: lists of numbers are tensors,
    and lists of texts stay lists. torch's own collate would turn them inside out."""
    return collated([_row(row) for row in rows])


def is_hugging_face(split: Any) -> bool:
    """Whether it is one of the library `datasets`, which need not be imported for that."""
    return any(kind.__module__.partition(".")[0] == "datasets" for kind in type(split).__mro__)


def _refused(item: Any) -> Iterator[type]:
    """The types in a sample that `default_collate` does not know."""
    if isinstance(item, _Kept):
        yield _Kept
    elif isinstance(item, _KNOWN):
        return
    elif isinstance(item, Mapping | Sequence):
        for value in item.values() if isinstance(item, Mapping) else item:
            yield from _refused(value)
    else:
        yield type(item)
        for value in _fields(item) or ():
            yield from _refused(value)


def _fields(item: Any) -> list[Any] | None:
    """The values of a dataclass; None of what is none."""
    if not dataclasses.is_dataclass(item) or isinstance(item, type):
        return None
    return [getattr(item, field.name) for field in dataclasses.fields(item)]


def _listed(items: Sequence[Any], *, collate_fn_map: Any) -> Any:
    """The batch of such objects."""
    if isinstance(items[0], _Kept):
        return [item.value for item in items]
    if _fields(items[0]) is None:
        return list(items)
    columns = map(list, zip(*map(_fields, items), strict=True))
    return refilled(items[0], [collate(c, collate_fn_map=collate_fn_map) for c in columns])


def _row(row: Any) -> Any:
    """The row with a tensor for each list of numbers."""
    if isinstance(row, Mapping):
        return {name: _row(value) for name, value in row.items()}
    if not isinstance(row, list):
        return row
    try:
        return torch.tensor(row)
    except (TypeError, ValueError):  # texts, dicts, or lists of different lengths
        return [_row(each) for each in row] if _has_dicts(row) else _Kept(row)


def _has_dicts(row: list[Any]) -> bool:
    return any(isinstance(each, Mapping) for each in row)
