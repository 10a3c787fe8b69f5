"""The training loop.

One pass of the loop: evaluate if it is time, begin a save if it is time, stop if somebody asked,
then one optimizer step. The checkpoint of a step is taken after its evaluation, so an attempt that
resumes there has nothing to repeat.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.state import TrainState
from ..data.loader import Loader, Piece, to_device
from ..data.randomness import LOOP, seed_generators
from ..data.sampler import MicroBatch
from ..errors import (
    DataExhausted,
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
from ..tracker.protocol import Tracker
from .evaluate import Evaluation
from .micro_batch import enough_memory, parts_of
from .objective import Batch, Objective
from .optimizer import learning_rate, plain_step, set_learning_rate
from .reduction import Reduction
from .world import World

log = logging.getLogger("xrun")

LAST_SAVE_SECONDS = 3600.0
"""How long a finished training tries to commit its last state while the store is out of reach."""
LAST_SAVE_PAUSE = 1.0


@dataclass
class Training:
    """The parts of one rank's training, and what it does with them."""

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
    tracker: Tracker
    stop: StopFlag
    world: World
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    fresh: bool = False
    split: int = 1
    budget: Callable[[], str] = lambda: ""
    clock: Callable[[], float] = time.perf_counter
    export: Callable[[TrainState], dict[str, Any]] = lambda state: {}
    _begin: bool = False
    _asked: bool = False
    _looked: float = 0.0
    _trained: list[nn.Parameter] = field(default_factory=list)
    _optimizer_step: Callable[[], Any] = lambda: None

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Stopped: asked to; the state is committed if there was time.
            StoppedOnPurpose: the budget is spent; the state is committed.
            TrainError: it cannot go on.
            StoreError: the last state could not be committed.
        """
        with enough_memory(self.state.micro_batch, self.split):
            self._train()

    def _train(self) -> None:
        state, batches, began = self.state, iter(self.loader), self.clock()
        self._begin, self._looked = self.fresh, time.perf_counter()
        self.reduction.begin(state.optimizer)
        self._optimizer_step = plain_step(state.optimizer)
        self._trained = [p for group in state.optimizer.param_groups for p in group["params"]]
        while True:
            if self.evaluation.due(state.step) and state.evaluated != state.step:
                self._evaluate()
            if self._begin and not self._asked:
                self._begin = False
                self._remember_stream()
                self.checkpointer.begin()
            if self._asked:
                self._leave()
            if state.step >= self.steps:
                break
            self._step(self._next(batches))
            self.heartbeat.beat()
            now = self.clock()
            state.seconds, began = state.seconds + now - began, now
        self._finish()

    def _next(self, batches: Iterator[list[Piece]]) -> list[Piece]:
        pieces = next(batches, None)
        if pieces is None:
            raise DataExhausted(
                f"The data ended at step {self.state.step}, the recipe wants {self.steps}."
            )
        return pieces

    def _step(self, pieces: list[Piece]) -> None:
        """One optimizer step over the global batch."""
        state, train = self.state, self.train
        rate = learning_rate(train, state.step, self.steps)
        count = self._count(pieces)
        self._drop_gradients()
        losses = []
        for piece, batch in pieces:
            seed_generators(train.seed, LOOP, state.step, piece.slot)
            with self.reduction.micro_batch(piece):
                losses.append(
                    self._compute(piece, batch, piece.weight * self.reduction.scale / count)
                )
        values = self._agree(pieces, self.reduction.finish(pieces, losses), count)
        norm = self._clip()
        self.checkpointer.before_step()
        set_learning_rate(state.optimizer, rate)
        self._optimize()
        state.step += 1
        state.samples += pieces[0][0].total
        if state.step % train.log_every == 0 or state.step == self.steps:
            self.tracker.log(state.step, {**values, "train/lr": rate, **norm})

    def _compute(self, piece: MicroBatch, batch: Batch, factor: float) -> Tensor:
        """Forward and backward of one micro-batch, in parts where it does not fit into memory; its
        loss."""
        if self.split == 1:
            return self._loss(batch, factor)
        losses, parts = [], parts_of(piece, batch, self.split)
        for number, (part, counts) in enumerate(parts, 1):
            with self.reduction.part(last=number == len(parts)):
                losses.append(self._loss(part, factor * counts))
        return torch.stack(losses).sum()

    def _loss(self, batch: Batch, factor: float) -> Tensor:
        """Forward and backward of data that is computed at once; its loss, which is 0 where it does
        not count."""
        loss = self.reduction.model(to_device(batch, self.accelerator.device))["loss"]
        self._backward(loss, factor)
        return loss.detach() if factor else torch.zeros_like(loss)

    def _backward(self, loss: Tensor, factor: float) -> None:
        """The gradient of `factor * loss`, without a product in the graph, and without
        Accelerator's division by 1."""
        (loss if self.state.scaler is None else self.state.scaler.scale(loss)).backward(
            torch.full_like(loss, factor)
        )

    def _count(self, pieces: list[Piece]) -> int:
        """What the step's loss is a mean over, on all processes together."""
        if self.objective.counts_samples:
            return pieces[0][0].total
        own = sum(self.objective.count(batch) * piece.weight for piece, batch in pieces)
        return int(self.world.total([own])[0]) or 1

    def _agree(self, pieces: list[Piece], loss: float, count: int) -> dict[str, Any]:
        """The step's loss over all processes; and what all of them do after it: save, stop."""
        samples = sum(piece.digest() for piece, _ in pieces if piece.weight)
        save = self.checkpointer.due(self.state.step + 1, self.stop.seconds_left())
        leave = self._must_leave() or bool(self.budget())
        total, mixed, saves, asks = self.world.total([loss, samples, save, leave])
        self._begin, self._asked = bool(saves), bool(asks)
        self.checkpointer.check()
        loss = total / count
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The loss of step {self.state.step + 1} is {loss}; the optimizer has not stepped"
                " on it.",
                "Lower train.optimizer.lr, set train.clip_grad_norm, or look at the step's"
                " samples.",
            )
        return {"train/loss": loss, "train/samples": f"{int(mixed):014x}"}

    def _must_leave(self) -> bool:
        """Whether somebody wants this process to stop, and there is no time for as much again as
        since it was asked before."""
        before, self._looked = self._looked, time.perf_counter()
        return bool(self.stop) and self.stop.is_due(
            self.checkpointer.last_save().lead + self._looked - before
        )

    def _clip(self) -> dict[str, float]:
        """Scale the gradient down to the recipe's largest norm."""
        if self.state.scaler is not None:
            self.state.scaler.unscale_(self.state.optimizer)
        if self.train.clip_grad_norm is None:
            return {}
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.train.clip_grad_norm)
        return {
            "train/grad_norm": float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        }

    def _optimize(self) -> None:
        state = self.state
        if state.scaler is not None:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            self._optimizer_step()
        if state.ema is not None:
            state.ema.update_parameters(self.objective.model)  # type: ignore[operator]  # an AveragedModel's method

    def _drop_gradients(self) -> None:
        """What `zero_grad` does, in a hundredth of its time.

        Not right after the step: with nothing above them the C library gives their memory back to
        the kernel, to ask for it anew.
        """
        for p in self._trained:
            p.grad = None

    def _evaluate(self) -> None:
        """Evaluate, log it, and ask for a save of the best state so far."""
        state = self.state
        metrics = self.evaluation.run(self._must_leave)
        if metrics is None:
            self._asked = True
            return
        state.evaluated = state.step
        better = self.evaluation.better(metrics, state.best)
        if better:
            state.best = {"step": state.step, "value": metrics[self.evaluation.metric]}
        self.tracker.log(state.step, {f"val/{name}": value for name, value in metrics.items()})
        log.info(
            "step %d: %s",
            state.step,
            ", ".join(f"val/{name} {value:.4g}" for name, value in metrics.items()),
        )
        if better and self.world.from_first(self.checkpointer.want()):
            self._begin = True

    def _remember_stream(self) -> None:
        self.state.stream = self.sampler.state(self.state.step)

    def _save_now(self) -> bool:
        """Save this step, unless it is committed already, and wait; says whether it is
        committed."""
        self.heartbeat.saving()
        if not self.world.from_first(self.checkpointer.is_current()):
            self._remember_stream()
            self.checkpointer.begin()
        return bool(self.world.from_first(self.checkpointer.is_current()))

    def _save_last(self, end: dict[str, Any]) -> bool:
        """Save this step, again and again while the store is out of reach and there is time; `end`
        is how the attempt ends.

        Says whether it is committed.
        """
        if end and self.world.rank == 0:
            self.checkpointer.note(**end, ended=time.time(), committed=self.state.step)
        began = self.clock()
        while not self._save_now():
            left = min(self.stop.seconds_left(), LAST_SAVE_SECONDS - (self.clock() - began))
            if not self.world.from_first(bool(self.checkpointer.unavailable) and left > 0):
                return False
            log.warning(
                "Not safe yet: steps %d to %d.",
                max(self.checkpointer.committed_step, 0) + 1,
                self.state.step,
            )
            time.sleep(LAST_SAVE_PAUSE)
        return True

    def _leave(self) -> None:
        """Somebody asked to stop: save if that can be done before the machine goes, and go."""
        budget = self.world.from_first(self.budget())
        left, need = (
            self.world.least(self.stop.seconds_left()),
            self.world.from_first(self.checkpointer.last_save().least),
        )
        if need >= left + SPARE_SECONDS:
            log.warning(
                "A save takes %.0f s and %.0f s are left: the last commit stands.", need, left
            )
        elif not self._save_last(_ending(budget, self.stop)):
            log.warning(
                "The state of step %d could not be saved: the last commit stands.", self.state.step
            )
        log.info(
            "Stopped at step %d, step %d is committed.",
            self.state.step,
            self.checkpointer.committed_step,
        )
        self.tracker.finish()
        if budget:
            raise StoppedOnPurpose(budget, spending.WAY_ON)
        raise Stopped

    def _finish(self) -> None:
        """The last state is committed, then the final weights are made, then the run is marked as
        finished."""
        if not self._save_last({}):
            what = f"The last state, step {self.state.step}, could not be committed."
            if unavailable := self.world.from_first(self.checkpointer.unavailable):
                raise StoreUnavailable(f"{what} {unavailable}")
            raise StoreError(what, "Start the same command again.")
        self.checkpointer.finish(self.export(self.state))
        self.tracker.finish()
        self.world.wait()


def _ending(budget: str, stop: StopFlag) -> dict[str, Any]:
    """What the attempt's record says of an end that was asked for."""
    if budget:
        return {"kind": "stopped", "code": StoppedOnPurpose.exit_code, "reason": budget}
    return {
        "kind": "stopped",
        "code": Stopped.exit_code,
        "reason": stop.reason or "another node was asked to stop",
    }
