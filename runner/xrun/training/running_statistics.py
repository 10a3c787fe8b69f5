"""BatchNorm's running statistics under `train.reduction: exact`: as if one process had computed all
micro-batches in order.

A running mean is moved a little towards each micro-batch's own mean, one after the other, so it
depends on who computed what. Here the micro-batches' own statistics are kept apart, gathered from
all processes, and replayed in the order of the global batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.sampler import MicroBatch
from ..errors import TrainError
from .world import World


class RunningStatistics:
    """Those of a model's BatchNorm modules, during steps of `slots` micro-batches."""

    def __init__(self, model: nn.Module, world: World, slots: int) -> None:
        self.world, self.rows = world, slots // world.size
        norms = [
            module
            for module in model.modules()
            if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        ]
        self.modules: list[Any] = [norm for norm in norms if norm.track_running_stats]
        self.buffers = {
            id(buffer) for norm in self.modules for buffer in norm.buffers(recurse=False)
        }
        """What these modules change in the forward pass, by `id`; it is replayed."""
        self._kept: dict[int, list[Tensor]] = {}
        self._calls: list[int] = []
        self._found: list[Tensor] = []
        self._own: list[tuple[float, Tensor]] = []
        self._forward = False
        if self.modules:
            model.register_forward_pre_hook(partial(self._turn, True))
            model.register_forward_hook(partial(self._turn, False))
        for number, norm in enumerate(self.modules):
            norm.register_forward_hook(partial(self._look, number))

    @contextlib.contextmanager
    def micro_batch(self, piece: MicroBatch) -> Iterator[None]:
        """Around forward and backward of one micro-batch: with a momentum of 1 the running
        statistics are its own ones."""
        active = [(number, norm) for number, norm in enumerate(self.modules) if norm.training]
        if not active:
            yield
            return
        self._kept = self._kept or {
            number: [buffer.clone() for buffer in norm.buffers(recurse=False)]
            for number, norm in active
        }
        momenta = [norm.momentum for _, norm in active]
        for _, norm in active:
            norm.momentum = 1.0
        self._calls, self._found = [], []
        try:
            yield
        finally:
            for (_, norm), momentum in zip(active, momenta, strict=True):
                norm.momentum = momentum
        self._own.append((piece.weight, torch.cat(self._found)))

    def finish(self) -> None:
        """After the last micro-batch: the statistics of all of them, in order, on every process."""
        if not self._kept:
            return
        for number, before in self._kept.items():
            for buffer, value in zip(
                self.modules[number].buffers(recurse=False), before, strict=True
            ):
                buffer.copy_(value)
        for row in self._gathered():
            start = 0
            for number in self._calls:
                norm = self.modules[number]
                norm.num_batches_tracked += 1
                factor = (
                    1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
                )
                for running in (norm.running_mean, norm.running_var):
                    running.lerp_(row[start : start + running.numel()].to(running.dtype), factor)
                    start += running.numel()
        self._kept, self._own = {}, []

    def _turn(self, forward: bool, *_: Any) -> None:
        """Modules are called in the backward pass too, where activations are computed again; that
        does not count."""
        self._forward = forward

    def _look(self, number: int, norm: Any, inputs: Any, output: Any) -> None:
        if self._forward and self._kept and norm.training:
            self._calls.append(number)
            self._found += [norm.running_mean.float().clone(), norm.running_var.float().clone()]

    def _gathered(self) -> list[Tensor]:
        """Each micro-batch's own statistics, in the order of the global batch; those that are not
        part of it are left out."""
        width = {len(values) for _, values in self._own}
        if len(width) > 1:
            raise TrainError(
                "train.reduction: exact: the model does not call the same BatchNorm modules in"
                " every micro-batch."
            )
        rows = [torch.cat([values.new_tensor([weight]), values]) for weight, values in self._own]
        rows += [torch.zeros_like(rows[0])] * (self.rows - len(rows))
        if self.world.size > 1:
            own = torch.stack(rows)
            everybody = [torch.empty_like(own) for _ in range(self.world.size)]
            dist.all_gather(everybody, own)
            rows = [row for part in everybody for row in part]
        return [row[1:] for row in rows if row[0]]
