"""Memory: spreading a model over processes, and computing activations twice instead of keeping
them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

log = logging.getLogger("xrun")


def repeated_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks that a model repeats: the children of its ModuleLists (of transformers' layers
    too)."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module.children()


def shard(objective: nn.Module, device: str) -> None:
    """Spread parameters, gradients and optimizer state over all processes (FSDP2), a unit per
    repeated block.

    Called on the torch API because Accelerate's FSDP refuses the CPU, on which it is tested.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (_world_size(),))
    for block in repeated_blocks(objective):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


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
