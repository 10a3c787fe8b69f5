"""Rules between the fields of a recipe. Each is a function named after what it refuses; each says
which keys it reads.

A rule yields `Problem`s without a place: `key` is where the person can act, and `diagnostics` knows
where that was written. A rule is not asked when one of the keys that it reads is already wrong by
itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from .. import environment
from ..errors import Problem, did_you_mean
from . import secret_text
from .accelerators import unserved
from .adapters import wrong_adapter_args
from .counted import counts
from .location import is_within, target_there
from .metrics import FURTHER, METRICS, better, is_measured
from .rungs import rung_step
from .schema import Recipe, Train

Rule = Callable[[Recipe], Iterator[Problem]]
RULES: list[tuple[tuple[str, ...], Rule]] = []

ACCELERATORS = (
    "A10 A100 A100-80GB A100-80GB-SXM A10G A16 A40 A4000 A5000 A6000 B200 B300 GB200 GB300"
    " GH200 H100 H100-MEGA-80GB H100-NVL H100-SXM H200 H200-NVL H200-SXM L4 L40 L40S"
    " RTX-6000-Ada RTX-PRO-6000 RTX2000-Ada RTX3060 RTX3070 RTX3080 RTX3090 RTX4000"
    " RTX4000-Ada RTX4060 RTX4070 RTX4080 RTX4090 RTX5000 RTX5000-Ada RTX5060 RTX5070 RTX5080"
    " RTX5090 RTX6000 RTX6000-Ada RTXPRO4500 RTXPRO6000 T4"
).split()
CLOUDS = (
    "aws azure cudo do fluidstack gcp hyperbolic ibm kubernetes lambda mithril nebius oci"
    " paperspace primeintellect runpod scp seeweb shadeform slurm ssh vast verda vsphere yotta"
).split()
OPTIMIZERS = (
    "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD"
    " SparseAdam"
).split()
WITHOUT_DECAY = ("rprop", "sparseadam")
"""Optimizers of `torch.optim` without weight decay: torch would ignore it without a word."""
OWN_FOLDER = "~/xrun"
"""Where everything of a run is on a job's machine."""
SET_BY_XRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def rule(*reads: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.append((reads, function))
        return function

    return add


BETRAYED = "this looks like a secret, whose value must not stand in a recipe"
MOST = 200
"""So many problems of one rule are looked for: a list may hold thousands."""


def broken(recipe: Recipe) -> list[tuple[tuple[str, ...], Problem]]:
    """Every broken rule: the keys that the rule reads, and the problem."""
    return [(reads, problem) for reads, check in RULES for problem in islice(check(recipe), MOST)]


def problem(key: str, what: str, got: object = "", hint: str = "") -> Problem:
    return Problem("", 0, 0, key, what, str(got), hint)


def power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


# What is frozen


@rule("model.adapter")
def adapter_args_are_peft_s(recipe: Recipe) -> Iterator[Problem]:
    """`model.adapter.args` are arguments of peft's `LoraConfig`, and leave the base as it is."""
    adapter = recipe.model.adapter
    for each in wrong_adapter_args(adapter.args) if adapter else ():
        yield replace(each, key=f"model.adapter.args.{each.key}")


@rule("model.adapter", "model.frozen_modules")
def an_adapter_freezes_all(recipe: Recipe) -> Iterator[Problem]:
    """`model.frozen_modules` is not for `model.adapter`, which freezes the whole model."""
    if recipe.model.adapter is not None and recipe.model.frozen_modules:
        yield problem(
            "model.frozen_modules",
            "under an adapter the whole model is frozen",
            hint="Remove it; `exclude_modules` in `model.adapter.args` leaves modules without one.",
        )


@rule("model.adapter", "model.frozen", "model.frozen_modules", "train.precision")
def frozen_precision_fits(recipe: Recipe) -> Iterator[Problem]:
    """`model.frozen` needs something frozen, and `bf16` there a `train.precision` of `bf16` or
    `fp16`; `8bit` and `4bit` one of `bf16`."""
    model = recipe.model
    if model.frozen is not None and not model.freezes:
        yield problem(
            "model.frozen",
            "nothing is frozen",
            model.frozen,
            "Add `model.adapter` or `model.frozen_modules`, or remove it.",
        )
    elif model.quantized and recipe.train.precision != "bf16":
        yield problem(
            "model.frozen",
            f"the base is held in bf16 where it is not packed, and `train.precision:"
            f" {recipe.train.precision}` computes in {recipe.train.precision}",
            model.frozen,
            "Set `train.precision: bf16`.",
        )
    elif model.held == "bf16" and recipe.train.precision == "fp32":
        yield problem(
            "model.frozen" if model.frozen else "model.adapter",
            "frozen weights are held in bf16, and `train.precision: fp32` computes in fp32",
            hint="Set `train.precision: bf16`, or `model.frozen: fp32`.",
        )


@rule("model.adapter", "model.frozen", "train.sharding", "train.compile")
def packed_bases_do_what_was_seen(recipe: Recipe) -> Iterator[Problem]:
    """`model.frozen: 8bit` and `4bit` are for `model.adapter`, without `train.sharding: fsdp` and
    `train.compile`, and without what trains a part of a packed layer (`bias` and
    `target_parameters` of the adapter)."""
    model, train = recipe.model, recipe.train
    if not model.quantized or not model.freezes:
        return
    way = "Remove it, or set `model.frozen: bf16`."
    if model.adapter is None:
        what = "only the base under an adapter is packed"
        yield problem("model.frozen", what, model.frozen, "Use `bf16`, or add `model.adapter`.")
    if train.sharding == "fsdp":
        what = f"FSDP cannot cut the weights that `model.frozen: {model.frozen}` has packed"
        yield problem("train.sharding", what, "fsdp", way)
    if train.compile:
        what = f"it is not tested over a base in `model.frozen: {model.frozen}`"
        yield problem("train.compile", what, "true", way)
    args = model.adapter.args if model.adapter else {}
    for name in ("bias", "target_parameters"):
        if args.get(name) not in (None, "none", []):
            what = f"it trains a part of a layer that `model.frozen: {model.frozen}` has packed"
            yield problem(f"model.adapter.args.{name}", what, args[name], way)


# Training


@rule("train.steps", "train.epochs")
def exactly_one_of_steps_and_epochs(recipe: Recipe) -> Iterator[Problem]:
    """Exactly one of `train.steps` and `train.epochs` is given."""
    train = recipe.train
    if train.steps is not None and train.epochs is not None:
        yield problem(
            "train.epochs",
            "a run ends after `steps` or after `epochs`, not both",
            train.epochs,
            "Remove one of the two.",
        )
    if train.steps is None and train.epochs is None:
        yield problem(
            "train",
            "the run has no end: it lacks `steps` or `epochs`",
            hint="Add `steps: 1000` or `epochs: 10`.",
        )


@rule("train.global_batch", "train.micro_batch")
def micro_batch_divides_global_batch(recipe: Recipe) -> Iterator[Problem]:
    """`train.micro_batch` divides `train.global_batch`."""
    micro, total = recipe.train.micro_batch, recipe.train.global_batch
    if micro != "auto" and total % micro:
        down = next_smaller_divisor(total, micro)
        yield problem(
            "train.micro_batch",
            f"it does not divide `global_batch`, which is {total}",
            micro,
            f"The next smaller one that does is {down}." if down else "",
        )


def next_smaller_divisor(total: int, limit: int, tries: int = 100_000) -> int | None:
    """The largest divisor of a number that is no larger than this one; None where that would take
    long to find."""
    down = (size for size in range(min(limit, total), 0, -1) if total % size == 0)
    cofactors = (part for part in range(1, tries) if total % part == 0 and total // part <= limit)
    if limit < tries:
        return next(down)
    return next((total // part for part in cofactors), None)


@rule("train.global_batch", "train.micro_batch", "hardware")
def processes_divide_micro_batches(recipe: Recipe) -> Iterator[Problem]:
    """The number of processes of every candidate divides the number of micro-batches (`global_batch
    / micro_batch`)."""
    train, worlds = recipe.train, recipe.hardware.worlds
    parts = train.micro_batches
    if train.micro_batch != "auto" and train.global_batch % train.micro_batch:
        return
    wrong = [index for index, world in enumerate(worlds) if parts % world]
    cut = (
        f"{train.global_batch} samples"
        if train.micro_batch == "auto"
        else f"{parts} micro-batches of {train.micro_batch}"
    )
    if recipe.hardware.local and wrong:
        hint = f"Take a divisor of {parts}, or change `train.global_batch`."
        yield problem(
            "hardware.local.processes",
            f"{worlds[0]} processes cannot share {cut} equally",
            worlds[0],
            hint,
        )
    elif wrong and len(wrong) == len(worlds):
        numbers = ", ".join(map(str, sorted(set(worlds))))
        hint = (
            "Take a multiple of"
            f" {worlds[0] * (1 if train.micro_batch == 'auto' else train.micro_batch)}."
        )
        yield problem(
            "train.global_batch",
            f"no candidate can share {cut} equally among its processes ({numbers})",
            train.global_batch,
            hint,
        )
    else:
        for index in wrong:
            hint = (
                f"Take a number of accelerators and nodes that divides {parts}, or remove this"
                " candidate."
            )
            what = f"{worlds[index]} processes cannot share {cut} equally"
            yield problem(
                candidate_key(recipe, index),
                what,
                recipe.hardware.any_of[index].accelerators or worlds[index],
                hint,
            )


def candidate_key(recipe: Recipe, index: int) -> str:
    """Where a person can change how many processes a candidate has."""
    return f"hardware.any_of.{index}." + (
        "accelerators" if recipe.hardware.any_of[index].accelerators else "nodes"
    )


@rule("train.reduction", "train.sharding")
def exact_reduction_has_no_fsdp(recipe: Recipe) -> Iterator[Problem]:
    """`train.reduction: exact` needs whole gradients, so not with `train.sharding: fsdp`."""
    if recipe.train.reduction == "exact" and recipe.train.sharding == "fsdp":
        yield problem(
            "train.reduction",
            "`exact` sums whole gradients, and `sharding: fsdp` has none",
            "exact",
            "Use `reduction: fast` or `sharding: none`.",
        )


@rule("train.reduction", "hardware")
def exact_reduction_takes_powers_of_two(recipe: Recipe) -> Iterator[Problem]:
    """`train.reduction: exact` takes 1, 2, 4, 8, ... processes."""
    if recipe.train.reduction != "exact":
        return
    for index, world in enumerate(recipe.hardware.worlds):
        if not power_of_two(world):
            key = (
                "hardware.local.processes"
                if recipe.hardware.local
                else candidate_key(recipe, index)
            )
            yield problem(
                key,
                "`train.reduction: exact` sums in a binary tree, so the number of processes is a"
                " power of two",
                world,
            )


@rule("train.gather", "train.accumulate", "train.sharding", "train.precision")
def what_shards_is_for_fsdp(recipe: Recipe) -> Iterator[Problem]:
    """`train.gather: bf16` and `train.accumulate: whole` are for `train.sharding: fsdp`, and
    `gather: bf16` for `train.precision: bf16`."""
    train = recipe.train
    chosen = [("gather", train.gather, "fp32"), ("accumulate", train.accumulate, "sharded")]
    for name, value, default in chosen:
        if value != default and train.sharding != "fsdp":
            what = "without `train.sharding: fsdp` every process has all weights and gradients"
            yield problem(f"train.{name}", what, value, "Remove it, or set `sharding: fsdp`.")
    if train.gather == "bf16" and train.sharding == "fsdp" and train.precision != "bf16":
        what = f"`train.precision: {train.precision}` computes in {train.precision}"
        yield problem("train.gather", what, "bf16", "Set `train.precision: bf16`.")


@rule("train.steps", "train.schedule.warmup_steps")
def warmup_ends_before_the_run(recipe: Recipe) -> Iterator[Problem]:
    """`train.schedule.warmup_steps` is less than `train.steps`."""
    warmup, steps = recipe.train.schedule.warmup_steps, recipe.train.steps
    if steps is not None and warmup and warmup >= steps:
        yield problem(
            "train.schedule.warmup_steps",
            f"the warmup does not end before the run does, at step {steps}",
            warmup,
        )


@rule("train.schedule.name", "train.schedule.final")
def constant_schedule_has_no_final(recipe: Recipe) -> Iterator[Problem]:
    """`train.schedule.final` is for `linear` and `cosine`."""
    schedule = recipe.train.schedule
    if schedule.name == "constant" and schedule.final:
        yield problem(
            "train.schedule.final",
            "a constant schedule does not end at another rate",
            schedule.final,
            "Use `name: linear` or `name: cosine`.",
        )


@rule("train.optimizer.name")
def optimizer_is_known(recipe: Recipe) -> Iterator[Problem]:
    """`train.optimizer.name` is a class of `torch.optim` that steps without a closure."""
    name = recipe.train.optimizer.name
    if name.lower() == "lbfgs":
        yield problem(
            "train.optimizer.name",
            "LBFGS evaluates the loss several times per step, which this loop does not",
            name,
        )
    elif name.lower() not in map(str.lower, OPTIMIZERS) and (
        hint := did_you_mean(name, OPTIMIZERS)
    ):
        # A name that is near none of these may be a class of a newer torch.
        yield problem(
            "train.optimizer.name", "there is no such optimizer in `torch.optim`", name, hint
        )


@rule("train.optimizer.name", "train.optimizer.weight_decay")
def weight_decay_needs_an_optimizer_that_has_it(recipe: Recipe) -> Iterator[Problem]:
    """`train.optimizer.weight_decay` is for optimizers that have one: not for `Rprop` and
    `SparseAdam`."""
    optimizer = recipe.train.optimizer
    if optimizer.weight_decay and optimizer.name.lower() in WITHOUT_DECAY:
        yield problem(
            "train.optimizer.weight_decay",
            f"`{optimizer.name}` has no weight decay, so it would change nothing",
            optimizer.weight_decay,
            "Remove it, or take another optimizer.",
        )


@rule("train.optimizer.name", "train.schedule.name", "train.schedule.warmup_steps")
def schedule_needs_an_optimizer_that_follows_it(recipe: Recipe) -> Iterator[Problem]:
    """`train.schedule` is not for `Rprop`, which reads the learning rate in its first step only."""
    train = recipe.train
    if train.optimizer.name.lower() != "rprop":
        return
    given = {"name": train.schedule.name != "constant", "warmup_steps": train.schedule.warmup_steps}
    for key in (key for key, has in given.items() if has):
        yield problem(
            f"train.schedule.{key}",
            "Rprop reads the learning rate in its first step only, so a schedule would change"
            " nothing later",
            getattr(train.schedule, key),
            "Remove it, or take another optimizer.",
        )


@rule("train.optimizer.name", "train.optimizer.weight_decay", "train.optimizer.args")
def optimizer_args_have_what_they_act_on(recipe: Recipe) -> Iterator[Problem]:
    """SGD's `dampening` and `nesterov` need a `momentum`, and `decoupled_weight_decay` needs a
    `weight_decay`."""
    optimizer = recipe.train.optimizer
    momentum = optimizer.name.lower() != "sgd" or optimizer.args.get("momentum")
    needs = {
        "dampening": ("momentum", "Add `momentum: 0.9`.", momentum),
        "nesterov": ("momentum", "Add `momentum: 0.9`.", momentum),
        "decoupled_weight_decay": (
            "train.optimizer.weight_decay",
            "Add it, or remove this.",
            optimizer.weight_decay,
        ),
    }
    for name, (what, hint, given) in needs.items():
        if optimizer.args.get(name) and not given:
            key = f"train.optimizer.args.{name}"
            value = str(optimizer.args[name]).lower()
            yield problem(key, f"without `{what}` it would change nothing", value, hint)


@rule("train.optimizer.args")
def optimizer_args_do_not_repeat(recipe: Recipe) -> Iterator[Problem]:
    """`train.optimizer.args` does not hold `lr`, `weight_decay` or `params`."""
    for name in sorted({"lr", "weight_decay", "params"} & set(recipe.train.optimizer.args)):
        hint = "The model gives them." if name == "params" else f"Use `train.optimizer.{name}`."
        yield problem(
            f"train.optimizer.args.{name}", f"`{name}` does not go into `args`", hint=hint
        )


@rule("train.export", "train.evaluate.every", "train.epochs")
def best_of_several_evaluations(recipe: Recipe) -> Iterator[Problem]:
    """`train.export: best` needs evaluations before the last step."""
    train = recipe.train
    if train.export == "best" and train.evaluate.every is None and train.epochs is None:
        what = "only the last step is evaluated, so no other one can be the best"
        yield problem("train.export", what, "best", "Set `train.evaluate.every`.")


@rule("task", "train.evaluate.metric", "train.evaluate.mode")
def metric_is_measured(recipe: Recipe) -> Iterator[Problem]:
    """`train.evaluate.metric` is one that the task measures; where its name does not tell, `mode`
    is given."""
    task, evaluate = recipe.task, recipe.train.evaluate
    if task != "model" and not is_measured(task, evaluate.metric):
        yield not_measured("train.evaluate.metric", task, evaluate.metric)
    elif evaluate.mode is None and better(evaluate.metric) is None:
        yield problem(
            "train.evaluate.metric",
            "its name does not tell whether higher is better",
            evaluate.metric,
            "Add `mode: max` or `mode: min`.",
        )


@rule("task", "train.evaluate.metrics")
def metrics_are_measured(recipe: Recipe) -> Iterator[Problem]:
    """`train.evaluate.metrics` are some that the task measures, each once."""
    metrics = recipe.train.evaluate.metrics
    for place, name in enumerate(metrics):
        key = f"train.evaluate.metrics.{place}"
        if not is_measured(recipe.task, name):
            yield not_measured(key, recipe.task, name)
        elif name in metrics[:place]:
            yield problem(key, "it is named twice", name, "Remove one of the two.")


def not_measured(key: str, task: str, metric: str) -> Problem:
    """What the task measures instead, or the task that measures it."""
    known = (*METRICS.get(task, ()), *FURTHER[task])
    others = [other for other in FURTHER if other != task and is_measured(other, metric)]
    hint = did_you_mean(metric, known)
    if not hint and others:
        hint = f"`task: {others[0]}` measures it."
    what = f"`task: {task}` measures {', '.join(known[:-1])} and {known[-1]}"
    return problem(key, what, metric, hint)


@rule("train.evaluate.patience", "train.evaluate.every", "train.steps", "train.epochs")
def patience_needs_evaluations(recipe: Recipe) -> Iterator[Problem]:
    """`train.evaluate.patience` comes with evaluations before the last step."""
    train = recipe.train
    if train.evaluate.patience is not None and train.evaluate.every is None and not train.epochs:
        yield problem(
            "train.evaluate.patience",
            "it counts evaluations, and this run has only one, after its last step",
            train.evaluate.patience,
            "Add `every: 500 steps`.",
        )


# Machines


@rule("checkpoint.store", "hardware")
def spot_needs_durable_checkpoints(recipe: Recipe) -> Iterator[Problem]:
    """A candidate that may be a spot machine needs checkpoints that outlive it: `checkpoint.store:
    hub` or a bucket."""
    if recipe.checkpoint.durable:
        return
    for index, candidate in enumerate(recipe.hardware.any_of):
        if candidate.spot:
            what = "a spot machine's disk vanishes with it, and the checkpoints would lie there"
            yield problem(
                f"hardware.any_of.{index}.spot",
                what,
                str(candidate.spot).lower(),
                "Use `checkpoint.store: hub` or `spot: false`.",
            )


@rule("checkpoint.store", "hardware")
def several_nodes_share_a_store(recipe: Recipe) -> Iterator[Problem]:
    """A candidate of several nodes needs a store that all reach: `checkpoint.store: hub`, a bucket
    or the whole path of a shared folder."""
    if recipe.checkpoint.store.shared:
        return
    for index, candidate in enumerate(recipe.hardware.any_of):
        if candidate.nodes > 1:
            yield problem(
                f"hardware.any_of.{index}.nodes",
                "each node has a disk of its own, and `checkpoint.store` would lie on one of them",
                candidate.nodes,
                "Use `checkpoint.store: hub`, or the whole path of a folder that all nodes share.",
            )


@rule("hardware")
def deadline_needs_machines_on_demand(recipe: Recipe) -> Iterator[Problem]:
    """`deadline` is for clouds, and only machines on demand can keep it: a candidate with `spot:
    auto` or `spot: false`."""
    hardware = recipe.hardware
    if hardware.deadline is None:
        return
    if hardware.local is not None:
        yield problem(
            "hardware.deadline",
            "xrun cannot replace this machine by a faster one to keep it",
            str(hardware.deadline),
            "Remove it, or name machines of clouds under `any_of`.",
        )
    elif all(each.spot is True for each in hardware.any_of):
        yield problem(
            "hardware.deadline",
            "spot machines alone cannot keep it: there may be none",
            str(hardware.deadline),
            "Give a candidate `spot: auto`, or one more with `spot: false`.",
        )


@rule("hardware")
def accelerator_is_known(recipe: Recipe) -> Iterator[Problem]:
    """`accelerators` is a name that SkyPilot knows, in its spelling."""
    for index, candidate in enumerate(recipe.hardware.any_of):
        name = candidate.accelerator
        if name and name not in ACCELERATORS and not unserved(name):
            yield problem(
                f"hardware.any_of.{index}.accelerators",
                "there is no such accelerator",
                name,
                did_you_mean(name, ACCELERATORS) or "`sky show-gpus --all` lists them.",
            )


@rule("hardware")
def accelerator_is_served(recipe: Recipe) -> Iterator[Problem]:
    """`accelerators` are NVIDIA's GPUs from Turing on (T4, A10, A100, L4, H100, ...): those that a
    machine has a build of torch for."""
    for index, candidate in enumerate(recipe.hardware.any_of):
        if kind := unserved(candidate.accelerator or ""):
            yield problem(
                f"hardware.any_of.{index}.accelerators",
                f"no build of torch that a machine installs runs on {kind}",
                candidate.accelerator or "",
                "Take a newer GPU of NVIDIA's, such as T4, L4, A100 or H100.",
            )


@rule("hardware")
def cloud_is_known(recipe: Recipe) -> Iterator[Problem]:
    """`clouds` are names that SkyPilot knows."""
    for index, candidate in enumerate(recipe.hardware.any_of):
        for place, cloud in enumerate(candidate.clouds or ()):
            if cloud not in CLOUDS:
                hint = did_you_mean(cloud, CLOUDS) or f"Known are {', '.join(CLOUDS)}."
                yield problem(
                    f"hardware.any_of.{index}.clouds.{place}", "there is no such cloud", cloud, hint
                )


@rule("hardware")
def regions_belong_to_clouds(recipe: Recipe) -> Iterator[Problem]:
    """`regions` are given together with `clouds`."""
    for index, candidate in enumerate(recipe.hardware.any_of):
        if candidate.regions and not candidate.clouds:
            yield problem(
                f"hardware.any_of.{index}.regions",
                "no cloud is named for these regions",
                hint="Add `clouds: [...]`.",
            )


# Sweeps


MOST_TRIALS = 10_000
_TRIED = 1_000
"""Values of one list that are compared with one another."""


@rule("sweep")
def swept_keys_make_other_runs(recipe: Recipe) -> Iterator[Problem]:
    """`sweep.parameters` are keys that a run's id follows from, each with different values: with
    others two trials would be one run."""
    if recipe.sweep is None:
        return
    if not recipe.sweep.parameters:
        hint = "Write `train.optimizer.lr: [1e-3, 3e-3]`, or remove `sweep`."
        yield problem("sweep.parameters", "no key has several values", hint=hint)
    for name, parameter in recipe.sweep.parameters.items():
        key = f"sweep.parameters.{name}"
        if not counts(name) and _is_known(name):
            what = "it does not change what is computed, so two trials would be the same run"
            hint = "Set it once for all trials, where it stands in the recipe."
            yield problem(key, what, hint=hint)
        seen: set[str] = set()
        for place, value in enumerate(parameter.values[:_TRIED]):
            written = json.dumps(value, sort_keys=True, default=str)
            if written in seen:
                what = "two trials would be the same run"
                yield problem(f"{key}.{place}", what, written, "Write it once.")
            seen.add(written)


def _is_known(key: str) -> bool:
    """Whether the recipe has such a key at all; others are spelling mistakes, which the trial's own
    recipe tells better."""
    part, _, inner = key.partition(".")
    known = Train.model_fields if part == "train" else Recipe.model_fields
    return (inner.partition(".")[0] if part == "train" and inner else part) in known


@rule("sweep")
def the_number_of_trials_is_known(recipe: Recipe) -> Iterator[Problem]:
    """`sweep.method: grid` has `points` for each range and no more trials than `sweep.max_trials`;
    `random` and `bayes` have `sweep.max_trials`."""
    sweep = recipe.sweep
    if sweep is None:
        return
    if sweep.method != "grid":
        if sweep.max_trials is None:
            verb = "drawn" if sweep.method == "random" else "proposed"
            what = f"the number of trials to be {verb} is missing"
            yield problem("sweep", what, hint="Add `max_trials: 20`.")
        return
    choices = {name: each.choices for name, each in sweep.parameters.items()}
    for name in (name for name, each in choices.items() if each is None):
        what = "a grid needs the number of values to take from this range"
        hint = "Add `points: 5`, or set `method: random`."
        yield problem(f"sweep.parameters.{name}", what, hint=hint)
    count, most = math.prod(len(each or ()) for each in choices.values()), sweep.max_trials
    if count > (most or MOST_TRIALS):
        what = f"the grid has {count} trials"
        hint = "Take fewer values, or `method: random`, which draws `max_trials` of them."
        yield problem("sweep.max_trials" if most else "sweep", what, most or "", hint)


@rule("sweep", "task", "train.evaluate")
def trials_are_measured(recipe: Recipe) -> Iterator[Problem]:
    """`sweep.metric` is one that the evaluation gives, whose name or `sweep.mode` tells which is
    better."""
    sweep, evaluate = recipe.sweep, recipe.train.evaluate
    if sweep is None:
        return
    metric = sweep.metric or evaluate.metric
    given = (*METRICS.get(recipe.task, ()), evaluate.metric, *evaluate.metrics)
    if recipe.task != "model" and metric not in given:
        if is_measured(recipe.task, metric):
            what, hint = (
                "no evaluation measures it",
                f"Add it to `train.evaluate.metrics`: [{metric}].",
            )
            yield problem("sweep.metric", what, metric, hint)
        else:
            yield not_measured("sweep.metric", recipe.task, metric)
    elif (sweep.metric is not None or evaluate.mode is None) and (
        (sweep.mode or better(metric)) is None
    ):
        what = "its name does not tell whether higher is better"
        key = "sweep.metric" if sweep.metric else "sweep"
        yield problem(key, what, metric, "Add `mode: max` or `mode: min`.")


@rule("sweep", "train.evaluate.every", "train.epochs", "train.steps")
def rungs_have_an_evaluation(recipe: Recipe) -> Iterator[Problem]:
    """`sweep.stop` needs an evaluation for each rung, before the last step."""
    train, stop = recipe.train, recipe.sweep.stop if recipe.sweep else None
    every, last = train.evaluate.every, train.epochs or train.steps or 0
    if stop is None or (train.epochs and every is not None and every.steps):
        return  # how many steps an epoch has is not known yet
    unit = "epochs" if train.epochs else "steps"
    between = (every.epochs or every.steps) if every is not None else 1 if train.epochs else None
    if between is None:
        what = "only the last step is evaluated, so nothing is known at a rung"
        yield problem("sweep.stop", what, hint="Set `train.evaluate.every: 100 steps`.")
        return
    at = [rung_step(last, between, part) for part in stop.parts]
    if len({*at, last}) <= len(at):
        what = (
            f"its rungs would coincide: they are after {', '.join(map(str, at))} of {last} {unit}"
        )
        hint = "Evaluate more often, or take fewer rungs."
        yield problem("sweep.stop", f"{what}, by its evaluations", hint=hint)


@rule("sweep")
def _pool(recipe: Recipe) -> Iterator[Problem]:
    """`sweep.pool` has no more machines than `sweep.parallel` trials."""
    sweep = recipe.sweep
    if sweep is not None and sweep.pool is not None and sweep.pool > sweep.parallel:
        what = f"some of its machines would have no trial: `parallel` is {sweep.parallel}"
        hint = f"Set `parallel: {sweep.pool}`, or a smaller pool."
        yield problem("sweep.pool", what, sweep.pool, hint)


@rule("sweep", "checkpoint.store")
def trials_have_a_store_each(recipe: Recipe) -> Iterator[Problem]:
    """A sweep's trials have a store each: `checkpoint.store: hub` and not one repository's name."""
    store = recipe.checkpoint.store
    if recipe.sweep is not None and store.on_hub and store.name:
        what = "a repository is one run's, and a sweep has many"
        hint = "Write `hub`, which makes one for each trial, or a bucket or a folder."
        yield problem("checkpoint.store", what, str(store), hint)


# Components, stores, environment


@rule("model.args", "dataset.args", "train.optimizer.args")
def args_are_finite(recipe: Recipe) -> Iterator[Problem]:
    """Numbers in `args` are finite: JSON, in which a plan is kept, has no others."""
    args = {
        "model": recipe.model.args,
        "dataset": recipe.dataset.args,
        "train.optimizer": recipe.train.optimizer.args,
    }
    for section, values in args.items():
        for key, value in leaves(values, f"{section}.args"):
            if isinstance(value, float) and not math.isfinite(value):
                yield problem(key, "must be a finite number", value)


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every single value in nested lists and mappings, with its dotted key."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        yield key, value
    else:
        for name, part in items:
            yield from leaves(part, f"{key}.{name}")


@rule("model")
def remote_code_comes_from_the_hub(recipe: Recipe) -> Iterator[Problem]:
    """`model.trust_remote_code` is only for the model `hub`."""
    if recipe.model.trust_remote_code and recipe.model.name != "hub":
        yield problem(
            "model.trust_remote_code",
            "only the model `hub` loads code from the Hub",
            "true",
            "Remove it.",
        )


@rule("files")
def files_leave_the_runs_own_folders_alone(recipe: Recipe) -> Iterator[Problem]:
    """A path of `files` is a path on the machine, outside of `~/xrun`, where the run itself is."""
    for target in recipe.files:
        there = target_there(target)
        if "://" in target:
            what, hint = (
                "this is an address, not a path on the machine",
                "Write `/data: s3://BUCKET`.",
            )
        elif is_within(there, OWN_FOLDER) or is_within(OWN_FOLDER, there):
            what, hint = f"the run itself is in {OWN_FOLDER}", "Take another path, such as `/data`."
        elif ".." in target.split("/"):
            what, hint = "it has `..` in it", "Write the path without `..`."
        else:
            continue
        yield problem(f"files.{target}", what, target, hint)


@rule("files")
def files_lie_beside_one_another(recipe: Recipe) -> Iterator[Problem]:
    """No path of `files` is inside another one."""
    places: dict[str, str] = {}
    for target in recipe.files:
        outer = places.setdefault(target_there(target), target)
        if outer != target:
            yield problem(f"files.{target}", f"this is the path `{outer}` again", target)
    for there, target in places.items():
        for folder in islice(map(str, PurePosixPath(there).parents), MOST):
            if folder in places:
                what = f"it lies inside `{places[folder]}`, and one of the two would hide the other"
                yield problem(f"files.{target}", what, target, "Use paths beside one another.")


@rule("env", "secrets")
def secret_is_not_also_in_env(recipe: Recipe) -> Iterator[Problem]:
    """A name stands in `secrets` or in `env`, not in both, and once."""
    for index, name in enumerate(recipe.secrets):
        if name in recipe.env:
            yield problem(
                f"env.{name}",
                "it is also one of `secrets`",
                hint="Remove it here, so that its value is not written down.",
            )
        if name in recipe.secrets[:index]:
            yield problem(f"secrets.{index}", "it is listed twice", name)


@rule("alerts", "env")
def alerts_are_named_once(recipe: Recipe) -> Iterator[Problem]:
    """A name stands in `alerts.to` once and not in `env`, and an event in `alerts.on` once."""
    alerts = recipe.alerts
    if alerts is None:
        return
    for key, names in (("to", alerts.to), ("on", alerts.on)):
        for index, name in enumerate(names):
            if name in names[:index]:
                yield problem(f"alerts.{key}.{index}", "it is listed twice", name)
    for name in alerts.to:
        if name in recipe.env:
            hint = "Remove it here, so that its value is not written down."
            yield problem(f"env.{name}", "it is also one of `alerts.to`", hint=hint)


@rule("env", "secrets")
def env_holds_no_secrets(recipe: Recipe) -> Iterator[Problem]:
    """A variable whose name ends in TOKEN, KEY, SECRET or PASSWORD, or whose value looks like a
    token, goes into `secrets`."""
    for name, value in recipe.env.items():
        if name not in recipe.secrets and (
            secret_text.NAME.search(name) or secret_text.VALUE.search(value)
        ):
            yield problem(
                f"env.{name}",
                BETRAYED,
                hint=f"Write `secrets: [{name}]` and set it in your shell.",
            )


@rule()
def no_value_is_a_secret(recipe: Recipe) -> Iterator[Problem]:
    """No value anywhere looks like a token, a password or a private key; a secret goes by name."""
    for key, value in leaves(recipe.model_dump(mode="json"), ""):
        key = key.removeprefix(".")
        if not key.startswith(("env.", "secrets.")) and secret_text.betrays(key, value):
            yield problem(
                key,
                BETRAYED,
                hint="Write its name under `secrets`, and read it from the environment.",
            )


@rule("env")
def env_leaves_xruns_own_names_alone(recipe: Recipe) -> Iterator[Problem]:
    """`env` does not set `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ... or `XRUN_...`, which xrun sets
    itself."""
    for name in recipe.env:
        if name in SET_BY_XRUN or name.startswith(environment.PREFIX):
            yield problem(
                f"env.{name}", "xrun sets this variable itself", recipe.env[name], "Remove it."
            )
