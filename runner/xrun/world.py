"""The processes that train together, and the little that they tell each other besides gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: evaluation, saving and exporting on one of them must fit."""


@dataclass(frozen=True)
class World:
    """This process's rank, how many there are, and two groups on the CPU: one for the loop, one for the saving thread."""

    rank: int = 0
    size: int = 1
    loop: Any = None
    saving: Any = None

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of these numbers over all processes, the same bits on each."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.loop)
        return tensor.tolist()

    def least(self, value: float) -> float:
        """The least of all processes' numbers."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self.loop)
        return float(tensor)

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.loop)
        return box[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier(group=self.loop)


def join_world(sharded: bool) -> World:
    """Meet the other processes, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say.

    A sharded model needs a process group even for one process.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not sharded:
        return World()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size, dist.new_group(backend="gloo"), dist.new_group(backend="gloo"))
