"""Modules that get their shapes from the first batch (`nn.LazyLinear`): they get them before
anything else asks for their weights, in every attempt from the same samples and the same seed."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..data.batch import Batch
from ..data.randomness import INIT, seed_generators
from ..errors import ComponentError
from .modes import Modes
from .objective import Objective

Kept = tuple[Tensor | None, Tensor | None, Tensor | None]
"""A parameter or buffer, the memory in which its numbers are, and a copy of them."""
Values = dict[str, Kept | None]
"""Those of one module; None is one whose shape is not known yet."""
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
    before = {module: _values(module) for module in objective.modules()}
    extra = [
        (module, copy.deepcopy(module.get_extra_state()))
        for module in before
        if type(module).get_extra_state is not nn.Module.get_extra_state
    ]
    modes = Modes.of(objective)
    hooks = [
        module.register_forward_pre_hook(functools.partial(_begin, values))
        for module, values in before.items()
        if None in values.values()
    ]
    seed_generators(seed, INIT, 2)
    objective(batch, samples)
    for hook in hooks:
        hook.remove()
    modes.restore()
    for module, values in before.items():
        _restore(module, values)
    for module, state in extra:
        module.set_extra_state(state)
    if left := lazy_modules(objective.model):
        raise ComponentError(
            f"{objective.components.model}: {left[0]} has no shape after a forward pass of the"
            " first samples.",
            "Build it with its size, as nn.Linear(in, out).",
        )


def _values(module: nn.Module) -> Values:
    tensors = {**module._parameters, **module._buffers}
    return {
        name: _kept(tensor) if tensor is None or not is_lazy(tensor) else None
        for name, tensor in tensors.items()
    }


def _kept(tensor: Tensor | None) -> Kept:
    return (None, None, None) if tensor is None else (tensor, tensor.data, tensor.data.clone())


def _begin(values: Values, module: nn.Module, _: object) -> None:
    """Before its first call, and after torch has given it its shape: these are its first values."""
    if None in values.values():
        values |= _values(module)


def _restore(module: nn.Module, before: Values) -> None:
    for own in (module._parameters, module._buffers):
        for name in [*own]:
            if name not in before:
                del own[name]
            elif (known := before[name]) is not None:
                own[name] = _restored(*known)  # type: ignore[assignment]  # a parameter's is one


def _restored(tensor: Tensor | None, memory: Tensor | None, values: Tensor | None) -> Tensor | None:
    """The same tensor with the values that it had, in the memory that it had and may share."""
    if tensor is None or memory is None or values is None:
        return None
    if not memory.equal(values):
        memory.copy_(values)
    tensor.data = memory
    return tensor
