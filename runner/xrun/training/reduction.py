"""How the gradients of all micro-batches on all processes become one.

`fast`: DistributedDataParallel (or FSDP) sums over processes while backward runs. Its buckets are
laid out by the order in which gradients arrive in the first backward pass and rebuilt once after
it, so an undisturbed run and a resumed one would sum in different orders; one backward pass over
zeros, before the first step of every attempt, makes the layout final.

`exact`: one fixed binary tree over the micro-batches of the global batch, so that the number of
processes changes nothing.

A parameter that no micro-batch of a step uses on any process has no gradient, as in a plain loop:
the optimizer leaves it alone. One that some process uses has a gradient on all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.loader import Piece
from ..data.sampler import MicroBatch
from ..errors import TrainError
from .objective import zero_of
from .running_statistics import RunningStatistics
from .world import World


class Reduction(Protocol):
    """`model` is what computes a micro-batch; `scale` is what its loss is multiplied with before
    backward; `unused` are the parameters that this process's micro-batches of a step have not
    used."""

    model: nn.Module
    scale: float
    unused: list[nn.Parameter]

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step of an attempt."""

    def micro_batch(self, piece: MicroBatch) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch."""

    def part(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around those of one part of it, where it is computed in several; `last` of the
        micro-batch."""

    def finish(self, pieces: list[Piece]) -> None:
        """After the last one: the gradients are whole afterwards."""

    def loss(self, rows: Sequence[Sequence[float]]) -> float:
        """The step's loss sum, from the losses of each process's micro-batches."""

    def drop_unused(self) -> None:
        """What no process has used gets no gradient; all of them call it, once one has anything
        `unused`."""


class FastReduction:
    """What the library does: exact to the last bit for one and the same number of processes.

    `whole`: the gradients of a sharded model's micro-batches add up in whole ones on each process,
    which are summed over the processes after the last.
    """

    def __init__(self, model: nn.Module, world: World, whole: bool = False) -> None:
        self.model, self.world, self._whole = model, world, whole
        self.scale = float(world.size)  # DDP and FSDP give the mean over processes
        self.unused: list[nn.Parameter] = []
        self._replicated = isinstance(model, nn.parallel.DistributedDataParallel)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """See Reduction."""
        if self._replicated:
            self.model(None)["loss"].backward()
            optimizer.zero_grad(set_to_none=True)

    def micro_batch(self, piece: MicroBatch) -> contextlib.AbstractContextManager[Any]:
        """See Reduction."""
        if self._replicated and not piece.weight:
            return self._filler(piece.last)
        return self.part(piece.last)

    @contextlib.contextmanager
    def _filler(self, last: bool) -> Iterator[None]:
        """Around a micro-batch that does not count: what it alone reaches is not used."""
        self.unused += [p for p in self._parameters if p.grad is None]
        with self.part(last):
            yield

    def part(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See Reduction."""
        if not self._replicated:
            if self._whole:
                self.model.set_requires_gradient_sync(last)  # type: ignore[operator]  # a sharded module's method
            return contextlib.nullcontext()
        return self._summed() if last else self.model.no_sync()  # type: ignore[operator]  # a DDP's method

    @contextlib.contextmanager
    def _summed(self) -> Iterator[None]:
        """Around the backward pass in which DDP sums over the processes, once it has seen every
        parameter's gradient.

        Of those that this pass does not reach it is shown a zero: the others wait for it, and may
        have reached them. DDP's own `find_unused_parameters` would search the graph of every step,
        and never settle its buckets.
        """
        before = [p.grad for p in self._parameters]
        yield
        if not self.model.require_backward_grad_sync:  # inside of a `no_sync`
            return
        missing = [
            (p, old) for p, old in zip(self._parameters, before, strict=True) if p.grad is old
        ]
        self.unused += [p for p, old in missing if old is None]
        if missing:
            zero_of(p for p, _ in missing).backward()

    def finish(self, pieces: list[Piece]) -> None:
        """See Reduction."""

    def loss(self, rows: Sequence[Sequence[float]]) -> float:
        """See Reduction."""
        return sum(sum(row, 0.0) for row in rows)

    def drop_unused(self) -> None:
        """See Reduction."""
        _drop(self.unused, self._parameters, self.world)
        self.unused = []


class ExactReduction:
    """Sums gradients and losses in one fixed binary tree over the M micro-batches of the global
    batch, M a power of two.

    A process owns one subtree, sums it leaf by leaf (at most log2(M / P) + 1 gradients are alive)
    and then meets its partners level by level; addition commutes to the last bit, so both get the
    same sum. In a short batch missing leaves count as zeros.
    """

    scale = 1.0

    def __init__(self, model: nn.Module, world: World, global_batch: int, slots: int) -> None:
        check_powers_of_two(world.size, slots)
        self.model, self.world, self.global_batch, self.slots = model, world, global_batch, slots
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.unused: list[nn.Parameter] = []
        self._used: set[int] = set()
        self._subtrees: dict[int, list[Tensor]] = {}
        self._statistics = RunningStatistics(model, world, slots)

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """See Reduction."""

    @contextlib.contextmanager
    def micro_batch(self, piece: MicroBatch) -> Iterator[None]:
        """See Reduction; the micro-batch's own gradient is taken away from the parameters."""
        replayed = self._statistics.buffers
        before = {
            name: (buffer, buffer._version)  # autograd's own counter has no public name
            for name, buffer in self.model.named_buffers()
            if id(buffer) not in replayed
        }
        with self._statistics.micro_batch(piece):
            yield
        now = dict(self.model.named_buffers())
        if changed := [
            name
            for name, (old, version) in before.items()
            if now[name] is not old or old._version != version
        ]:
            raise TrainError(
                f"train.reduction: exact: the model's buffer {changed[0].removeprefix('model.')}"
                " changes in the forward pass, so the result would depend on the number of"
                " processes.",
                "Use BatchNorm, whose statistics are replayed in order, a normalisation without"
                " any, or train.reduction: fast.",
            )
        gradient = [_dense(p) for p in self._parameters]
        if piece.weight:
            self._used |= {id(p) for p in self._parameters if p.grad is not None}
            self._add(piece.slot, gradient)
        for p in self._parameters:
            p.grad = None

    def part(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See Reduction; the parts' gradients add up in the parameters."""
        return contextlib.nullcontext()

    def finish(self, pieces: list[Piece]) -> None:
        """See Reduction; every process has the whole sum afterwards."""
        self._statistics.finish()
        gradient = self._own_subtree()
        level = 1
        while level < self.world.size:
            gradient = self._with_partner(gradient, self.world.rank ^ level)
            level *= 2
        if pieces[0][0].total < self.global_batch:
            # -0.0 and 0.0 become one: whether a zero was added depends on P
            _add(gradient, 0.0)
        for p, grad in zip(self._parameters, gradient, strict=True):
            p.grad = _laid_out_as(p, grad)
        self.unused = [p for p in self._parameters if id(p) not in self._used]
        self._used = set()

    def drop_unused(self) -> None:
        """See Reduction."""
        _drop(self.unused, self._parameters, self.world)

    def loss(self, rows: Sequence[Sequence[float]]) -> float:
        """See Reduction; what fills a process up has lost nothing."""
        leaves, own = [0.0] * self.slots, self.slots // self.world.size
        for rank, row in enumerate(rows):
            leaves[rank * own : rank * own + len(row)] = row
        while len(leaves) > 1:
            leaves = [left + right for left, right in zip(leaves[::2], leaves[1::2], strict=True)]
        return leaves[0]

    def _add(self, slot: int, gradient: list[Tensor]) -> None:
        """Put a leaf in and merge it with its finished neighbour, and so on upwards."""
        size = 1
        while slot & size and slot - size in self._subtrees:
            left = self._subtrees.pop(slot - size)
            _add(left, gradient)
            gradient, slot, size = left, slot - size, size * 2
        self._subtrees[slot] = gradient

    def _own_subtree(self) -> list[Tensor]:
        """What is left after the last leaf, from right to left."""
        parts = [self._subtrees[slot] for slot in sorted(self._subtrees)]
        self._subtrees = {}
        if not parts:
            return [torch.zeros_like(p) for p in self._parameters]
        right = parts.pop()
        while parts:
            left = parts.pop()
            _add(left, right)
            right = left
        return right

    def _with_partner(self, gradient: list[Tensor], partner: int) -> list[Tensor]:
        """The sum of this process's and a partner's, each type of number by itself."""
        sums = {}
        for kind in dict.fromkeys(grad.dtype for grad in gradient):
            own = [grad for grad in gradient if grad.dtype == kind]
            flat = torch.cat([grad.reshape(-1) for grad in own])
            flat += self._of(partner, flat)
            sums[kind] = iter(flat.split([grad.numel() for grad in own]))
        return [next(sums[grad.dtype]).view_as(grad) for grad in gradient]

    def _of(self, partner: int, flat: Tensor) -> Tensor:
        """What the partner has in the place of this; complex numbers travel as pairs."""
        other = torch.empty_like(flat)
        here, there = (torch.view_as_real(t) if t.is_complex() else t for t in (flat, other))
        swap = [dist.P2POp(dist.isend, here, partner), dist.P2POp(dist.irecv, there, partner)]
        for request in dist.batch_isend_irecv(swap):
            request.wait()
        return other


def _drop(unused: list[nn.Parameter], parameters: list[nn.Parameter], world: World) -> None:
    """Take the gradients away that are zero because nobody has used the parameter."""
    own = {id(p) for p in unused}
    used = world.all_reduce_sum([float(id(p) not in own) for p in parameters])
    for p, somewhere in zip(parameters, used, strict=True):
        if not somewhere:
            p.grad = None


def check_powers_of_two(processes: int, slots: int) -> None:
    """The tree has a power of two of leaves, and every process owns a subtree.

    Raises:
        TrainError: it does not.
    """
    for what, number in (("processes", processes), ("micro-batches in the global batch", slots)):
        if number & (number - 1):
            raise TrainError(
                f"train.reduction: exact sums in a binary tree, and {number} {what} are not a power"
                " of two.",
                "Change train.micro_batch or the number of processes, or use train.reduction:"
                " fast.",
            )


def _dense(p: Tensor) -> Tensor:
    """Its gradient with all of its elements."""
    if p.grad is None:
        return torch.zeros_like(p)
    return p.grad.to_dense() if p.grad.is_sparse else p.grad


def _laid_out_as(p: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's layout of memory, which torch's fused optimizers take for
    granted: in another one they would give each element the gradient of another."""
    if gradient.stride() == p.stride():
        return gradient
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(gradient)


def _add(tensors: list[Tensor], more: list[Tensor] | float) -> None:
    """In place. What torch's optimizers use has no public name; 50 tensors of 1,000 take 27 µs
    instead of 48 one by one (2 cores), and a GPU starts one kernel instead of 50."""
    torch._foreach_add_(tensors, more)
