"""`Start`: where an attempt begins, found by the first process and told to the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm  # what all batch norms share has no public name

from ..checkpoint import restore
from ..checkpoint.state import TrainState
from ..errors import CheckpointError, LeaseLost
from ..run.checkpoint import Checkpoint, DataFacts
from ..run.plan import Plan
from ..run.record import RunRecord
from ..run.stores import open_store
from ..store.protocol import Head, Store
from .world import World

log = logging.getLogger("xrun")


@dataclass(frozen=True)
class Start:
    """The run's head, and the checkpoint whose state the attempt goes on from, with its files'
    paths here; without one it is step 0."""

    head: Head
    checkpoint: Checkpoint | None = None
    paths: Sequence[Path] = ()

    @cached_property
    def record(self) -> RunRecord:
        """What the head says."""
        return RunRecord.of(self.head)

    @property
    def trained_on(self) -> DataFacts:
        """The data of the run's own steps so far; nothing of a fork's, which may have others."""
        return self.checkpoint.data if self.checkpoint and self.record.checkpoints else {}

    def say(self, environment: Mapping[str, Any], state: TrainState, parts: int) -> None:
        """Tell people where the attempt begins, and from which step on bits may differ."""
        if parts > 1:
            _say_parts(state, parts)
        if self.checkpoint is None:
            log.info("Starting at step 0: no checkpoint exists.")
            return
        log.info("Going on from step %d.", state.step)
        if changed := self.checkpoint.differences(environment):
            log.warning(
                "From step %d on bits may differ from an undisturbed run: %s.", state.step, changed
            )


def _say_parts(state: TrainState, parts: int) -> None:
    """What a micro-batch in parts changes."""
    statistics = any(isinstance(module, _BatchNorm) for module in state.model.modules())
    log.warning(
        "From step %d on each micro-batch of %d is computed in %d parts: the run is no longer"
        " exact. Samples, their order and sums are the same; the forward pass's random numbers%s"
        " and the last bits are not.",
        state.step,
        state.micro_batch,
        parts,
        ", its batch statistics" if statistics else "",
    )


def find_start(plan: Plan, attempt: str, store: Store, world: World) -> Start:
    """The newest whole checkpoint of the run, or of the one that it was forked from.

    Raises:
        LeaseLost: another attempt has taken the run over.
        CheckpointError: every checkpoint is damaged, or there is none to fork from.
    """
    chosen = world.from_first(lambda: _choose(plan, attempt, store))
    return on_this_node(chosen, plan, attempt, store, world)


def _choose(plan: Plan, attempt: str, store: Store) -> Start:
    head = store.head()
    if head is None or head.attempt != attempt:
        holder = head.attempt if head else "(none)"
        raise LeaseLost(f"The run {plan.run} was taken over by the attempt {holder}.")
    start = Start(*restore.newest(store, head))
    return _forked(plan, attempt, start) if start.checkpoint is None and plan.fork else start


def _forked(plan: Plan, attempt: str, start: Start) -> Start:
    """The newest checkpoint of the run that this one starts from."""
    store = _forked_store(plan, attempt)
    head = store.head()
    found, paths = restore.newest(store, head)[1:] if head else (None, [])
    if found is None:
        raise CheckpointError(f"--fork {plan.fork}: that run has no checkpoint.")
    log.info("Forked from %s at step %d.", plan.fork, found.step)
    return replace(start, checkpoint=found, paths=paths)


def _forked_store(plan: Plan, attempt: str) -> Store:
    return open_store(replace(plan, run=plan.fork, store=plan.fork_store), attempt, create=False)


def on_this_node(start: Start, plan: Plan, attempt: str, store: Store, world: World) -> Start:
    """Where the chosen checkpoint's files lie here: each node has a disk of its own, and its first
    process fetches first."""
    if start.checkpoint is None or world.size == 1:
        return start
    elsewhere = os.environ.get("GROUP_RANK", "0") != "0"
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    holds = store if start.record.checkpoints else _forked_store(plan, attempt)
    for turn in (True, False):
        if elsewhere and first == turn:
            paths = [holds.fetch(file) for file in start.checkpoint.files.values()]
            start = replace(start, paths=paths)
        world.barrier()
    return start
