"""`Average`: the exponential moving average of a model's weights, and of its buffers.

Numbers are averaged as torch's own `get_ema_multi_avg_fn` does it, real and complex ones. What is
no measure is taken over as it is: whole numbers (`num_batches_tracked`, indices, counters), truth
values, a buffer that has another shape or type now or that was not there before. A buffer that
nobody writes to is its own average, one with infinities (a causal mask) too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from .twin import twin

Pair = tuple[Tensor, Tensor]
"""A tensor of the average, and the model's."""


class Average(nn.Module):
    """`module` is the averaged model. Its tensors have the names in a checkpoint that torch's
    AveragedModel would give them. `shared` are weights that do not change, which it has of the
    model. A sharded model's is the `copy` that `average_of` has made before and that is sharded as
    the model is: torch copies no sharded one, and it takes over what is `shared` in each step."""

    n_averaged: Tensor

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        shared: Collection[Tensor] = (),
        copy: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.module = average_of(model, shared) if copy is None else copy
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.int64))
        own = _by_name(self.module)
        self._modules_of = [(own[name], module) for name, module in _by_name(model).items()]
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        each = [(own, new) for own, new in pairs if own is not new]
        same = {id(tensor) for tensor in shared}
        self._parameters_of = [
            (_own_part(own), _own_part(new)) for own, new in each if id(new) not in same
        ]
        self._taken = [(_own_part(own), _own_part(new)) for own, new in each if id(new) in same]
        self._still: dict[int, tuple[Tensor, int]] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the model: the average moves towards it; after the first one ever it
        begins there."""
        begun = bool(self.n_averaged)
        if begun and self._still is None:
            buffers = self._buffers_of()
            self._still = {id(new): (new, new._version) for own, new in buffers if own.equal(new)}
        for own, new in self._taken:
            own.copy_(new)
        pairs = [*self._parameters_of, *self._written()]
        for own, new in pairs:
            if not begun or not _is_measure(new):
                own.copy_(new)
        if begun:
            self._move([pair for pair in pairs if _is_measure(pair[1])])
        self.n_averaged += 1

    def _move(self, pairs: list[Pair]) -> None:
        """By the decay, as torch's own average does it."""
        for kind in {new.dtype for _, new in pairs}:
            own, new = zip(*(pair for pair in pairs if pair[1].dtype == kind), strict=True)
            torch._foreach_lerp_(own, new, 1 - self.decay)

    def _written(self) -> list[Pair]:
        """The buffers that somebody has written to, once where modules share them."""
        found = {id(own): (own, new) for own, new in self._buffers_of()}
        return [pair for pair in found.values() if not self._is_still(pair[1])]

    def _is_still(self, buffer: Tensor) -> bool:
        """Whether it is what the average has, since the attempt's first step."""
        same, version = (self._still or {}).get(id(buffer), (None, -1))
        return same is buffer and version == buffer._version

    def _buffers_of(self) -> Iterator[Pair]:
        """All buffers; those of the average are made anew where they are not like the model's.

        Without `named_buffers`, which takes ten times as long, in each step.
        """
        for own, model in self._modules_of:
            for name, new in model._buffers.items():
                old = own._buffers.get(name)
                if new is not None and (old is None or not _are_alike(old, new)):
                    lasting = name not in model._non_persistent_buffers_set
                    own.register_buffer(name, new.detach().clone(), persistent=lasting)
                elif new is not None and old is not None:
                    yield old, new
                elif old is not None:
                    own._buffers[name] = None


def average_of(model: nn.Module, shared: Collection[Tensor] = ()) -> nn.Module:
    """A copy of the model, which is to become its average; with all of its weights `shared` until
    each of the two is sharded.

    Raises:
        ComponentError: something in the model cannot be copied.
    """
    return twin(
        model,
        "train.ema averages a copy of the model",
        "Leave train.ema out, or keep in the model only what copy.deepcopy can copy.",
        shared,
    )


def _own_part(p: Tensor) -> Tensor:
    """A parameter, or this process's part of a sharded one, in the memory that torch gathers it
    from."""
    return p.detach().to_local() if hasattr(p, "to_local") else p  # type: ignore[attr-defined]  # a DTensor's method


def _is_measure(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Its modules, without what torch wraps around blocks to compute them again: a copy of a
    wrapped module that brings its own way to be copied, as parametrized ones do, has no wrapper."""
    return {
        ".".join(part for part in name.split(".") if part != "_checkpoint_wrapped_module"): module
        for name, module in model.named_modules()
    }
