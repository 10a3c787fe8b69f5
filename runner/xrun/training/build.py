"""Plan -> the parts of one rank's training, put together and restored."""

from __future__ import annotations

import functools
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from .. import component
from ..checkpoint import manifest as checkpoint
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.manifest import Keep
from ..checkpoint.schedule import SaveSchedule, mean_uptime
from ..checkpoint.state import TrainState
from ..components import use_project
from ..data.loader import Fetch, Loader, check_shared_memory, check_splits
from ..data.randomness import INIT, seed_generators
from ..data.sampler import Sampler
from ..data.stream import StreamSampler, check_stream, is_stream
from ..errors import CheckpointError, ComponentError, LeaseLost, TrainError, XrunError
from ..machine.heartbeat import HEARTBEAT, Heartbeat
from ..machine.stop import StopFlag
from ..recipe.schema import Budget, Train
from ..run import points as point_log
from ..run import spending
from ..run.folder import RunFolder, open_store
from ..run.plan import Plan
from ..store.protocol import Head, Store
from ..tracker.jsonl import JsonlTracker
from . import export as model_folder
from .evaluate import Evaluation, check_validation
from .loop import Training
from .micro_batch import find_micro_batch
from .objective import Objective
from .optimizer import build_optimizer
from .reduction import ExactReduction, FastReduction, Reduction
from .sharding import checkpoint_activations, shard
from .warm_start import warm_start
from .world import join_world

log = logging.getLogger("xrun")


def build_training(
    plan: Plan, attempt: str, stop: StopFlag, store: Store | None = None
) -> Training:
    """Everything a rank needs, with the newest checkpoint's state in it; `store` is the attempt's,
    if it is open already.

    Raises:
        XrunError: whatever a person can act on.
    """
    return _Builder(plan, attempt, stop, store or open_store(plan, attempt)).build()


class _Builder:
    """Builds in the order in which parts need each other; an attribute per part."""

    def __init__(self, plan: Plan, attempt: str, stop: StopFlag, store: Store) -> None:
        self.plan, self.attempt, self.stop, self.store = plan, attempt, stop, store
        self.recipe = plan.load_recipe()
        self.train = self.recipe.train
        self.project = Path(plan.project)
        self.folder = RunFolder(plan.folder)
        self.heartbeat = Heartbeat(Path(os.environ[HEARTBEAT]) if HEARTBEAT in os.environ else None)

    def build(self) -> Training:
        """Put the parts together."""
        use_project(self.project)
        self.sharded = self.train.sharding == "fsdp"
        self.world = join_world(self.sharded)
        configure_torch(self.train)
        self.head, found, paths = self._newest()
        self.splits = self._splits()
        self.accelerator = self._accelerator()
        self.objective = Objective(self._model(), self.recipe.task)
        numbers: Mapping[str, Any] = found.numbers if found else {}
        micro_batch = self._micro_batch(numbers)
        model = self._prepared()
        self.state = TrainState(
            self.objective,
            build_optimizer(self.train, self.objective),
            self._average(),
            self.accelerator.scaler,
            micro_batch,
        )
        if found is not None:
            checkpoint.load(self.state, found, paths)
        self.split = self.world.from_first(self._split())
        self.state.exact &= self.split == 1
        return self._training(model, found)

    def _training(self, model: nn.Module, found: checkpoint.Checkpoint | None) -> Training:
        state, train, world = self.state, self.train, self.world
        sampler = self._sampler()
        steps = train.steps or (train.epochs or 0) * (sampler.steps_per_epoch or 0)
        tracker = self._tracker(steps)
        checkpointer = self._checkpointer(sampler.steps_per_epoch or 1, tracker, found)
        checkpointer.note(steps_per_epoch=sampler.steps_per_epoch)
        return Training(
            train=train,
            steps=steps,
            state=state,
            objective=self.objective,
            reduction=self._reduction(model),
            accelerator=self.accelerator,
            sampler=sampler,
            loader=Loader(
                self.splits["train"],
                sampler.steps(state.step, steps, world.rank, world.size),
                train.seed,
                train.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
            ),
            evaluation=self._evaluation(sampler.steps_per_epoch, steps),
            checkpointer=checkpointer,
            tracker=tracker,
            stop=self.stop,
            world=world,
            heartbeat=self.heartbeat,
            fresh=found is None,
            split=self.split,
            budget=self._budget(checkpointer),
            export=functools.partial(self._export, sampler.steps_per_epoch),
        )

    def _newest(self) -> tuple[Head, checkpoint.Checkpoint | None, list[Path]]:
        """The head and the newest whole checkpoint, chosen by the first process."""
        chosen: Any = None
        if self.world.rank == 0:
            try:
                chosen = self._choose()
            except XrunError as error:
                chosen = error
        chosen = self.world.from_first(chosen)
        if isinstance(chosen, XrunError):
            raise chosen
        head, found, paths = chosen
        return head, found, self._on_this_node(head, found, paths)

    def _on_this_node(
        self, head: Head, found: checkpoint.Checkpoint | None, paths: list[Path]
    ) -> list[Path]:
        """Where the chosen checkpoint's files lie here: each node has a disk of its own, and its
        first process fetches first."""
        if found is None or self.world.size == 1:
            return paths
        elsewhere, first = (
            os.environ.get("GROUP_RANK", "0") != "0",
            os.environ.get("LOCAL_RANK", "0") == "0",
        )
        store = self.store if head.record.get("checkpoints") else self._forked_store()
        for turn in (True, False):
            if elsewhere and first == turn:
                paths = [store.fetch(file) for file in found.files.values()]
            self.world.wait()
        return paths

    def _choose(self) -> tuple[Head, checkpoint.Checkpoint | None, list[Path]]:
        head = self.store.head()
        if head is None or head.attempt != self.attempt:
            raise LeaseLost(
                f"The run {self.plan.run} was taken over by the attempt"
                f" {head.attempt if head else '(none)'}."
            )
        head, found, paths = checkpoint.newest(self.store, head)
        if found is None and self.plan.fork:
            return head, *self._fork()
        return head, found, paths

    def _fork(self) -> tuple[checkpoint.Checkpoint, list[Path]]:
        """The newest checkpoint of the run that this one starts from."""
        store = self._forked_store()
        head = store.head()
        found, paths = checkpoint.newest(store, head)[1:] if head else (None, [])
        if found is None:
            raise CheckpointError(f"--fork {self.plan.fork}: that run has no checkpoint.")
        log.info("Forked from %s at step %d.", self.plan.fork, found.step)
        return found, paths

    def _forked_store(self) -> Store:
        return open_store(
            replace(self.plan, run=self.plan.fork, store=self.plan.fork_store),
            self.attempt,
            create=False,
        )

    def _splits(self) -> dict[str, Any]:
        dataset = self.recipe.dataset
        build = component.load_build("datasets", dataset.name, self.project)
        seed_generators(self.train.seed, INIT, 1)
        splits = call_build(f"datasets/{dataset.name}.py", build, dataset.args)
        check_splits(splits, dataset.name)
        check_stream(dataset.name, splits["train"], self.train.epochs)
        check_validation(splits.get("val"), dataset.name)
        return splits

    def _model(self) -> nn.Module:
        """The model as built from the recipe's seed, the same on every process."""
        ref = self.recipe.model
        build = component.load_build("models", ref.name, self.project)
        seed_generators(self.train.seed, INIT, 0)
        args = {**ref.args, "trust_remote_code": True} if ref.trust_remote_code else ref.args
        model = call_build(f"models/{ref.name}.py", build, args)
        if not isinstance(model, nn.Module):
            raise ComponentError(
                f"models/{ref.name}.py: build() must return a torch.nn.Module (got"
                f" {type(model).__name__})."
            )
        if ref.init_from and not self.head.record.get("checkpoints"):
            warm_start(model, ref.init_from, self.project)
        return model.train()

    def _accelerator(self) -> Accelerator:
        precision = {"fp32": "no"}.get(self.train.precision, self.train.precision)
        if precision == "fp16" and not torch.cuda.is_available():
            raise TrainError("train.precision: fp16 needs a GPU.", "Use bf16 or fp32 here.")
        replicas = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        cpu = not torch.cuda.is_available()
        if self.world.size == 1 and not self.sharded:
            os.environ.pop(
                "LOCAL_RANK", None
            )  # by this Accelerate takes one process for several, and replicates its model
        return Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            kwargs_handlers=[replicas],
            step_scheduler_with_optimizer=False,
        )

    def _micro_batch(self, numbers: Mapping[str, Any]) -> int:
        """What the run has settled on, what the recipe says, or the largest that fits."""
        settled = numbers.get("micro_batch") or (
            self.train.micro_batch if self.train.micro_batch != "auto" else 0
        )
        if not settled:
            fetch = Fetch(self.splits["train"], self.train.seed)
            settled = find_micro_batch(
                self.train, self.objective, fetch, self.accelerator, self.world
            )
            log.info("micro_batch: auto found %d.", settled)
        slots, rest = divmod(self.train.global_batch, settled)
        if rest or slots % self.world.size:
            raise TrainError(
                f"The global batch of {self.train.global_batch} is cut into {slots} micro-batches"
                f" of {settled}, which {self.world.size} processes cannot share evenly.",
                "Use a number of processes that divides it, or set train.micro_batch.",
            )
        return int(settled)

    def _split(self) -> int:
        """In how many parts a micro-batch is computed: as the entrypoint says, else as was right on
        such a machine before."""
        if asked := int(os.environ.get("XRUN_SPLIT") or 0):
            return asked
        here = {"memory": self._memory(), "processes": self.world.size}
        before = [
            a
            for a in self.head.record.get("attempts", [])
            if all(a.get(name) == value for name, value in here.items())
        ]
        return int(before[-1].get("split", 1)) if before else 1

    def _memory(self) -> str:
        """What kind of memory a micro-batch has to fit into."""
        if self.accelerator.device.type != "cuda":
            return (
                f"{platform.machine()}"
                f" {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB"
            )
        device = torch.cuda.get_device_properties(self.accelerator.device)
        return f"{device.name} {device.total_memory >> 30} GiB"

    def _prepared(self) -> nn.Module:
        """Device, precision, activation checkpointing, compilation, replication or sharding."""
        if self.train.activation_checkpointing:
            checkpoint_activations(self.objective.model)
        if self.train.compile:
            self.objective.model.compile()
        alone = self.sharded or self.train.reduction == "exact"
        model = self.accelerator.prepare_model(self.objective, evaluation_mode=alone)
        if self.sharded:
            shard(self.objective, self.accelerator.device.type)
        if (
            self.world.size > 1
            and not alone
            and not isinstance(model, nn.parallel.DistributedDataParallel)
        ):
            raise TrainError(
                f"Accelerate does not see the {self.world.size} processes; nothing would sum their"
                " gradients."
            )
        return model

    def _average(self) -> nn.Module | None:
        if self.train.ema is None:
            return None
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        return AveragedModel(
            self.objective.model,
            multi_avg_fn=get_ema_multi_avg_fn(self.train.ema),
            use_buffers=True,
        )

    def _reduction(self, model: nn.Module) -> Reduction:
        if self.train.reduction == "exact":
            slots = self.train.global_batch // self.state.micro_batch
            return ExactReduction(model, self.world, self.train.global_batch, slots)
        return FastReduction(model, self.world)

    def _sampler(self) -> Sampler | StreamSampler:
        split, train, state = self.splits["train"], self.train, self.state
        if is_stream(split):
            return StreamSampler(
                split, train.global_batch, state.micro_batch, train.seed, state.stream
            )
        sampler = Sampler(
            len(split),
            train.global_batch,
            state.micro_batch,
            train.seed,
            getattr(split, "weights", None),
        )
        if train.num_workers:
            piece = sampler.step(state.step, self.world.rank, self.world.size)[0]
            check_shared_memory(Fetch(split, train.seed)[piece][1], train.num_workers)
        return sampler

    def _evaluation(self, steps_per_epoch: int | None, last: int) -> Evaluation:
        every = self.train.evaluate.every
        epochs = every.epochs if every is not None else (1 if self.train.epochs else None)
        steps = (
            every.steps
            if every is not None and every.steps
            else epochs and epochs * (steps_per_epoch or last)
        )
        averaged: Any = self.state.ema
        return Evaluation(
            split=self.splits.get("val"),
            objective=(
                Objective(averaged.module, self.recipe.task)
                if averaged is not None
                else self.objective
            ),
            train=self.train,
            every=steps,
            last=last,
            batch=max(1, (self.train.evaluate.batch or self.state.micro_batch) // self.split),
            world=self.world,
            accelerator=self.accelerator,
            heartbeat=self.heartbeat,
            replicated=self.world.size > 1 and not self.sharded,
        )

    def _tracker(self, steps: int) -> JsonlTracker | _Silent:
        if self.world.rank:
            return _Silent()
        self.was_here = self.folder.metrics.exists()
        self._restore_points()
        tracker = JsonlTracker(self.folder.path)
        config = {
            "run": self.plan.run,
            "attempt": self.attempt,
            "recipe": self.plan.recipe,
            "steps": steps,
            "environment": self._environment(),
            "digest": self.plan.digest,
            "code": dict(self.plan.code),
            "version": self.plan.version,
            "data_revision": getattr(self.splits["train"], "revision", None),
        }
        self.dropped = tracker.start(config, self.state.step)
        return tracker

    def _restore_points(self) -> None:
        """The log of the run as the store has it: this machine may never have seen the run, or not
        all of it."""
        if self.plan.store:
            pieces = self.head.record.get("points", [])
            pieces = point_log.restore(self.store, self.folder.metrics, pieces, self.state.step)
            self.head = replace(self.head, record={**self.head.record, "points": pieces})

    def _checkpointer(
        self, steps_per_epoch: int, tracker: Any, found: checkpoint.Checkpoint | None
    ) -> Checkpointer:
        started, attempts = time.time(), self.head.record.get("attempts", [])
        seconds = sum(a.get("ended", a["started"]) - a["started"] for a in attempts[:-1])
        losses = sum(a.get("kind") == "outside" for a in attempts)
        schedule = SaveSchedule(
            self.recipe.checkpoint.every,
            steps_per_epoch,
            uptime=lambda: mean_uptime(seconds + time.time() - started, losses),
            clock=time.monotonic,
        )
        keep_every = self.recipe.checkpoint.keep_every
        checkpointer = Checkpointer(
            self.state,
            self.store,
            head=self.head,
            digest=self.plan.digest,
            attempt=self.attempt,
            schedule=schedule,
            keep=Keep(self.recipe.checkpoint.keep, keep_every.steps if keep_every else None),
            tracker=tracker,
            environment=self._environment(),
            rank=self.world.rank,
            writers=self.world.size if self.sharded else 1,
            group=self.world.saving,
            points=self.folder.metrics if self.plan.store else None,
            logs=self.folder.logs(self.attempt) if self.plan.store else None,
        )
        if self.world.rank == 0:
            self._say_where(found, checkpointer)
        return checkpointer

    def _say_where(self, found: checkpoint.Checkpoint | None, checkpointer: Checkpointer) -> None:
        """Tell people, and the record, where this attempt begins and what it computes again."""
        facts: dict[str, Any] = {
            "resumed_step": self.state.step,
            "memory": self._memory(),
            "split": self.split,
        }
        if self.split > 1:
            self._say_split()
        if (
            self.was_here
        ):  # elsewhere nobody knows what a machine that is gone had computed after its last commit
            facts |= {"steps_recomputed": 0, "seconds_lost": 0.0}
        if self.dropped is not None:
            facts |= {
                "steps_recomputed": self.dropped.last - self.state.step,
                "seconds_lost": round(self.dropped.seconds, 3),
            }
        checkpointer.note(**facts)
        if found is None:
            log.info("Starting at step 0: no checkpoint exists.")
            return
        log.info("Going on from step %d.", self.state.step)
        if changed := checkpoint.differences(
            found.conditions, {**self._environment(), "arithmetic": checkpoint.ARITHMETIC}
        ):
            log.warning(
                "From step %d on bits may differ from an undisturbed run: %s.",
                self.state.step,
                changed,
            )

    def _say_split(self) -> None:
        """What a micro-batch in parts changes."""
        statistics = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            for module in self.objective.modules()
        )
        log.warning(
            "From step %d on each micro-batch of %d is computed in %d parts: the run is no longer"
            " exact. Samples, their order and sums are the same; the forward pass's random"
            " numbers%s and the last bits are not.",
            self.state.step,
            self.state.micro_batch,
            self.split,
            ", its batch statistics" if statistics else "",
        )

    @functools.cache  # noqa: B019  one builder per process
    def _environment(self) -> dict[str, Any]:
        cuda = self.accelerator.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
        }

    def _budget(self, checkpointer: Checkpointer) -> Callable[[], str]:
        """The sentence that ends the run before its budget is exceeded, empty while there is some
        left."""
        if self.world.rank or self.recipe.budget == Budget():
            return lambda: ""
        left = spending.allowance(
            self.recipe.budget.model_dump(), self.head.record["attempts"], time.time()
        )
        return lambda: left.spent(
            time.time(), spending.TIDY_SECONDS + checkpointer.last_save().usual
        )

    def _export(self, steps_per_epoch: int | None, state: TrainState) -> dict[str, Any]:
        """Write the final weights (the averaged ones where there are); what the record says of
        them."""
        model: Any = state.ema.module if state.ema is not None else self.objective.model
        if self.sharded:
            model = model_folder.full_copy(model, self._model)
        if self.world.rank:
            return {}
        metrics = self.folder.metrics_now()
        facts = {
            "samples": state.samples,
            "step": state.step,
            "metrics": metrics,
            "steps_per_epoch": steps_per_epoch,
            "data_revision": getattr(self.splits["train"], "revision", None),
        }
        sha256 = model_folder.write(
            self.folder.model, model, self.plan, {**facts, **self._effort()}
        )
        revision = self.store.publish(
            self.folder.model, self.plan.run, f"{self.plan.run}: {state.step} steps"
        )
        return {
            **facts,
            "weights_sha256": sha256,
            **({"model_revision": revision} if revision else {}),
        }

    def _effort(self) -> dict[str, Any]:
        """What the run took, for the model card: attempts, how many of them were lost, dollars
        where they are known."""
        attempts = self.head.record.get("attempts", [])
        known = any("usd_per_hour" in attempt for attempt in attempts)
        lost = sum(attempt.get("kind") == "outside" for attempt in attempts)
        return {
            "attempts": len(attempts),
            "lost": lost,
            **({"usd": spending.dollars(attempts, time.time())} if known else {}),
        }


class _Silent:
    """The tracker of every process but the first."""

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Nothing."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def committed(self, step: int, head: str) -> None:
        """Nothing."""

    def last_commit(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def call_build(what: str, build: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    """Call a component's `build`; what it raises becomes one sentence; a failing network is left to
    be tried again."""
    try:
        return build(**args)
    except XrunError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, _FINAL):
            raise  # a network that fails now may not fail in the next attempt
        raise ComponentError(f"{what}: build() failed: {type(error).__name__}: {error}.") from error


def configure_torch(train: Train) -> None:
    """Threads as the entrypoint has set them, and deterministic kernels where the recipe asks for
    them."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    if not train.deterministic:
        return
    torch.set_deterministic_debug_mode(
        "error"
    )  # use_deterministic_algorithms would import torch.compile's half second first
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module of properties
    torch.backends.cudnn.benchmark = False
    if train.compile:
        import torch._inductor.config as inductor

        inductor.deterministic = True
