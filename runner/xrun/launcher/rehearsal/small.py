"""A plan -> the plan of its rehearsal: one process, few samples, two steps, everything here; and
what that says nothing of."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...recipe.schema import Recipe, Train
from ...run.plan import Plan

_SAMPLES = 2
"""Samples per micro-batch: batch statistics need two."""
_SLOTS = 2
"""Micro-batches per step, so that gradients add up as in the run."""


def small_plan(plan: Plan, folder: Path) -> Plan:
    """The plan of a rehearsal in `folder`, which has the packed `project/`; it ends at step 1."""
    project = folder / "project"
    return replace(
        plan,
        recipe=small_recipe(plan),
        recipe_path=str(project / "recipes" / Path(plan.recipe_path).name),
        project=str(project),
        home=str(folder / "runs"),
        processes=1,
        fork="",
        store="",
        fork_store="",
        publish="",
        rehearsal=1,
        whole_batch=plan.load_recipe().train.global_batch,
    )


def small_recipe(plan: Plan) -> dict[str, Any]:
    """The plan's recipe with one process, few samples, and nobody who is told."""
    told: dict[str, Any] = copy.deepcopy(dict(plan.recipe))
    train = plan.load_recipe().train
    micro = min(_SAMPLES, train.global_batch, _number(train))
    told["hardware"] = {"local": {}}
    told["tracking"], told["budget"], told["alerts"] = {}, {}, None
    told["checkpoint"], told["publish"] = {"every": "1 steps"}, None
    told["train"] |= {
        "micro_batch": micro,
        "global_batch": micro * min(_SLOTS, train.micro_batches),
        "precision": "fp32" if train.precision == "fp16" else train.precision,
        "sharding": "none",
        "compile": False,
        "num_workers": min(1, train.num_workers),
        "log_every": 1,
    }
    told["train"]["schedule"] = {**told["train"]["schedule"], "warmup_steps": 0}
    told["train"]["evaluate"] = {**told["train"]["evaluate"], "batch": None}
    return Recipe.model_validate(told).model_dump(mode="json")


def _number(train: Train) -> int:
    """The recipe's micro-batch; `auto` may find any."""
    return _SAMPLES if train.micro_batch == "auto" else train.micro_batch


def made_smaller(plan: Plan, small: Plan) -> str:
    """How many samples a step has, for people; "" where it has as many as in the run."""
    whole, few = plan.load_recipe().train, small.load_recipe().train
    if (whole.global_batch, whole.micro_batch) == (few.global_batch, few.micro_batch):
        return ""
    return (
        f"steps of {few.global_batch} instead of {whole.global_batch} samples, in micro-batches of"
        f" {few.micro_batch}"
    )


def unseen(plan: Plan) -> Iterator[str]:
    """What the rehearsal says nothing of."""
    recipe = plan.load_recipe()
    yield from ("CUDA", "a GPU's memory", "speed")
    if any(world > 1 for world in recipe.hardware.worlds):
        yield "several processes"
    if recipe.train.compile:
        yield "torch.compile"
    if recipe.train.sharding == "fsdp":
        yield "sharding"
    if recipe.train.precision == "fp16":
        yield "fp16"
    if recipe.setup or any(candidate.setup for candidate in recipe.hardware.any_of):
        yield "`setup`"
    if any(candidate.image for candidate in recipe.hardware.any_of):
        yield "`image`"
    for target in recipe.files:
        if not (Path(plan.project) / Path(target).expanduser()).exists():
            yield f"{target} of `files`"


def hidden_warmup(plan: Plan, samples: int) -> str:
    """The sentence about a warmup that does not end before a run over so many samples does; "" if
    it does, or if `check` has told."""
    train = plan.load_recipe().train
    last = (train.epochs or 0) * -(-samples // train.global_batch)
    if not train.epochs or train.schedule.warmup_steps < last or not train.schedule.warmup_steps:
        return ""
    return (
        f"train.schedule.warmup_steps: the warmup of {train.schedule.warmup_steps} steps does not"
        f" end before the run does, at step {last}: {samples} samples are"
        f" {last // train.epochs} steps an epoch."
    )
