"""Which of a model's modules train and which evaluate: what `build` has chosen is kept.

A module that `build` puts into evaluation mode (a frozen BatchNorm, a feature extractor without
dropout) stays there while the run trains, as in a loop that leaves modes alone. transformers'
`from_pretrained` returns every model in evaluation mode, and its documentation asks for `train()`
before training; so such a model trains, unless nothing in it can be trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Modes:
    """Modules and whether each is in training mode, parents first."""

    each: tuple[tuple[nn.Module, bool], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Modes:
        """Those of a model as it is now."""
        return cls(tuple((module, module.training) for module in model.modules()))

    def restore(self) -> None:
        """Every module is in its mode again; its own `train()` is called where it was not."""
        for module, training in self.each:
            if module.training != training:
                module.train(training)
        for module, training in self.each:  # one that has two parents
            if module.training != training:
                module.training = training


def begin_training(model: nn.Module) -> None:
    """Put a model that was just built into training mode, but not what `build` has put into
    evaluation mode. Every module's `train()` is called once, whatever it returns."""
    loaded = [module for module in model.modules() if _is_as_loaded(module)]
    as_loaded = {inside for module in loaded for inside in module.modules()}
    chosen = {module for module, on in Modes.of(model).each if not on and module not in as_loaded}
    model.train()
    modes = Modes.of(model).each
    Modes(tuple((module, on and module not in chosen) for module, on in modes)).restore()


def evaluating(model: nn.Module) -> list[str]:
    """The topmost modules in evaluation mode as people know them, `backbone (ResNet)`."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(not top or f"{name}.".startswith(f"{top}.") for top in found)
        if not module.training and not inside:
            found.append(name)
    return [f"{name or 'the model'} ({type(model.get_submodule(name)).__name__})" for name in found]


def _is_as_loaded(module: nn.Module) -> bool:
    """Whether it is a transformers model in the mode that `from_pretrained` leaves it in."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__}
    if module.training or ("transformers", "PreTrainedModel") not in kinds:
        return False
    return any(p.requires_grad for p in module.parameters())
