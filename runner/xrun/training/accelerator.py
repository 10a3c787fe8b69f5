"""How torch and Accelerate compute: threads, determinism, device, precision, replication or
sharding."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from ..errors import TrainError
from ..recipe.schema import Train
from .compiled import Compiled
from .objective import Objective
from .sharding import checkpoint_activations, shard
from .world import World

_TABLES = nn.Embedding | nn.EmbeddingBag


def configure_torch(train: Train) -> None:
    """Threads as the entrypoint has set them, fp32 and deterministic kernels as the recipe has
    them."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    # By itself torch takes TF32 for convolutions and not for matrix products.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
    if not train.deterministic:
        return
    # `use_deterministic_algorithms` would import torch.compile's half second first.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module of properties
    torch.backends.cudnn.benchmark = False
    if train.compile:
        import torch._inductor.config as inductor  # torch documents it under this name

        inductor.deterministic = True


def configure_scripts(model: nn.Module) -> None:
    """TorchScript computes its first calls in another way than the later ones, which it has
    optimized by then. An attempt that resumes begins again, so none is optimized."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        torch._C._set_graph_executor_optimize(False)  # what torch.jit.optimized_execution sets


def build_accelerator(train: Train, world: World) -> Accelerator:
    """Accelerate for placement, precision and replication.

    Raises:
        TrainError: the recipe's precision needs a GPU, and there is none.
    """
    cpu = not torch.cuda.is_available()
    if train.precision == "fp16" and cpu:
        raise TrainError("train.precision: fp16 needs a GPU.", "Use bf16 or fp32 here.")
    if world.size == 1 and train.sharding != "fsdp":
        # By this Accelerate takes one process for several, and replicates its model.
        os.environ.pop("LOCAL_RANK", None)
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if train.precision == "fp32" else train.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        step_scheduler_with_optimizer=False,
    )


def prepare(
    objective: Objective, train: Train, accelerator: Accelerator, world: World
) -> nn.Module:
    """The module that a step calls: on its device, in its precision, with activation checkpointing,
    compilation, replication or sharding as the recipe says.

    Raises:
        TrainError: nothing would sum the processes' gradients, or not rightly.
    """
    if world.size > 1 and train.reduction != "exact":
        _check_dense(objective.model)
    if train.activation_checkpointing:
        checkpoint_activations(objective.model)
    if train.compile:
        objective.compiled = Compiled()
    sharded = train.sharding == "fsdp"
    alone = sharded or train.reduction == "exact"
    # What is sharded goes to the device piece by piece.
    place = False if sharded else None
    model: nn.Module = accelerator.prepare_model(objective, place, evaluation_mode=alone)
    if sharded:
        shard(objective, train, accelerator.device.type)
    replicated = isinstance(model, nn.parallel.DistributedDataParallel)
    if world.size > 1 and not alone and not replicated:
        raise TrainError(
            f"Accelerate does not see the {world.size} processes; nothing would sum their"
            " gradients."
        )
    return model


def _check_dense(model: nn.Module) -> None:
    """DistributedDataParallel sums dense gradients wrongly where there are sparse ones beside them
    (gloo, torch 2.13), NCCL sums no sparse ones at all.

    Raises:
        TrainError: a module makes some.
    """
    tables = ((n, m) for n, m in model.named_modules() if isinstance(m, _TABLES) and m.sparse)
    for name, table in tables:
        raise TrainError(
            f"{name or 'The model'}: the gradients of {type(table).__name__}(sparse=True) cannot be"
            " summed over several processes.",
            "Use sparse=False there, one process, or train.reduction: exact.",
        )
