"""What a plan would do, for people: a local run in ten lines, and what a step takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..run.cost import Cost
from ..run.folder import RunFolder

if TYPE_CHECKING:
    from ..recipe.schema import Recipe
    from ..run.plan import Plan


def plan_text(plan: Plan, begun: bool, typed: str) -> str:
    """What `xrun RECIPE` would do on this machine, `typed` in full; `begun`: its run is here
    already."""
    recipe = plan.load_recipe()
    train = recipe.train
    many = f"{plan.processes} process{'es' if plan.processes > 1 else ''} on this machine"
    lines = {
        "run": f"{plan.run}, which {_begins(plan) if begun else 'is new here'}",
        "model": _called(f"models/{recipe.model.name}.py", recipe.model.args),
        "data": _called(f"datasets/{recipe.dataset.name}.py", recipe.dataset.args),
        "length": f"{_length(recipe)} of {train.global_batch} samples, in micro-batches of"
        f" {train.micro_batch}, {train.precision}",
        "machine": many,
        "evaluate": _evaluate(recipe),
        "save": f"every {recipe.checkpoint.every}, to {plan.where}",
        "tell": ", ".join(["metrics.jsonl", *_trackers(recipe)]),
        "model to": str(plan.model_address or plan.folder / "model"),
        "start it": typed,
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def _begins(plan: Plan) -> str:
    """Where a run that is here goes on, as this machine knows it."""
    if plan.fork and not RunFolder(plan.folder).witness.exists():
        return f"begins at the newest checkpoint of {plan.fork}"
    return "goes on"


def _called(file: str, args: Any) -> str:
    told = ", ".join(f"{name}={value!r}" for name, value in args.items())
    return f"{file}({told if len(told) <= 80 else told[:77] + '...'})"


def _length(recipe: Recipe) -> str:
    train = recipe.train
    return f"{train.steps:,} steps" if train.steps else f"{train.epochs} epochs in steps"


def _evaluate(recipe: Recipe) -> str:
    evaluate = recipe.train.evaluate
    when = f"every {evaluate.every}" if evaluate.every else "at the end"
    if not evaluate.every and recipe.train.epochs:
        when = "after each epoch"
    return f"{evaluate.metric} on `val`, where there is one, {when}"


def _trackers(recipe: Recipe) -> Iterator[str]:
    tracking = recipe.tracking
    if tracking.wandb is not None:
        yield f"Weights & Biases, project {tracking.wandb.project}"
    if tracking.tensorboard is not None:
        yield "TensorBoard"


def cost_text(cost: Cost, recipe: Recipe, world: int) -> Iterator[str]:
    """What a step takes: what is computed, and where the bytes are of one of `world` processes."""
    from ..launcher.throughput import counted

    train, trial = recipe.train, cost.trials[-1]
    flops = trial.flops / trial.samples * train.global_batch
    size = trial.samples if train.micro_batch == "auto" else train.micro_batch
    auto = " (`auto` takes the largest that fits)" if train.micro_batch == "auto" else ""
    trained = "" if cost.trained == cost.parameters else f", {_number(cost.trained)} trained"
    yield (
        f"step      {counted(flops)} for {train.global_batch} samples;"
        f" {_number(cost.parameters)} parameters{trained}"
    )
    whole = cost.bytes_of(train, size, world)
    parts = {
        "weights": cost.weights,
        "gradients": cost.gradients,
        "optimizer": cost.optimizer,
        "average": cost.average,
    }
    told = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    rest = whole - sum(parts.values())
    if train.sharding == "fsdp" and world > 1:
        told, rest = f"a share of {told}", 0
    activations = f", activations and the rest {_size(rest)}" if rest > 0 else ""
    yield (
        f"memory    {_size(whole)} of tensors at most in each process, in micro-batches of"
        f" {size}{auto}: {told}{activations}"
    )


def _number(count: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,.0f}"


def _size(count: float) -> str:
    for size, name in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count / 2**10:.3g} KiB"
