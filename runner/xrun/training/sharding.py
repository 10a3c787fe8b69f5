"""Memory: spreading a model over processes, and computing activations twice instead of keeping
them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from ..recipe.schema import Train

log = logging.getLogger("xrun")


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks that a model repeats: the children of its ModuleLists (of transformers' layers
    too)."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module.children()


def shard(module: nn.Module, train: Train, device: str, keep: bool = True) -> None:
    """Spread parameters, gradients and optimizer state over all processes (FSDP2), a unit per
    repeated block. What is no block is gathered for forward and backward together, if `keep`. What
    is on the meta device gets zeros.

    Called on the torch API because Accelerate's FSDP refuses the CPU, on which it is tested.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device, (_world_size(),))
    kind = torch.bfloat16 if train.gather == "bf16" else None
    # Inputs stay as they are: labels, angles of positions. Autocast knows what to compute in bf16.
    policy = MixedPrecisionPolicy(kind, torch.float32 if kind else None, cast_forward_inputs=False)
    units = [
        *(fully_shard(block, mesh=mesh, mp_policy=policy) for block in repeated_blocks(module)),
        fully_shard(
            module, mesh=mesh, mp_policy=policy, reshard_after_forward=None if keep else True
        ),
    ]
    if device == "cpu":
        from .gloo import Gather, ReduceScatter

        for unit in units:
            # Nothing is gathered beside what computes, there: it would only be one layer more.
            unit.set_modules_to_backward_prefetch([unit])
            unit.set_custom_all_gather(Gather())  # type: ignore[arg-type]  # torch's own class has no public name
            unit.set_custom_reduce_scatter(ReduceScatter())  # type: ignore[arg-type]  # as above
    # As to_empty() does it, which would empty what has values as well.
    module._apply(lambda t: torch.zeros_like(t, device=device) if t.is_meta else t)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute the activations of repeated blocks in backward."""
    # transformers' own, by its newer name and its older one
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    if enable := next((getattr(model, name) for name in names if hasattr(model, name)), None):
        enable()
        return
    # `torch.utils.checkpoint` checkpoints calls; what wraps modules has no public name.
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    blocks = set(repeated_blocks(model))
    if not blocks:
        log.warning(
            "train.activation_checkpointing changes nothing: the model has no nn.ModuleList of"
            " blocks whose activations could be computed again."
        )
    apply_activation_checkpointing(model, check_fn=lambda module: module in blocks)


def _world_size() -> int:
    import torch.distributed as dist

    return dist.get_world_size()
