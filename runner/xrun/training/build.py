"""Plan -> the parts of one rank's training, put together, with the newest checkpoint's state in
them. Every function makes its part out of what it is given."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .. import clock, environment
from ..bar import bar
from ..checkpoint.checkpointer import Checkpointer, Writers
from ..checkpoint.frozen import Frozen
from ..checkpoint.lease import Keep, Lease
from ..checkpoint.schedule import SaveSchedule
from ..checkpoint.state import TrainState
from ..checkpoint.tensor_file import TensorReader
from ..components import use_project
from ..data.batch import to_device
from ..data.lanes import LaneSampler, sampler_of
from ..data.loader import Fetch, Loader, check_shared_memory
from ..data.sampler import Sampler
from ..data.stream import StreamSampler, is_stream
from ..errors import ComponentError
from ..files import needed
from ..machine.heartbeat import Heartbeat
from ..machine.stop import StopFlag
from ..recipe.rungs import evaluated_every
from ..recipe.schema import Recipe, Train
from ..run import spending
from ..run.checkpoint import is_by
from ..run.folder import RunFolder
from ..run.locked import Lock
from ..run.plan import Limits, Plan
from ..run.record import AttemptRecord
from ..run.saving import mean_uptime, usd_per_byte
from ..run.saving import worth as seconds_for
from ..run.stores import open_store
from ..store.protocol import Store
from ..tracker.jsonl import JsonlTracker
from .accelerator import build_accelerator, configure_scripts, configure_torch, prepare
from .adapter import load_adapter, with_adapter
from .average import Average, average_of
from .conditions import check_accelerators, environment_of, memory_of
from .contract import Components
from .data_facts import Data, agreed_data
from .evaluate import Evaluation
from .finish import finish
from .flops import sample_flops
from .freezing import freeze, held_in_bf16, sourced_of
from .hub_revisions import HubRevisions
from .instances import build_ref, build_unchecked, components_of, revision_of, splits_of
from .lazy import LAZY_SAMPLES, give_shapes, lazy_modules
from .loop import Training
from .made_from import begin_revisions, found_here, look_offline, say_moved
from .mapped import CannotBeHollowError, build_once
from .micro_batch import (
    a_few_batches,
    find_micro_batch,
    find_sharded_micro_batch,
    first_batch,
    settled_micro_batch,
    settled_parts,
)
from .miniature import Miniature
from .modes import evaluating
from .objective import Objective
from .optimizer import build_optimizer, check_warmup, rate_jump
from .packages import packages_here
from .peak import peak_flops
from .prepared import prepared
from .quantized import settle, weights_apart
from .reduction import ExactReduction, FastReduction, Reduction
from .restored import as_built, build_hollow
from .sharding import shard
from .speed import Speed
from .start import Start, find_start
from .warm_start import adapter_at, warm_start
from .world import World, join_world

log = logging.getLogger("xrun")


@dataclass(frozen=True)
class Setting:
    """What everything else is built from."""

    plan: Plan
    recipe: Recipe
    store: Store
    world: World
    start: Start
    accelerator: Accelerator
    splits: Mapping[str, Any]
    data: Data
    heartbeat: Heartbeat
    revisions: HubRevisions

    @property
    def train(self) -> Train:
        """The recipe's part about training."""
        return self.recipe.train

    @property
    def components(self) -> Components:
        """The recipe's components, whose mistakes show while they are tried for the first time."""
        return components_of(self.recipe)

    @property
    def sharded(self) -> bool:
        """Whether each process has a piece of the model."""
        return self.train.sharding == "fsdp"

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.plan.folder)


@dataclass(frozen=True)
class Model:
    """The model with its task, the module that a step calls, and what a run resumes from; `built`
    is the digest of a sharded one that its attempt's record has."""

    objective: Objective
    called: nn.Module
    state: TrainState
    built: str | None = None

    @property
    def averaged(self) -> nn.Module | None:
        """The moving average of the model's weights, if there is one."""
        ema = self.state.ema
        return None if ema is None else ema.get_submodule("module")


def build_training(
    plan: Plan, attempt: str, stop: StopFlag, store: Store | None = None
) -> Training:
    """Everything a rank needs, with the newest checkpoint's state in it; `store` is the attempt's,
    if it is open already.

    Raises:
        XrunError: whatever a person can act on.
    """
    setting = build_setting(plan, attempt, store or open_store(plan, attempt))
    train, world, start = setting.train, setting.world, setting.start
    with setting.components.proving(setting.recipe.task):
        model = build_trained(setting)
    memory = memory_of(setting.accelerator.device)
    parts = world.broadcast(settled_parts(start.record, memory, world.size))
    model.state.exact &= parts == 1
    sampler = build_sampler(setting, model.state)
    steps = plan.last_step(sampler.steps_per_epoch)
    check_warmup(train, steps, begun=start.checkpoint is not None)
    if plan.fork and not start.record.checkpoints and model.state.step >= steps:
        raise ComponentError(
            f"--fork {plan.fork}: that run is at step {model.state.step}, and this recipe ends at"
            f" step {steps}, so nothing would be trained.",
            "Give train.steps or train.epochs a larger number: a fork goes on counting.",
        )
    lease = build_lease(setting)
    lease.note(steps_per_epoch=sampler.steps_per_epoch, memory=memory, parts=parts)
    lease.note(built=model.built)
    tracker = begin_log(setting, lease, model, steps, parts) if world.rank == 0 else None
    model.state.steps = steps
    schedule = build_schedule(setting, lease, sampler.steps_per_epoch or 1)
    writers = Writers(world.rank, world.size if setting.sharded else 1, world.saving)
    room = setting.folder.path if setting.sharded else None
    checkpointer = Checkpointer(model.state, lease, schedule, tracker, writers, folder=room)
    evaluation = build_evaluation(setting, model, sampler.steps_per_epoch, steps, parts)
    with setting.components.proving(setting.recipe.task):
        check_workers(setting, sampler, evaluation, model.state.step)
        speed = build_speed(setting, model, parts)
    lease.note(sample_flops=speed.flops or None)
    return Training(
        train=train,
        steps=steps,
        pause=plan.pause_step(sampler.steps_per_epoch),
        state=model.state,
        objective=model.objective,
        reduction=build_reduction(train, model.called, world, model.state.micro_batch),
        accelerator=setting.accelerator,
        sampler=sampler,
        loader=build_loader(setting, sampler, model.state.step, steps, parts),
        evaluation=evaluation,
        checkpointer=checkpointer,
        tracker=tracker,
        stop=stop,
        world=world,
        heartbeat=setting.heartbeat,
        fresh=start.checkpoint is None,
        untried=model.state.step if start.record.newest_step <= 0 else -1,
        parts=parts,
        ahead=setting.accelerator.device.type == "cuda",
        speed=speed,
        budget=build_budget(plan.limits, checkpointer, world),
        export=lambda _, early: finish(
            setting,
            model,
            lease,
            functools.partial(build_started, setting),
            sampler.steps_per_epoch,
            early,
        ),
    )


def build_setting(plan: Plan, attempt: str, store: Store) -> Setting:
    """Meet the other processes, find where to begin, and read the data."""
    recipe, project = plan.load_recipe(), Path(plan.project)
    check_accelerators(recipe, os.environ)
    use_project(project)
    world = join_world(recipe.train.sharding == "fsdp")
    configure_torch(recipe.train)
    start = find_start(plan, attempt, store, world)
    revisions = begin_revisions(plan, start.record.lock)
    plan = replace(plan, lock=Lock(hub=revisions.now()).to_json())
    kept = prepared(plan, attempt)
    with nullcontext() if world.rank else bar("Preparing the data"):
        if kept is not None:
            kept.fetch()
        splits = splits_of(plan)
    if kept is not None and not world.rank:
        kept.keep()
    if plan.rehearsal:
        recipe = Miniature(plan).recipe()
    data = agreed_data(plan, start, splits, world)
    accelerator = build_accelerator(recipe.train, world)
    own = environment.HEARTBEAT.of()
    heartbeat = Heartbeat(Path(own) if own else None)
    return Setting(
        plan, recipe, store, world, start, accelerator, splits, data, heartbeat, revisions
    )


def build_trained(setting: Setting) -> Model:
    """The model and its state: the newest checkpoint's, else that of step 0."""
    recipe, train, start = setting.recipe, setting.train, setting.start
    model, built = build_spread(setting) if setting.sharded else (build_started(setting), None)
    if train.deterministic:
        configure_scripts(model)
    sourced = sourced_of(model, recipe.model, setting.world)
    objective = build_objective(setting, model)
    settle_micro_batch = functools.partial(
        settled_micro_batch,
        train,
        setting.world,
        start.checkpoint.micro_batch if start.checkpoint else 0,
    )
    tried = train, objective, Fetch(setting.splits["train"], train.seed), setting.accelerator
    micro_batch = 0
    if not setting.sharded:
        held = sourced.parameters if sourced else ()
        micro_batch = settle_micro_batch(lambda: find_micro_batch(*tried, setting.world, held))
    copy = None
    if setting.sharded and train.ema is not None:
        copy = average_of(model, list(model.parameters()))
    called = prepare(objective, train, setting.accelerator, setting.world)
    if copy is not None:
        shard(copy, train, setting.accelerator.device.type, keep=False)
    outside = Frozen(model, sourced.lines) if sourced else None
    shared = (*outside.parameters, *weights_apart(model)) if outside else ()
    average = Average(model, train.ema, shared, copy) if train.ema is not None else None
    if setting.sharded:  # its pieces only compute together
        micro_batch = settle_micro_batch(lambda: find_sharded_micro_batch(*tried, setting.world))
    optimizer = build_optimizer(train, objective)
    scaler = setting.accelerator.scaler
    state = TrainState(model, optimizer, average, scaler, micro_batch, outside=outside)
    if start.checkpoint is not None:
        start.load(state, start.checkpoint, setting.plan.fork)
        is_fork, evaluate = not start.record.checkpoints, train.evaluate
        if is_fork or not is_by(state.best or {}, evaluate.metric, evaluate.better):
            state.best, state.waited = None, 0  # by another metric, or another run's
        state.exact &= not setting.data.changed
        if "train" in setting.data.changed and state.stream is not None:
            sampler = sampler_of(setting.splits["train"])
            state.stream = sampler.next_epoch(state.stream, state.step)
    return Model(objective, called, state, built)


def build_spread(setting: Setting) -> tuple[nn.Module, str]:
    """As `build_started`, and its digest for the attempt's record: built once on each node, with
    the parameters in a file there; without any values where a checkpoint has them all."""

    def build(hollow: bool) -> nn.Module:
        return build_started(setting, hollow=hollow)

    start, world = setting.start, setting.world
    name, known = setting.components.model, start.record.built
    if known and start.checkpoint is not None and not setting.recipe.model.freezes:
        saved = TensorReader(start.paths, start.share).names()
        model, why = build_hollow(build, known, saved, world)
        if model is not None:
            return model, known
        log.info(
            "%s: its first weights are built, to be replaced by the checkpoint's: %s.", name, why
        )
    model, why = build_once(build, setting.folder.path, world)
    if why:
        log.info(
            "%s: each process builds the whole model, which cannot be built without the values of"
            " its parameters: %s.",
            name,
            why,
        )
    return model, as_built(model)


def build_started(setting: Setting, packed: bool = True, hollow: bool = False) -> nn.Module:
    """The model with its first weights, what the recipe freezes frozen, and its adapter. Those that
    a checkpoint does not hold are read in every attempt. A base that the recipe holds in 4 or 8 bit
    is in bf16 where it is not to be `packed`. A `hollow` one has no weights, none are read."""
    recipe = setting.recipe if packed else held_in_bf16(setting.recipe)
    ref, project = recipe.model, Path(setting.plan.project)
    model, source = build_shaped(setting, hollow), ref.init_from
    fresh = not setting.start.record.checkpoints and not hollow
    adapter = adapter_at(source, project) if source and ref.adapter is not None else None
    if source and adapter is None and (fresh or ref.freezes) and not hollow:
        warm_start(model, source, project)
    freeze(model, ref)
    if ref.adapter is not None:
        model = with_adapter(model, recipe, ref.adapter, shapes=hollow)
    if source and adapter is not None and fresh:
        load_adapter(model, source, adapter)
    if ref.quantized:
        settle(model, setting.accelerator.device)
    return model


def build_shaped(setting: Setting, hollow: bool = False) -> nn.Module:
    """The model as built, with the shapes that its lazy modules take from the first samples."""
    build = build_unchecked if hollow else build_ref
    model = build(setting.recipe.model, setting.train.seed, Path(setting.plan.project))
    if lazy_modules(model):
        if hollow:
            raise CannotBeHollowError("a forward pass gives its modules their shapes")
        train = setting.train
        fetch = Fetch(setting.splits["train"], train.seed)
        batch = first_batch(fetch, LAZY_SAMPLES)
        give_shapes(build_objective(setting, model), batch, LAZY_SAMPLES, train.seed)
    return model


def build_objective(setting: Setting, model: nn.Module) -> Objective:
    """A model with its task, which may ask for other samples where a batch does not say which of
    its dimensions is which; the pieces of a sharded model only compute together."""
    objective = Objective(model, setting.recipe.task, setting.components)
    objective.on_device = getattr(setting.splits["train"], "on_device", objective.on_device)
    if not setting.sharded:
        fetch = Fetch(setting.splits["train"], setting.train.seed)
        device = setting.accelerator.device
        objective.others = functools.partial(a_few_batches, fetch, device)
    return objective


def build_reduction(train: Train, called: nn.Module, world: World, micro_batch: int) -> Reduction:
    """How gradients become one."""
    if train.reduction == "exact":
        slots = train.global_batch // micro_batch
        return ExactReduction(called, world, train.global_batch, slots)
    return FastReduction(called, world, whole=train.accumulate == "whole")


AnySampler = Sampler | StreamSampler | LaneSampler


def build_sampler(setting: Setting, state: TrainState) -> AnySampler:
    """The order of the data."""
    split, train = setting.splits["train"], setting.train
    batch, size = train.global_batch, state.micro_batch
    if is_stream(split):
        return sampler_of(split)(split, batch, size, train.seed, state.stream)
    return Sampler(len(split), batch, size, train.seed, getattr(split, "weights", None))


def check_workers(setting: Setting, sampler: AnySampler, evaluation: Evaluation, step: int) -> None:
    """What all workers of this node keep ready fits into its shared memory, by the first batch of
    training and of evaluation.

    Raises:
        TrainError: it does not.
    """
    train, world = setting.train, setting.world
    if not train.num_workers:
        return
    piece = next(iter(sampler.steps(step, step + 1, world.rank, world.size)))
    batches = [Fetch(setting.splits["train"], train.seed)[piece][1], *evaluation.first_batch()]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or world.size)
    check_shared_memory(batches, train.num_workers, ranks)


def build_loader(
    setting: Setting, sampler: AnySampler, step: int, steps: int, parts: int
) -> Loader:
    """This rank's micro-batches from `step` on, each in so many parts."""
    train, world = setting.train, setting.world
    return Loader(
        setting.splits["train"],
        sampler.steps(step, steps, world.rank, world.size),
        train.seed,
        train.num_workers,
        pin_memory=setting.accelerator.device.type == "cuda",
        parts=parts,
    )


def build_evaluation(
    setting: Setting, model: Model, steps_per_epoch: int | None, last: int, parts: int
) -> Evaluation:
    """The evaluation of the model, or of its moving average, on `val`."""
    train, averaged = setting.train, model.averaged
    if train.evaluate.patience is not None and setting.splits.get("val") is None:
        raise ComponentError(
            f"{setting.components.dataset}: there is no split 'val' to evaluate on, and"
            " train.evaluate.patience counts evaluations."
        )
    evaluated = model.objective
    if averaged is not None:
        evaluated = build_objective(setting, averaged)
    every = evaluated_every(train.evaluate.every, bool(train.epochs), steps_per_epoch or last)
    return Evaluation(
        # Once is enough for a rehearsal, whose second life shows a restore.
        split=None if setting.plan.rehearsal > 1 else setting.splits.get("val"),
        objective=evaluated,
        train=train,
        every=every,
        last=last,
        batch=max(1, (train.evaluate.batch or model.state.micro_batch) // parts),
        world=setting.world,
        accelerator=setting.accelerator,
        heartbeat=setting.heartbeat,
        replicated=setting.world.size > 1 and not setting.sharded,
    )


def build_speed(setting: Setting, model: Model, parts: int) -> Speed:
    """What measures this rank. FLOPs are counted where a device's peak is known, by the first
    micro-batch; not of a sharded model, whose pieces only compute together."""
    train, device, objective = setting.train, setting.accelerator.device, model.objective
    speed = Speed(device, tokens=objective.task == "language_modeling")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    in_tf32 = train.tf32 and train.precision == "fp32"
    peak = peak_flops(name, "tf32" if in_tf32 else train.precision)
    if peak and not setting.sharded:
        samples = max(1, model.state.micro_batch // parts)
        batch = first_batch(Fetch(setting.splits["train"], train.seed), samples)
        with setting.accelerator.autocast():
            speed.flops = sample_flops(objective, to_device(batch, device), samples)
        speed.peak = peak * setting.world.size
    return speed


def build_lease(setting: Setting) -> Lease:
    """The attempt's hold on its run."""
    checkpoint = setting.recipe.checkpoint
    here = environment_of(
        setting.accelerator.device,
        setting.world.size,
        setting.train.compile,
        setting.plan.libraries.installed(),
    )
    if setting.world.rank == 0:
        packages_here()  # now, and not while the first commit waits for it
    return Lease(
        setting.store,
        setting.start.head,
        data=setting.data.facts,
        environment=here,
        found=functools.partial(found_here, setting.plan, setting.revisions, here),
        keep=Keep(checkpoint.keep, checkpoint.keep_every.steps if checkpoint.keep_every else None),
        folder=setting.folder if checkpoint.durable else None,
    )


def build_schedule(setting: Setting, lease: Lease, steps_per_epoch: int) -> SaveSchedule:
    """When to save, by what the attempts before have seen, and what sending costs here."""
    record, began = setting.start.record, clock.now()

    def worth() -> float:
        *_, own = AttemptRecord(""), *lease.record.attempts
        per_byte = usd_per_byte(own.cloud or "", setting.plan.address)
        return seconds_for(per_byte, own.usd_per_hour)

    return SaveSchedule(
        setting.recipe.checkpoint.every,
        steps_per_epoch,
        uptime=lambda: mean_uptime(record.uptime + clock.now() - began, record.losses),
        clock=clock.boot_seconds,
        alone=record.last_save,
        worth=worth,
    )


def begin_log(setting: Setting, lease: Lease, model: Model, steps: int, parts: int) -> JsonlTracker:
    """Begin to log, and tell people, and the record, where this attempt begins and what it computes
    again."""
    plan, start, step = setting.plan, setting.start, model.state.step
    was_here = setting.folder.metrics.exists()
    lease.check()
    lease.restore_points(step)
    tracker = JsonlTracker(setting.folder.path)
    config = {
        "run": plan.run,
        "attempt": lease.attempt,
        "recipe": plan.recipe,
        "steps": steps,
        "environment": lease.environment,
        "digest": plan.digest,
        "code": dict(plan.code),
        "version": plan.version,
        "data_revision": revision_of(setting.splits["train"]),
    }
    with needed(setting.folder.path):
        dropped = tracker.start(config, step)
    own = lease.record.attempts[-1]  # which may have begun before, on this machine
    lease.note(resumed_step=step, other_data=str(setting.data) or None)
    lease.note(trained_from=own.trained_from or clock.now())
    if dropped is not None:
        recomputed, lost = dropped.last - step, round(dropped.seconds, 3)
        lease.note(steps_recomputed=recomputed, seconds_lost=lost)
    elif was_here:  # elsewhere nobody knows what a machine that is gone had computed
        lease.note(steps_recomputed=0, seconds_lost=0.0)
    start.say(lease.environment, model.state, parts)
    say_changes(setting, model, steps)
    look_offline(plan, setting.revisions)
    if start.checkpoint is not None:
        say_moved(setting.revisions, start.record.lock)
    return tracker


def say_changes(setting: Setting, model: Model, steps: int) -> None:
    """Tell people, before a step is trained, what is not as they may think."""
    finished, state, dataset = (
        setting.start.record.finished,
        model.state,
        setting.components.dataset,
    )
    before = state.steps or (finished.step if finished else 0)
    if jump := rate_jump(setting.train, state.step, before, steps):
        log.warning("%s", jump)
    if still := evaluating(model.objective.model):
        stay = "%s: in evaluation mode while the run trains: %s."
        log.info(
            stay, setting.components.model, ", ".join(still[:5]) + (", ..." if still[5:] else "")
        )
    if setting.splits.get("val") is None and setting.train.evaluate.every is not None:
        given = ", ".join(map(str, setting.splits))
        log.warning("train.evaluate: nothing is evaluated, %s gives only %s.", dataset, given)


def build_budget(limits: Limits, checkpointer: Checkpointer, world: World) -> Callable[[], str]:
    """The sentence that ends the run before its budget is exceeded, empty while there is some
    left."""
    if world.rank or limits == Limits():
        return lambda: ""
    attempts = checkpointer.lease.record.attempts
    left = spending.allowance(limits, attempts, clock.now())
    return spending.Watch(left, clock.now, lambda: checkpointer.last_save().usual)
