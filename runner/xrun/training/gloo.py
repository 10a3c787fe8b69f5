"""How the processes of a sharded model gather its units and sum their gradients on processors: as
FSDP has it done by default, bit for bit, without what is kept and copied for the sake of GPUs.

Streams do not overlap there, so nothing has to outlive the call that it was made for. A gathered
unit, a gradient that was summed already and gloo's copy of the one that is being summed were two
layers of memory more than a step needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Operation = dist.ReduceOp | dist.ReduceOp.RedOpType


class _Collective:
    """What FSDP asks of each."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for what is gathered or summed."""
        return torch.empty(size, dtype=dtype, device=device)


class Gather(_Collective):
    """Everybody's part of a unit."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> Any:
        """The work that fills the output. Of one that it has to wait for FSDP keeps the output only
        until the parameters are made of it, else until the next unit is gathered."""
        return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=True)


class ReduceScatter(_Collective):
    """This process's part of the sum of everybody's gradients of a unit."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Operation,
        async_op: bool = False,
    ) -> None:
        """Sum in the input, which is given back afterwards: gloo's own reduce-scatter makes the
        same sum in a copy, and FSDP keeps the input until the next unit's is made."""
        dist.all_reduce(input_tensor, op=op, group=group)
        own = input_tensor.view(group.size(), -1)[group.rank()]
        output_tensor.copy_(own)
        input_tensor.untyped_storage().resize_(0)
