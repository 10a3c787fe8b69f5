"""Evaluation: every sample of `val` exactly once, whatever the number of processes.

Sums of each batch travel to every process and are added there in one order, so the result depends
neither on the number of processes nor on which of them computed what.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..data.batch import Batch, to_device
from ..data.loader import Fetch, Loader, Piece
from ..data.randomness import EVALUATION, seed_generators
from ..data.sampler import MicroBatch
from ..data.stream import is_stream
from ..errors import ComponentError
from ..machine.heartbeat import Heartbeat
from ..recipe.metrics import is_measured, over_the_split
from ..recipe.schema import Train
from .metrics import Measured
from .modes import Modes
from .objective import Objective, means
from .world import World

_ASK_SECONDS, _ASK_BATCHES = 1.0, 16
"""Between two looks at whether it is time to leave, whichever is less: a notice leaves half a
minute, or less."""


@dataclass
class Evaluation:
    """Evaluates the model (or its moving average) on a split; `every` counts in steps, None is at
    the last step only."""

    split: Any
    objective: Objective
    train: Train
    every: int | None
    last: int
    batch: int
    world: World
    accelerator: Any
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    replicated: bool = False
    clock: Callable[[], float] = time.perf_counter

    @property
    def metric(self) -> str:
        """The metric that decides which state is the best."""
        return self.train.evaluate.metric

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step` steps."""
        if self.split is None or step == 0:
            return False
        return step == self.last or bool(self.every and step % self.every == 0)

    def decides(self, metrics: Mapping[str, float]) -> bool:
        """Whether the recipe's metric is among these."""
        return self.metric in metrics

    def better(self, metrics: Mapping[str, float], best: Mapping[str, Any] | None) -> bool:
        """Whether these metrics beat the best ones so far; what is not finite never does.

        Raises:
            ComponentError: the recipe's metric is not among them.
        """
        if not self.decides(metrics):
            named = is_measured(self.objective.task, self.metric)
            way = " Or name it in train.evaluate.metrics, and return `preds` and `target`."
            other = self.objective.no_numbers.get(self.metric, "")
            got = (
                f" {self.objective.components.model} returns {other} by that name; a metric is one"
            )
            got += " number: a tensor without dimensions, a float or an int."
            raise ComponentError(
                f"train.evaluate.metric: there is no metric {self.metric!r}.{got if other else ''}",
                f"This task has {', '.join(sorted(metrics))}.{way if named else ''} The same"
                " command goes on from what is committed.",
            )
        value = metrics[self.metric]
        before = math.nan if best is None else float(best["value"])
        if not (math.isfinite(value) and math.isfinite(before)):
            return math.isfinite(value)
        return value > before if self.train.evaluate.better == "max" else value < before

    def best(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What the state says of these metrics, which are the best ones so far."""
        mode = self.train.evaluate.better
        return {"step": step, "value": metrics[self.metric], "metric": self.metric, "mode": mode}

    @property
    def keeps_best(self) -> bool:
        """Whether the run needs its best state itself, and not only the best of those that were
        saved."""
        return self.train.evaluate.patience is not None or self.train.export == "best"

    def gives_up(self, waited: int) -> bool:
        """Whether so many evaluations in a row that were no better are as many as the recipe
        waits."""
        patience = self.train.evaluate.patience
        return patience is not None and waited >= patience

    def run(self, leave: Callable[[], bool]) -> dict[str, float] | None:
        """The metrics of the whole split, none at all where every label is ignored; None if it was
        time to leave meanwhile, on any process."""
        if self.replicated:
            for buffer in self.objective.buffers():
                dist.broadcast(buffer, 0)
        training, modes = self.objective.training, Modes.of(self.objective)
        self.objective.eval()
        try:
            with torch.no_grad():
                return self._sums(leave)
        finally:
            self.objective.train(training)
            modes.restore()  # what `build` has put into evaluation mode stays there

    def _sums(self, leave: Callable[[], bool]) -> dict[str, float] | None:
        batches = -(-len(self.split) // self.batch)
        columns: dict[str, list[float]] = {}
        measured = self._measured()
        due, apart, asked = 0, 1, self.clock()
        for number, pieces in enumerate(self._loader):
            if number == due:
                now = self.clock()
                leaves, seconds = self.world.all_reduce_sum([leave(), now - asked])
                if leaves:
                    return None
                # All processes have been told the same, so they ask at the same batch again.
                lasted = max(seconds / self.world.size, 1e-9)
                in_time = max(1, int(apart * _ASK_SECONDS / lasted))
                apart = min(2 * apart, in_time, _ASK_BATCHES)
                due, asked = number + apart, now
            for piece in pieces:
                self._add(columns, piece, batches, measured)
            self.heartbeat.beat(min((number + 1) * self.world.size, batches), batches)
        if not columns:
            return {}
        names = sorted(columns)
        flat = self.world.all_reduce_sum([value for name in names for value in columns[name]])
        sums = {
            name: math.fsum(flat[i * batches : (i + 1) * batches]) for i, name in enumerate(names)
        }
        found = means(sums, sums.pop("count"), self.objective.task)
        return found | measured.values(self.world) if found and measured.names else found

    def _measured(self) -> Measured:
        """What is computed over the whole split; the objective keeps its predictions for that."""
        evaluate = self.train.evaluate
        names = over_the_split(self.objective.task, evaluate.metric, evaluate.metrics)
        self.objective.seen = [] if names else None
        return Measured(names, self.objective.components.model)

    def _add(
        self, columns: dict[str, list[float]], piece: Piece, batches: int, measured: Measured
    ) -> None:
        where, batch = piece
        self.objective.whole = where.samples == self.batch
        # Whoever has fetched it, and whatever was drawn before.
        seed_generators(self.train.seed, EVALUATION, where.epoch, where.number)
        count = self.objective.count(batch, where.samples)
        with self.accelerator.autocast():
            sums = self.objective(to_device(batch, self.accelerator.device), where.samples)
        for name, value in [*sums.items(), ("count", count)]:
            columns.setdefault(name, [0.0] * batches)[where.number] += float(value) * where.weight
        if self.objective.seen:
            measured.add(where.number, bool(where.weight), *self.objective.seen.pop())

    def first_batch(self) -> list[Batch]:
        """The first batch of this process; none where there is nothing to evaluate."""
        if self.split is None:
            return []
        first = next(iter(self._batches()))
        return [Fetch(self.split, self.train.seed, EVALUATION)[first][1]]

    @functools.cached_property
    def _loader(self) -> Loader:
        """The same in every evaluation: starting workers takes as long as many a split."""
        return Loader(
            self.split,
            self._batches(),
            self.train.seed,
            self.train.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            purpose=EVALUATION,
            lasting=True,
        )

    def _batches(self) -> _Batches:
        return _Batches(len(self.split), self.batch, self.world)


@dataclass(frozen=True)
class _Batches:
    """A process's batches of a split of `total` samples, as often as anybody asks, filled up with
    placeholders so that every process has as many."""

    total: int
    batch: int
    world: World

    def __iter__(self) -> Iterator[MicroBatch]:
        batches = -(-self.total // self.batch)
        for first in range(0, batches, self.world.size):
            number = min(first + self.world.rank, batches - 1)
            indices = np.arange(
                number * self.batch, min((number + 1) * self.batch, self.total), dtype=np.int64
            )
            yield MicroBatch(
                0,
                0,
                0,
                number,
                indices,
                self.total,
                weight=int(first + self.world.rank < batches),
                last=True,
            )


def check_validation(split: Any, name: str) -> None:
    """Evaluation counts every sample once, so the split has a length.

    Raises:
        ComponentError: it has none, or it is empty.
    """
    if split is not None and is_stream(split):
        raise ComponentError(
            f"datasets/{name}.py: the split 'val' is streamed; evaluation needs one with a length"
            " and indices."
        )
    if split is not None and not len(split):
        raise ComponentError(
            f"datasets/{name}.py: the split 'val' is empty; leave it out where there is nothing to"
            " evaluate on."
        )
