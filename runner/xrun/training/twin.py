"""A copy of a model that shares nothing with it that changes: to be averaged, tried, asked."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ComponentError

_DEEP = 4
"""Containers in one another in which a module may keep tensors; one may hold itself."""


def twin(model: nn.Module, why: str, hint: str, shared: Collection[Tensor] = ()) -> nn.Module:
    """The copy; `why` it is needed and the way out, for a model that cannot be copied. `shared`
    are tensors that nobody writes to, of which one is enough.

    torch copies no tensor that was computed, and some modules keep one: `weight_norm` its weight,
    others their last output. Such a tensor becomes a plain one in the copy.

    Raises:
        ComponentError: something in the model cannot be copied.
    """
    computed = [
        tensor
        for module in model.modules()
        for value in vars(module).values()
        for tensor in _tensors(value)
        if not tensor.is_leaf
    ]
    known: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in computed}
    known |= {id(tensor): tensor for tensor in shared}
    try:
        with torch.no_grad():  # or a scripted module's copy would have weights that were computed
            copied = copy.deepcopy(model, known)
    except Exception as error:  # a module may hold anything
        name = _culprit(model)
        raise ComponentError(f"{why}, and {name} cannot be copied: {error}.", hint) from error
    for own, p in zip(copied.parameters(), model.parameters(), strict=True):
        own.requires_grad_(p.requires_grad)
    return copied


def _tensors(value: Any, deep: int = _DEEP) -> Iterator[Tensor]:
    """Those in an attribute and in containers in it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping) and deep:
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each, deep - 1)


def _culprit(model: nn.Module) -> str:
    """The first module with something of its own that cannot be copied."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules":
                try:
                    copy.deepcopy(value)
                except Exception:
                    return f"{name}.{attribute}".lstrip(".")
    return f"the model ({type(model).__name__})"
