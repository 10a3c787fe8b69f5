"""Restoring the newest checkpoint that is whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..errors import CheckpointCorrupt, CheckpointError
from ..run.checkpoint import Checkpoint
from ..run.record import RunRecord
from ..store.protocol import Head, Store
from . import tensor_file
from .share import ALL, Share
from .state import TrainState, local, rows

log = logging.getLogger("xrun")


Take = Callable[[Checkpoint], list[Path]]
"""The paths of a checkpoint's files, verified; raises CheckpointCorrupt."""


def newest(
    store: Store,
    head: Head,
    take: Take | None = None,
    first: Callable[[Callable[[], Head]], Head] = lambda find: find(),
) -> tuple[Head, Checkpoint | None, list[Path]]:
    """The newest checkpoint whose every file has the bytes that were committed, with the files'
    paths.

    The head that names the steps of damaged ones as rejected is committed before the older
    checkpoint is used, so that they may be written again. Without any commit of a checkpoint: None.

    Several processes call it together: then `take` comes to the same end on each, and what the
    `first` one finds all of them have.

    Raises:
        CheckpointCorrupt: there are checkpoints and none of them is whole.
    """
    take = take or (lambda checkpoint: [store.fetch(file) for file in checkpoint.files.values()])
    rejected, reasons = list[int](), []
    for checkpoint in reversed(RunRecord.of(head).checkpoints):
        try:
            paths = take(checkpoint)
        except CheckpointCorrupt as error:
            rejected.append(checkpoint.step)
            reasons.append(f"step {checkpoint.step}: {error.message}")
            log.warning(
                "The checkpoint of step %d is damaged: %s The one before is used.",
                checkpoint.step,
                error.message,
            )
            continue
        now = first(lambda: _reject(store, head, rejected)) if rejected else head
        return now, checkpoint, paths
    if rejected:
        raise CheckpointCorrupt(
            "Every checkpoint of this run is damaged: " + " ".join(reasons),
            "Nothing was started from step 0. Start another run with --again, or restore the"
            " run's state folder from a backup.",
        )
    return head, None, []


def _reject(store: Store, head: Head, steps: Sequence[int]) -> Head:
    record = RunRecord.of(head)
    left = tuple(each for each in record.checkpoints if each.step not in steps)
    known = tuple(sorted({*record.rejected, *steps}))
    return store.commit(replace(record, checkpoints=left, rejected=known).to_json(), head)


def load_weights(
    state: TrainState,
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    rebuild: Callable[[], nn.Module],
    share: Share = ALL,
) -> None:
    """Put a checkpoint's model, and its average, into the modules; nothing else of the state
    changes. Frozen weights that moved only later are not in it: they get what the model has that
    `rebuild` makes. `share`: whose part was verified.

    Raises:
        CheckpointError: that one has other weights there.
    """
    reader = tensor_file.TensorReader(paths, share)
    state.take_buffers(checkpoint.numbers.get("buffers", {}), reader.shapes())
    there, tensors = reader.names(), state.tensors()
    for name in tensors:  # in their order, in which they lie in the files
        if name in there and not name.startswith("optimizer."):
            reader.fill(name, local(tensors[name]), rows(tensors[name]))
    # The average has no frozen weights of its own.
    later = {name for name in tensors.keys() - there if name.startswith("model.")}
    if later and state.outside is not None:
        built = state.outside.as_built(later, rebuild())
        for name in later:
            (begin, _), own, whole = rows(tensors[name]), local(tensors[name]), local(built[name])
            own.copy_(whole[begin : begin + len(own)] if own.dim() else whole)


def load(
    state: TrainState, checkpoint: Checkpoint, paths: Sequence[Path], share: Share = ALL
) -> None:
    """Put a checkpoint's state into the modules, on any number of processes; `share`: whose part of
    it was verified.

    Raises:
        CheckpointError: the model does not have the tensors that were saved, or its frozen weights
            are others than those of the run.
    """
    check_frozen(state, checkpoint)
    reader = tensor_file.TensorReader(paths, share)
    state.take_buffers(checkpoint.numbers.get("buffers", {}), reader.shapes())
    state.load_tensors(
        reader.names(), lambda name, tensor: reader.fill(name, local(tensor), rows(tensor))
    )
    state.load_numbers(dict(checkpoint.numbers))


def check_frozen(state: TrainState, checkpoint: Checkpoint) -> None:
    """The frozen weights that were built are those that the run was trained with.

    Raises:
        CheckpointError: they are not.
    """
    before = checkpoint.numbers.get("frozen")
    if state.outside is None or before in (None, state.outside.digest):
        return
    raise CheckpointError(
        f"The frozen weights are not those that the checkpoint of step {checkpoint.step} was"
        f" trained with: their digest was {before[:12]} and is now {state.outside.digest[:12]}. No"
        " step was trained on them.",
        "Put the weights back at the recipe's model.args or model.init_from (a commit as revision"
        " stays the same), or begin another run with --again.",
    )
