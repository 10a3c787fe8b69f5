"""Whether gradients are finite, as one number that reaches the loop together with the loss.

A loss can be a number while its gradient is none (the root of zero, the norm of a zero vector, an
infinity behind `torch.where`), and one step on it turns weights into NaN for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .world import World


class FiniteGradients:
    """Looks at the gradients of these parameters, as far as this process has them; `on_sparse` is
    called once, when the first sparse one is there."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], on_sparse: Callable[[], None] = lambda: None
    ) -> None:
        self.parameters, self.on_sparse = parameters, on_sparse
        kinds = dict.fromkeys(p.dtype for p in parameters)
        self._by_kind = [[p for p in parameters if p.dtype == kind] for kind in kinds]
        self._odd = any(hasattr(p, "to_local") or p.is_complex() for p in parameters)
        self._unseen = list(parameters)
        self.verdict = torch.zeros((), device=parameters[0].device)
        """1 on the gradients' device once `found` has seen one that is not finite, else 0."""
        self._one = torch.ones_like(self.verdict)

    def found(self, losses: Sequence[Tensor] = ()) -> Tensor:
        """The verdict, with the gradients as they are now, and these losses; nothing waits for it.

        torch's check for a GradScaler, by a scale of 1, which leaves every bit as it is. For the
        four parameters of `python -m benchmarks 1` it takes 4 µs with its read, where the largest
        norm by `_foreach_norm` takes 15, and `get_total_norm` 37 (one thread).
        """
        if self._unseen:
            self._look()
        for parameters in self._by_kind:
            gradients = [grad for p in parameters if (grad := p.grad) is not None]
            if self._odd:
                gradients = [_plain(grad) for grad in gradients]
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.verdict, self._one)
        for loss in losses:
            torch._amp_foreach_non_finite_check_and_unscale_([loss], self.verdict, self._one)
        return self.verdict

    def agreed(self, losses: Sequence[Tensor], world: World, *, gates: bool = True) -> list[Tensor]:
        """The verdict over all processes, with the losses where it `gates` the step; returns what
        each has, its losses and its own verdict, in rows or, of one process, one by one. Nothing
        waits for it either."""
        found = self.found(losses if gates else ())
        if world.size == 1:
            return [*losses, found]
        rows = world.all_gather(torch.stack([*losses, found]))
        found.copy_(rows[:, -1].amax())
        return [rows]

    def _look(self) -> None:
        """Whether a parameter has sparse gradients its first one tells."""
        sparse = any(p.grad is not None and p.grad.is_sparse for p in self._unseen)
        self._unseen = [p for p in self._unseen if p.grad is None]
        if sparse:
            self._odd = True
            self.on_sparse()

    def flags(self) -> list[float]:
        """1 for each parameter whose gradient is not finite here, else 0."""
        return [
            float(p.grad is not None and not bool(torch.isfinite(_plain(p.grad)).all()))
            for p in self.parameters
        ]


def read(tensors: Sequence[Tensor]) -> list[float]:
    """Their numbers on the host, in one transfer."""
    if not tensors[0].is_cpu:
        tensors = [torch.cat([tensor.reshape(-1) for tensor in tensors])]
    numbers: list[float] = []
    for tensor in tensors:
        if tensor.dim():
            numbers += tensor.flatten().tolist()
        else:
            numbers.append(tensor.item())
    return numbers


def named(names: Iterable[str]) -> str:
    """The first of some parameters, and how many there are more."""
    first, *more = names
    return f"{first} and of {len(more)} more" if more else first


def _plain(gradient: Tensor) -> Tensor:
    """The real numbers of this process's part of a gradient."""
    if hasattr(gradient, "to_local"):  # a DTensor, where the model is sharded
        gradient = gradient.to_local()
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
