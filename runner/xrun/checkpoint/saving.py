"""`Saving`: what one save needs and what comes of it, and what must not be saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, NonFiniteWeights, StoreError, TrainError, XrunError
from ..store.protocol import StoredFile
from . import tensor_file
from .snapshot import Files, Snapshot, is_finite

log = logging.getLogger("xrun")

_SAMPLES = 1024
"""Elements of a tensor that tell whether it was written to."""


class MovedError(CheckpointError):
    """What a save was copying was changed meanwhile; the next one copies it in time."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} changed while a save copied it: something changes it outside of"
            " optimizer.step(). From now on it is copied before the next forward pass."
        )


def fault_of(step: int, error: Exception) -> XrunError:
    """A failure of a save as one of ours."""
    if isinstance(error, XrunError):
        return error
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return StoreError(what)
    log.error("The save of step %d failed.", step, exc_info=error)
    return TrainError(
        f"The state of step {step} cannot be saved: {what}.",
        "Training would go on without a checkpoint to come back to, so it ends here.",
    )


@dataclass(frozen=True)
class Made:
    """The files that one process has written, or why it has not."""

    files: list[tuple[str, StoredFile]] = field(default_factory=list)
    fault: XrunError | None = None


@dataclass(frozen=True)
class Saving:
    """What one save needs: this process's part of the state as it was when the save began; `late`
    is what is copied beside the next forward pass.

    The thread that saves asks the model for nothing: a sharded one that tells its `state_dict`
    shards itself for it, in the middle of the main thread's forward pass.
    """

    step: int
    numbers: Mapping[str, Any]
    parts: Mapping[str, Tensor]
    files: Files
    late: Set[str]
    trained: Set[str]
    frozen: Set[str]
    rows: Mapping[str, tensor_file.Rows]
    versions: Mapping[str, int]
    samples: Mapping[str, Tensor]
    started: float
    ready: Any = None
    alone: bool = False
    """Whether nothing trains beside it."""

    def moved(self) -> set[str]:
        """Names of what was written to since."""
        return {name for name, part in self.parts.items() if part._version != self.versions[name]}

    def touched(self) -> set[str]:
        """Names of what was written to since by way of `.data`, which no version tells."""
        now = {name: sample_of(self.parts[name]) for name in self.samples}
        return {name for name, sample in self.samples.items() if not torch.equal(sample, now[name])}


def sample_of(part: Tensor) -> Tensor:
    """The bytes of some elements from all over a tensor, the first one among them: what a forward
    pass does to weights it does to most of them."""
    flat = part.detach()
    if part.is_contiguous(memory_format=torch.channels_last):
        flat = flat.permute(0, 2, 3, 1)
    some = flat.reshape(-1)[:: max(1, part.numel() // _SAMPLES)]
    return some.clone().view(torch.uint8)


def check_weights(saving: Saving, snapshot: Snapshot) -> None:
    """Weights that are not finite are never committed.

    Raises:
        NonFiniteWeights: the step has made some.
    """
    copies = snapshot.parts(saving.files, saving.trained)
    wrong = [name for name, data in copies if not is_finite(data, saving.parts[name].dtype)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise NonFiniteWeights(
            f"{wrong[0].removeprefix('model.')}{more} is not finite after step {saving.step};"
            " this state is neither saved nor exported.",
            "Lower train.optimizer.lr or set train.clip_grad_norm; --fork begins a changed"
            " recipe at this run's newest checkpoint."
            if saving.step
            else "Look at how the model's build() initializes it.",
        )
