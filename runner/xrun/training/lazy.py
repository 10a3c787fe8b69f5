"""Modules that get their shapes from the first batch (`nn.LazyLinear`): they get them before
anything else asks for their weights, in every attempt from the same samples and the same seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..data.batch import Batch
from ..data.randomness import INIT, seed_generators
from ..errors import ComponentError
from .modes import Modes
from .objective import Objective

Buffers = dict[str, tuple[Tensor | None, Tensor | None] | None]
LAZY_SAMPLES = 2
"""So many samples show the shapes; of one alone a BatchNorm makes nothing."""


def lazy_modules(model: nn.Module) -> list[str]:
    """Modules with weights that have no shape yet, as people know them, `head (LazyLinear)`."""
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(map(is_lazy, [*module.parameters(False), *module.buffers(False)]))
    ]


@torch.no_grad()
def give_shapes(objective: Objective, batch: Batch, samples: int, seed: int) -> None:
    """One forward pass of a few samples, which changes nothing else in the model.

    Raises:
        ComponentError: a module has no shape after it.
    """
    before = [(module, _values(module)) for module in objective.modules()]
    modes = Modes.of(objective)
    seed_generators(seed, INIT, 2)
    objective(batch, samples)
    modes.restore()
    for module, buffers in before:
        _restore(module, buffers)
    if left := lazy_modules(objective.model):
        raise ComponentError(
            f"{objective.components.model}: {left[0]} has no shape after a forward pass of the"
            " first samples.",
            "Build it with its size, as nn.Linear(in, out).",
        )


def _values(module: nn.Module) -> Buffers:
    """Its own buffers with copies of their values; None is one whose shape is not known yet."""
    return {
        name: (None, None)
        if buffer is None
        else (None if is_lazy(buffer) else (buffer, buffer.clone()))
        for name, buffer in module._buffers.items()
    }


def _restore(module: nn.Module, before: Buffers) -> None:
    for name in [*module._buffers]:
        if name not in before:
            del module._buffers[name]
        elif (known := before[name]) is not None:
            buffer, values = known
            module._buffers[name] = buffer
            if buffer is not None and values is not None:
                buffer.data = values
