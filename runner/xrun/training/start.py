"""`Start`: where an attempt begins; all its processes come to the same one."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm  # what all batch norms share has no public name

from ..bar import bar
from ..checkpoint import restore
from ..checkpoint.share import ALL, Share, fetched, share_of
from ..checkpoint.state import TrainState
from ..errors import CheckpointCorrupt, CheckpointError, LeaseLost, XrunError
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
    paths here; without one it is step 0. Of the files, this process's `share` was verified."""

    head: Head
    checkpoint: Checkpoint | None = None
    paths: Sequence[Path] = ()
    share: Share = ALL

    @cached_property
    def record(self) -> RunRecord:
        """What the head says."""
        return RunRecord.of(self.head)

    @property
    def trained_on(self) -> DataFacts:
        """The data of the run's own steps so far; nothing of a fork's, which may have others."""
        return self.checkpoint.data if self.checkpoint and self.record.checkpoints else {}

    def load(self, state: TrainState, checkpoint: Checkpoint, fork: str) -> None:
        """Put its checkpoint's state into the modules; `fork`: the run that it is of, where this
        one has none of its own.

        Raises:
            CheckpointError: the model does not have the tensors that were saved.
        """
        try:
            restore.load(state, checkpoint, self.paths, self.share)
        except CheckpointError as error:
            if fork and not self.record.checkpoints:
                error.message = f"--fork {fork}: {error.message}"
                error.hint = (
                    "A fork takes over the whole state: leave the model and train.optimizer as they"
                    f" were in {fork}. Or begin at step 0: the same command with --new in place of"
                    " --fork, and with -s model.init_from=FOLDER also with the weights of a"
                    " finished run's model as far as they fit."
                )
            raise

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
    """Tell people what it changes that micro-batches are computed in parts."""
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
    head = world.from_first(lambda: _own_head(plan, attempt, store))
    share = share_of(plan, world.rank, world.size)
    start = _newest(store, head, share, world)
    return _forked(plan, attempt, start, world) if start.checkpoint is None and plan.fork else start


def _own_head(plan: Plan, attempt: str, store: Store) -> Head:
    head = store.head()
    if head is None or head.attempt != attempt:
        holder = head.attempt if head else "(none)"
        raise LeaseLost(f"The run {plan.run} was taken over by the attempt {holder}.")
    return head


def _newest(store: Store, head: Head, share: Share, world: World) -> Start:
    take = functools.partial(taken, store, share, world)
    return Start(*restore.newest(store, head, take, world.from_first), share)


def _forked(plan: Plan, attempt: str, start: Start, world: World) -> Start:
    """The newest checkpoint of the run that this one starts from."""
    source = replace(plan, run=plan.fork, store=plan.fork_store)
    store = open_store(source, attempt, create=False)

    def its_head() -> Head:
        head = store.head()
        if head is None or RunRecord.of(head).newest is None:
            raise CheckpointError(f"--fork {plan.fork}: that run has no checkpoint.")
        return head

    found = _newest(store, world.from_first(its_head), start.share, world)
    assert found.checkpoint is not None
    log.info("Forked from %s at step %d.", plan.fork, found.checkpoint.step)
    return replace(found, head=start.head)


def taken(store: Store, share: Share, world: World, checkpoint: Checkpoint) -> list[Path]:
    """The paths of a checkpoint's files here, in which all is verified that this process reads: it
    fetches its own share of them, and the first process of each node what all there read whole.

    All processes call it, and it comes to the same end on each of them.

    Raises:
        CheckpointCorrupt: one of them has found damage.
        XrunError: one of them could not tell.
    """
    node = os.environ.get("GROUP_RANK", "0")
    told = world.everybody((node, _fetched(store, share, checkpoint)))
    faults = [found for _, found in told if isinstance(found, XrunError)]
    unsure = [fault for fault in faults if not isinstance(fault, CheckpointCorrupt)]
    for fault in (*unsure, *faults):
        raise fault
    own = told[world.rank][1]
    here = [own, *(found for its_node, found in told if its_node == node)]
    each = zip(*(found for found in here if not isinstance(found, XrunError)), strict=True)
    return [next(filter(None, paths)) for paths in each]


def _fetched(store: Store, share: Share, checkpoint: Checkpoint) -> list[Path | None] | XrunError:
    """The paths of what this process reads by itself, or why there are none."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    size = sum(file.size for file in checkpoint.files.values())
    what = f"Fetching the state of step {checkpoint.step}, {size / 1e9:.2f} GB"
    try:
        with bar(what) if first else nullcontext():
            return [
                fetched(store, file, share) if first or share.reads(file) else None
                for file in checkpoint.files.values()
            ]
    except XrunError as error:
        return error
