"""The training loop.

One pass of the loop: evaluate if it is time, begin a save if it is time, stop if somebody asked,
then one optimizer step. The checkpoint of a step is taken after its evaluation, so an attempt that
resumes there has nothing to repeat.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import clock
from ..backoff import Backoff
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.state import TrainState
from ..data.batch import Batch, to_device
from ..data.loader import Ahead, Loader, Piece
from ..data.randomness import LOOP, seed_generators
from ..data.sampler import MicroBatch
from ..errors import (
    AttemptEnd,
    DataExhausted,
    NonFiniteGradient,
    NonFiniteLoss,
    Stopped,
    StoppedOnPurpose,
    StoreError,
    StoreUnavailable,
)
from ..machine.heartbeat import Heartbeat
from ..machine.stop import SPARE_SECONDS, StopFlag
from ..recipe.schema import Train
from ..run import spending
from ..run.record import PAUSED, Finished
from ..tracker.protocol import Tracker
from .apart import check_apart
from .evaluate import Evaluation
from .export import say_wait
from .finite import FiniteGradients, named, read
from .micro_batch import enough_memory
from .objective import Objective
from .optimizer import (
    clip,
    gate,
    learning_rate,
    plain_step,
    scaled_step,
    set_learning_rate,
    unfuse,
)
from .reduction import Reduction
from .scalars import Scalars
from .speed import Speed
from .world import World

log = logging.getLogger("xrun")

LAST_SAVE_SECONDS = 3600.0
"""How long a finished training tries to commit its last state while the store is out of reach."""
LAST_SAVE_BACKOFF = Backoff(first=1.0, longest=1.0)
_WAY_OUT = (
    "Lower train.optimizer.lr, set train.clip_grad_norm, or look at the step's samples; --fork"
    " begins a changed recipe at this run's newest checkpoint, --new at step 0, which is better"
    " where the loss had grown before."
)


@dataclass
class Training:
    """The parts of one rank's training, and what it does with them.

    `tracker` is the first process's; `fresh` says that nothing is committed yet; `untried` is the
    step after which nothing has shown yet that the components work (-1: it has); each micro-batch
    is computed in so many `parts`; a step's data are fetched `ahead`, while the device computes the
    one before. After the step `pause` the run waits for its sweep. `budget` gives the sentence that
    ends the run once its budget is spent, `export` makes the final weights on the first process.
    """

    train: Train
    steps: int
    state: TrainState
    objective: Objective
    reduction: Reduction
    accelerator: Any
    loader: Loader
    sampler: Any
    evaluation: Evaluation
    checkpointer: Checkpointer
    tracker: Tracker | None
    stop: StopFlag
    world: World
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    fresh: bool = False
    untried: int = -1
    parts: int = 1
    ahead: bool = False
    pause: int | None = None
    speed: Speed = field(default_factory=Speed)
    budget: Callable[[], str] = lambda: ""
    clock: Callable[[], float] = time.perf_counter
    export: Callable[[TrainState, Mapping[str, Any]], Finished | None] = lambda state, early: (
        Finished(state.step, **early)
    )
    _looked: float = 0.0
    _scalars: Scalars = field(default_factory=Scalars)
    _finite: FiniteGradients = field(init=False)
    _gated: bool = False
    _counted: Callable[[], list[float]] | None = None
    """What gives the next step's count, where it was fetched ahead."""
    _factor: tuple[tuple[float, torch.dtype], Tensor] | None = None
    """What the last loss was multiplied with, and as a tensor: most steps share theirs."""
    _optimizer_step: Callable[[], Any] = lambda: None

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Stopped: asked to; the state is committed if there was time.
            StoppedOnPurpose: the budget is spent, or the run pauses; the state is committed.
            ComponentError: the model or the dataset has a mistake that shows in the first step.
            TrainError: it cannot go on.
            StoreError: the last state could not be committed.
        """
        proving = self.objective.components.proving(self.objective.task, self._is_untried)
        self.objective.check_after_forward()
        self.objective.doubtful = self.untried >= 0
        if self.state.step == self.untried and self.train.sharding != "fsdp":
            check_apart(self.objective)  # pieces of a model only compute together
        with enough_memory(self.state.micro_batch, self.parts), proving:
            self._train()

    def _is_untried(self) -> bool:
        """Whether the run computes what it has never computed: its first step or evaluation."""
        state = self.state
        first_evaluation = state.evaluated < 0 and self.evaluation.due(state.step)
        return state.step == self.untried or first_evaluation

    def _train(self) -> None:
        state, batches, began = self.state, Ahead(self.loader), self.clock()
        self._looked = time.perf_counter()
        self.reduction.begin(state.optimizer)
        self._optimizer_step = plain_step(state.optimizer)
        trained = [p for group in state.optimizer.param_groups for p in group["params"]]
        self._finite = FiniteGradients(trained, self._unfuse)
        self._gated = state.scaler is None and gate(state.optimizer, self._finite.verdict)
        save, stop = float(self.fresh), 0.0
        while True:
            if self.evaluation.due(state.step) and state.evaluated != state.step:
                metrics = self.evaluation.run(self._must_end)
                if metrics and not self.evaluation.decides(metrics):
                    self._save_before_the_error()
                if metrics is None:
                    stop = 1.0
                elif self._is_best(metrics):
                    save = save or self.world.broadcast(self._want_best())
            if save and not stop:
                self._remember_stream()
                self.checkpointer.begin()
            if stop:
                self._leave()
            if state.step >= self.steps or self.evaluation.gives_up(state.waited):
                break
            if self.pause is not None and state.step >= self.pause:
                self._pause()
            pieces = self._next(batches)
            losses, count = self._gradients(pieces)
            further = self._scalars.take()
            # What each process has and wants; all of them then do what any of them wants. They tell
            # each other while their devices compute.
            unused, scalars, samples, save, stop = self.world.all_reduce_sum(
                [
                    float(len(self.reduction.unused)),
                    float(len(further)),
                    sum(piece.digest() for piece, _ in pieces if piece.weight),
                    self.checkpointer.due(state.step + 1, self.stop.seconds_left()),
                    self._must_end(),
                ]
            )
            if unused:
                self.reduction.drop_unused()
            every = self._finite.agreed(losses, self.world, gates=self._gated)
            norm = self._step() if self._gated else self._clip()
            if self.ahead and not stop and state.step + 1 < self.steps:
                self.speed.looked_ahead(batches.look)
                self._counted = self._count_soon(batches.seen)
            numbers = read([*every, *norm, *further])  # the one time that the host waits for it
            each, told = len(losses) + 1, (len(losses) + 1) * self.world.size
            rows = [numbers[start : start + each] for start in range(0, told, each)]
            norms, more = numbers[told : told + len(norm)], numbers[told + len(norm) :]
            loss, fault = self.reduction.loss([row[:-1] for row in rows]), max(r[-1] for r in rows)
            self.checkpointer.check()
            if fault or not math.isfinite(loss):
                self._check_finite(loss / count, fault)
            if not self._gated:
                self._optimize(fault)
            own = self._scalars.means(more, self.world) if scalars else {}
            self.speed.stepped(pieces[0][0].total, count)
            self._stepped(pieces[0][0].total, loss / count, int(samples), norms, own)
            self.heartbeat.beat()
            now = self.clock()
            state.seconds, began = state.seconds + now - began, now
        self._finish()

    def _unfuse(self) -> None:
        """A gradient is sparse: torch has no fused step for that, which could be gated."""
        unfuse(self.state.optimizer)
        self._gated = False

    def _next(self, batches: Ahead) -> list[Piece]:
        self.speed.begin()
        pieces = batches.next()
        self.speed.fetched()
        if pieces is None:
            raise DataExhausted(
                f"The data ended at step {self.state.step}, the recipe wants {self.steps}."
            )
        return pieces

    def _gradients(self, pieces: list[Piece]) -> tuple[list[Tensor], int]:
        """The gradients of the global batch; the losses of this process's micro-batches, and what
        their sum is a mean over."""
        count = self._count(pieces)
        self._drop_gradients()
        losses = []
        for piece, batch in pieces:
            seed_generators(self.train.seed, LOOP, self.state.step, piece.slot)
            factor = piece.weight * self.reduction.scale / count
            with self.reduction.micro_batch(piece):
                losses.append(self._compute(piece, batch, factor))
        self.reduction.finish(pieces)
        return losses, count

    def _check_finite(self, loss: float, fault: float) -> None:
        """Before anything is made of a step; all processes have been told the same."""
        step = self.state.step + 1
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The loss of step {step} is {loss}; the optimizer has not stepped on it.", _WAY_OUT
            )
        if fault and self.state.scaler is None:  # a GradScaler leaves such steps out by itself
            flags = self.world.all_reduce_sum(self._finite.flags())
            names = self.state.parameter_names()
            where = named(
                names[id(p)] for p, flag in zip(self._finite.parameters, flags, strict=True) if flag
            )
            raise NonFiniteGradient(
                f"The loss of step {step} is {loss:.6g}, but the gradient of {where} is not"
                " finite; the optimizer has not stepped on it.",
                "Look in the model for what has no derivative at 0, such as sqrt, norm or log. "
                + _WAY_OUT,
            )

    def _step(self) -> list[Tensor]:
        """One step of the optimizer; the norm of the gradient, if it is clipped. Where the verdict
        gates it, nothing here waits for the device."""
        norm = self._clip()
        self._optimize()
        return norm

    def _stepped(
        self,
        total: int,
        loss: float,
        samples: int,
        norms: list[float],
        own: Mapping[str, float],
    ) -> None:
        """A step is done, on a global batch of `total` samples, whose digest is `samples`; `own`
        are the model's own scalars."""
        state = self.state
        rate = state.optimizer.param_groups[0]["lr"]
        state.step += 1
        state.samples += total
        if self._is_logged(state.step):
            values: dict[str, Any] = {f"train/{name}": value for name, value in own.items()}
            values |= {"train/loss": loss, "train/samples": f"{samples:014x}", "train/lr": rate}
            if norms:
                values["train/grad_norm"] = norms[0]
            self._log(values | self.speed.values(last=state.step == self.steps))

    def _is_logged(self, step: int) -> bool:
        return step % self.train.log_every == 0 or step == self.steps

    def _compute(self, piece: MicroBatch, batch: Batch, factor: float) -> Tensor:
        """Forward and backward of one micro-batch, in parts where it does not fit into memory; its
        loss."""
        if self.objective.compiled is not None:
            whole, rest = divmod(self.state.micro_batch, self.parts)
            self.objective.whole = not rest and piece.samples == whole * self.parts
        if self.parts == 1:
            return self._loss(batch, piece.samples, factor)
        losses, parts = [], batch  # the loader has cut it
        for number, part in enumerate(parts, 1):
            with self.reduction.part(last=number == len(parts)):
                losses.append(self._loss(part.batch, part.samples, factor * part.counts))
        return torch.stack(losses).sum()

    def _loss(self, batch: Batch, samples: int, factor: float) -> Tensor:
        """Forward and backward of so many samples that are computed at once; their loss, which is 0
        where they do not count."""
        sums = self.reduction.model(to_device(batch, self.accelerator.device), samples)
        loss = sums["loss"]
        self._backward(loss, factor)
        if len(sums) > 1 and factor and self._is_logged(self.state.step + 1):
            self._scalars.add(samples, sums)
        return loss.detach() if factor else torch.zeros_like(loss)

    def _backward(self, loss: Tensor, factor: float) -> None:
        """The gradient of `factor * loss`, without a product in the graph, and without
        Accelerator's division by 1."""
        scaled = loss if self.state.scaler is None else self.state.scaler.scale(loss)
        if self._factor is None or self._factor[0] != (factor, loss.dtype):
            self._factor = (factor, loss.dtype), torch.full_like(loss, factor)
        scaled.backward(self._factor[1])

    def _count(self, pieces: list[Piece]) -> int:
        """What the step's loss is a mean over, on all processes together."""
        if self.objective.counts_samples:
            return pieces[0][0].total
        counted, self._counted = self._counted, None
        if counted is None:
            counted = self.world.sums_soon([self._own_counts(pieces)])
        return int(counted()[0]) or 1

    def _count_soon(self, pieces: list[Piece] | None) -> Callable[[], list[float]] | None:
        """Begin to count a step that was fetched ahead, while the device computes the one before.
        What is wrong with its labels is said when it is its turn."""
        if pieces is None or self.objective.counts_samples:
            return None
        try:
            own = self._own_counts(pieces)
        except Exception:  # a split may give anything
            return None
        return self.world.sums_soon([own])

    def _own_counts(self, pieces: list[Piece]) -> int:
        return sum(self._own_count(piece, batch) for piece, batch in pieces if piece.weight)

    def _own_count(self, piece: MicroBatch, batch: Batch) -> int:
        if self.parts == 1:
            return self.objective.count(batch, piece.samples)
        return sum(self.objective.count(part.batch, part.samples) for part in batch if part.counts)

    def _must_end(self) -> bool:
        """Whether somebody wants this process to stop now, or the budget does."""
        return self._must_stop() or bool(self.budget())

    def _must_stop(self) -> bool:
        """Whether somebody wants this process to stop, and there is no time for as much again as
        since it was asked before."""
        before, self._looked = self._looked, time.perf_counter()
        return bool(self.stop) and self.stop.is_due(
            self.checkpointer.last_save().lead + self._looked - before
        )

    def _clip(self) -> list[Tensor]:
        """Scale the gradient down to the recipe's largest norm, if it names one; the norm."""
        if self.state.scaler is not None:
            self.state.scaler.unscale_(self.state.optimizer)
        if self.train.clip_grad_norm is None:
            return []
        norm = clip(self.objective.parameters(), self.train.clip_grad_norm)
        return [norm.full_tensor() if hasattr(norm, "full_tensor") else norm]

    def _optimize(self, fault: float = 0.0) -> None:
        """The optimizer's step. One with a `fault` comes here with a GradScaler only."""
        state = self.state
        self.checkpointer.before_step()
        set_learning_rate(state.optimizer, learning_rate(self.train, state.step, self.steps))
        if state.scaler is not None:
            scaled_step(state.scaler, self._optimizer_step, fault)
            if fault:
                self._finite.verdict.zero_()  # of the next step
        else:
            self._optimizer_step()
        if state.ema is not None:
            state.ema.update()  # type: ignore[operator]  # an Average's method

    def _drop_gradients(self) -> None:
        """What `zero_grad` does, in a hundredth of its time.

        Not right after the step: with nothing above them the C library gives their memory back to
        the kernel, to ask for it anew.
        """
        for p in self._finite.parameters:
            p.grad = None

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Log an evaluation's metrics; says whether they are the best so far."""
        state = self.state
        state.evaluated = state.step
        if not metrics:
            log.warning(
                "step %d: every label of the split 'val' is -100: nothing was evaluated, and no"
                " checkpoint is the best one. Give it labels that count, or leave the split out.",
                state.step,
            )
            return False
        better = self.evaluation.better(metrics, state.best)
        state.waited = 0 if better else state.waited + 1
        if better:
            state.best = self.evaluation.best(state.step, metrics)
        self._log({f"val/{name}": value for name, value in metrics.items()})
        values = (f"val/{name} {value:.4g}" for name, value in metrics.items())
        log.info("step %d: %s", state.step, ", ".join(values))
        return better

    def _save_before_the_error(self) -> None:
        """An evaluation without the recipe's metric ends the attempt: what was trained is kept, and
        evaluated again by the next one."""
        if self.world.broadcast(float(self.state.step > self._committed() + 1)):
            self._save_last()

    def _want_best(self) -> bool:
        """Ask for a save of the best state; says whether that is now. Only where the run needs it
        is a save on its way waited for, else a later state is saved."""
        if self.evaluation.keeps_best and self.checkpointer.busy:
            self.heartbeat.saving()
            self.checkpointer.wait()
        return self.checkpointer.want()

    def _log(self, values: Mapping[str, Any]) -> None:
        if self.tracker is not None:
            self.tracker.log(self.state.step, values)

    def _remember_stream(self) -> None:
        """The first process saves it; where each reads only its own, they tell it theirs."""
        stream = self.sampler.state(self.state.step)
        if not self.sampler.whole and (parts := self.world.gathered(stream)):
            stream = self.sampler.joined(parts)
        self.state.stream = stream

    def _save_now(self) -> bool:
        """Save this step, unless it is committed already, and wait; says whether it is
        committed."""
        self.heartbeat.saving()
        if not self.world.broadcast(self.checkpointer.is_current()):
            self._remember_stream()
            self.checkpointer.begin(alone=True)
        return bool(self.world.broadcast(self.checkpointer.is_current()))

    def _save_last(self) -> bool:
        """Save this step, again and again while the store is out of reach and there is time; says
        whether it is committed."""
        began, tries = self.clock(), 0
        while not self._save_now():
            tries += 1
            left = min(self.stop.seconds_left(), LAST_SAVE_SECONDS - (self.clock() - began))
            if not self.world.broadcast(bool(self.checkpointer.unavailable) and left > 0):
                return False
            log.warning(
                "Not committed yet: steps %d to %d.", self._committed() + 1, self.state.step
            )
            time.sleep(LAST_SAVE_BACKOFF.seconds(tries))
        return True

    def _commit_last(self) -> None:
        """See `_save_last`. Raises StoreError where it is not committed."""
        if not self._save_last():
            what = f"The last state, step {self.state.step}, could not be committed."
            if unavailable := self.world.broadcast(self.checkpointer.unavailable):
                raise StoreUnavailable(f"{what} {unavailable}")
            raise StoreError(what, "Start the same command again.")

    def _committed(self) -> int:
        return max(self.checkpointer.lease.committed_step, 0)

    def _leave(self) -> None:
        """Somebody asked to stop: save if that can be done before the machine goes, and go."""
        budget = self.world.broadcast(self.budget())
        left = self.world.all_reduce_min(self.stop.seconds_left())
        need = self.world.broadcast(self.checkpointer.last_save().least)
        if need >= left + SPARE_SECONDS:
            log.warning(
                "A save takes %.0f s and only %.0f s are left: the last commit counts.", need, left
            )
        else:
            self._note_end(budget)
            if not self._save_last():
                log.warning(
                    "The state of step %d could not be saved: the last commit stands.",
                    self.state.step,
                )
        log.info(
            "Stopped at step %d, step %d is committed.",
            self.state.step,
            self.checkpointer.lease.committed_step,
        )
        if self.tracker is not None:
            self.tracker.finish()
        if budget:
            raise StoppedOnPurpose(budget, spending.WAY_ON)
        raise Stopped

    def _pause(self) -> NoReturn:
        """The step is committed, and nothing else has happened: whoever goes on computes what a run
        computes that never pauses."""
        why = f"{PAUSED} {self.state.step} of {self.steps}, at a rung of its sweep"
        self._note_end(why)
        self._commit_last()
        if self.tracker is not None:
            self.tracker.finish()
        raise StoppedOnPurpose(f"{why[0].upper()}{why[1:]}.")

    def _note_end(self, purpose: str) -> None:
        """What the attempt's record says of an end that was asked for; it goes along with the last
        save."""
        self.checkpointer.lease.note(
            end=AttemptEnd.STOPPED,
            code=StoppedOnPurpose.exit_code if purpose else Stopped.exit_code,
            reason=purpose or self.stop.reason or "another node was asked to stop",
            ended=clock.now(),
            committed=self.state.step,
        )

    def _early(self) -> dict[str, Any]:
        """What a run that ends before its last step tells of that."""
        state = self.state
        if state.step >= self.steps:
            return {}
        name, best = self.evaluation.metric, state.best
        than = f"{best['value']:.6g} at step {best['step']}" if best else "none that is finite"
        reason = (
            f"stopped early at step {state.step}: in {state.waited} evaluations in a row val/{name}"
            f" was not better than {than}"
        )
        log.info("The run is %s.", reason)
        return {"waited": state.waited, "reason": reason}

    def _say_wait(self, what: str) -> None:
        """To whoever sees no step go by any more."""
        if self.world.rank == 0:
            say_wait(self.checkpointer.lease.store, what)

    def _finish(self) -> None:
        """The last state is committed, then the final weights are made, then the run is marked as
        finished; a run that is stopped early says why."""
        early = self._early()
        self._say_wait("The last state is committed")
        self._commit_last()
        try:
            finished = self.export(self.state, early)
            if self.world.rank == 0 and finished is not None:
                self._say_wait("The model is made; the run is marked as finished")
                self.checkpointer.lease.finish(finished)
        finally:
            if self.tracker is not None:
                self.tracker.finish()
        self.world.barrier()
