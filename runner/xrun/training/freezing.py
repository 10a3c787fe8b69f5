"""What a recipe freezes: the base under its adapter, or the modules that it names, in the precision
in which they are held."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..checkpoint.frozen import digest_of, lines_of
from ..errors import ComponentError, TrainError, did_you_mean
from ..recipe.schema import ModelRef, Recipe
from .mapped import placed
from .quantized import names_in, quantize, weights_apart
from .world import World

_KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32}
_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""What tells transformers to read a weight when it is its turn."""


@dataclass(frozen=True)
class Sourced:
    """The frozen weights of a model that come from their source again in every attempt, and what
    `lines_of` says of them by their names in its state_dict."""

    lines: Mapping[str, str]
    parameters: Sequence[Tensor]


def sourced_of(model: nn.Module, ref: ModelRef, world: World) -> Sourced | None:
    """Those of a model whose adapter and frozen modules are in place; None where the recipe freezes
    nothing.

    Raises:
        TrainError: the processes have built different ones.
    """
    if not ref.freezes:
        return None
    frozen = {id(p): p for p in _frozen(model, ref) if not p.requires_grad}
    packed = names_in(model) if ref.quantized else set()
    named = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in frozen or name in packed
    }
    lines = lines_of(named)
    digest = digest_of(lines)
    if world.all_reduce_sum([float(digest != world.broadcast(digest))])[0]:
        raise TrainError(
            f"models/{ref.name}.py: the processes have built different frozen weights.",
            "Each machine must find the same weights: name a commit as revision, or one folder.",
        )
    return Sourced(lines, (*frozen.values(), *named.values(), *weights_apart(model)))


def _frozen(model: nn.Module, ref: ModelRef) -> list[nn.Parameter]:
    if ref.adapter is not None:
        return list(model.parameters())
    modules = (model.get_submodule(name) for name in ref.frozen_modules)
    return [p for module in modules for p in module.parameters()]


def freeze(model: nn.Module, ref: ModelRef) -> None:
    """Freeze the modules that the recipe names.

    Raises:
        ComponentError: the model has no such module, or nothing is left to train.
    """
    known = dict(model.named_modules())
    for name in ref.frozen_modules:
        if name not in known:
            raise ComponentError(
                f"model.frozen_modules: models/{ref.name}.py has no module {name!r}.",
                did_you_mean(name, [each for each in known if each])
                or f"It has {', '.join(name for name, _ in model.named_children())}.",
            )
        known[name].requires_grad_(False)
        hold(known[name], ref.held, model)
    if ref.frozen_modules and not any(p.requires_grad for p in model.parameters()):
        raise ComponentError(
            "model.frozen_modules: every weight of the model is frozen.",
            "Leave out the modules that are to be trained.",
        )


def hold_base(base: nn.Module, ref: ModelRef) -> None:
    """Hold the whole of a model, which is to be frozen under an adapter, as the recipe says.

    Raises:
        ComponentError: it has nothing that could be held so.
        LaunchError: a library is not installed.
    """
    hold(base, ref.held)
    if ref.quantized:
        adapter = ref.adapter.args if ref.adapter else {}
        trained = adapter.get("modules_to_save") or ()
        quantize(base, ref.quantized, trained, f"models/{ref.name}.py")


def held_in_bf16(recipe: Recipe) -> Recipe:
    """The recipe with its base held so."""
    ref = recipe.model.model_copy(update={"frozen": "bf16"})
    return recipe.model_copy(update={"model": ref})


def hold(module: nn.Module, precision: str | None, whole: nn.Module | None = None) -> None:
    """Put a module's real parameters, or those of a part of `whole`, into this precision, one after
    the other. What normalizes stays in float32, which computes on inputs of any kind: batch norms
    always, since their statistics are float32, and others outside of transformers' models, which
    are made for one type."""
    if precision is None:
        return
    theirs = {
        inside
        for each in (whole or module).modules()
        if _is_of_transformers(each)
        for inside in each.modules()
    }
    for each in module.modules():
        norm = "norm" in type(each).__name__.lower() and each not in theirs
        statistics = each._buffers.get("running_mean") is not None
        kind = torch.float32 if norm or statistics else _KINDS[precision]
        for p in each.parameters(recurse=False):
            if p.is_floating_point():
                p.data = placed(p.data.to(kind))


@contextlib.contextmanager
def held_as_read(ref: ModelRef) -> Iterator[None]:
    """While transformers reads a base from the Hub that is to be held in bf16 as a whole: put each
    weight into it as it comes, so that the base is never there in float32, which takes twice the
    memory. The bits are those that `hold` makes afterwards of a base in float32.

    Norms are left to `hold`, and so is what no file has: it is drawn in float32.
    """
    if ref.name != "hub" or ref.adapter is None or ref.held != "bf16":
        yield
        return

    def cast(module: nn.Module, _: str, p: nn.Parameter | None) -> None:
        norm = "norm" in type(module).__name__.lower() or "running_mean" in module._buffers
        read = p is not None and getattr(p, "_is_hf_initialized", False)  # transformers' mark on it
        if p is not None and read and not norm and p.is_floating_point():
            p.data = p.data.to(_KINDS["bf16"])

    hook = register_module_parameter_registration_hook(cast)
    # Else its threads have read all of it before the first weight comes here.
    before = os.environ.get(_ONE_BY_ONE)
    os.environ[_ONE_BY_ONE] = "1"
    try:
        yield
    finally:
        hook.remove()
        os.environ.pop(_ONE_BY_ONE)
        if before is not None:
            os.environ[_ONE_BY_ONE] = before


def _is_of_transformers(module: nn.Module) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__}
    return ("transformers", "PreTrainedModel") in kinds
