"""What is committed: a checkpoint, which ones to keep, and restoring the newest one that is
whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointCorrupt
from ..store.protocol import Head, Store, StoredFile
from . import tensor_file
from .state import TrainState, local, rows

log = logging.getLogger("xrun")

ARITHMETIC = 1
"""The version of how xrun computes: raised when the same recipe on the same machine no longer ends
in the same bits."""


@dataclass(frozen=True)
class Checkpoint:
    """One committed state of a run; its JSON form is the manifest. `digest` is the recipe's,
    `numbers` TrainState's.

    `arithmetic` is the version that computed it; manifests of before it had a number are of the
    first.
    """

    step: int
    attempt: str
    digest: str
    time: float
    numbers: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    environment: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: int = 1

    @property
    def conditions(self) -> dict[str, Any]:
        """Everything that the bits depend on besides the recipe: the environment and the version of
        the arithmetic."""
        return {**self.environment, "arithmetic": self.arithmetic}

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        return {**vars(self), "files": {name: file.to_json() for name, file in self.files.items()}}

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> Checkpoint:
        """Read a manifest; keys that a newer xrun has added are ignored."""
        files = {name: StoredFile.from_json(file) for name, file in manifest["files"].items()}
        known = {name: manifest[name] for name in cls.__dataclass_fields__ if name in manifest}
        return cls(**{**known, "files": files})


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last` (never below two), every `every` steps, and the
    best one."""

    last: int = 2
    every: int | None = None

    def select(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The ones to keep, by step."""
        ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
        stay = {checkpoint.step for checkpoint in ordered[-max(2, self.last) :]}
        stay |= {c.step for c in ordered if self.every and c.step and c.step % self.every == 0}
        best = ordered[-1].numbers.get("best") if ordered else None
        stay |= {best["step"]} if best else set()
        return [checkpoint for checkpoint in ordered if checkpoint.step in stay]


def checkpoints_of(head: Head | None) -> list[Checkpoint]:
    """The committed checkpoints that a head names, oldest first."""
    manifests = head.record.get("checkpoints", []) if head else []
    return sorted(
        (Checkpoint.from_json(manifest) for manifest in manifests),
        key=lambda checkpoint: checkpoint.step,
    )


def newest(store: Store, head: Head) -> tuple[Head, Checkpoint | None, list[Any]]:
    """The newest checkpoint whose every file has the bytes that were committed, with the files'
    paths.

    Damaged ones are moved away by the store; the head that names their steps as rejected is
    committed before the older checkpoint is used, so that they may be written again. Without any
    commit of a checkpoint: None.

    Raises:
        CheckpointCorrupt: there are checkpoints and none of them is whole.
    """
    rejected, reasons = [], []
    for checkpoint in reversed(checkpoints_of(head)):
        try:
            paths = [store.fetch(file) for file in checkpoint.files.values()]
        except CheckpointCorrupt as error:
            rejected.append(checkpoint.step)
            reasons.append(f"step {checkpoint.step}: {error.message}")
            log.warning(
                "The checkpoint of step %d is damaged: %s Taking the one before.",
                checkpoint.step,
                error.message,
            )
            continue
        return (_reject(store, head, rejected) if rejected else head), checkpoint, paths
    if rejected:
        raise CheckpointCorrupt(
            "Every checkpoint of this run is damaged: " + " ".join(reasons),
            "Nothing was started from step 0. Start a new run with --new, or restore the run's"
            " state folder from a backup.",
        )
    return head, None, []


def _reject(store: Store, head: Head, steps: list[int]) -> Head:
    left = [manifest for manifest in head.record["checkpoints"] if manifest["step"] not in steps]
    known = sorted({*head.record.get("rejected", []), *steps})
    return store.commit({**head.record, "checkpoints": left, "rejected": known}, head)


def load(state: TrainState, checkpoint: Checkpoint, paths: list[Any]) -> None:
    """Put a checkpoint's state into the modules, on any number of processes.

    Raises:
        CheckpointError: the model does not have the tensors that were saved.
    """
    reader = tensor_file.TensorReader(paths)
    state.load_tensors(
        reader.names(), lambda name, tensor: reader.fill(name, local(tensor), rows(tensor))
    )
    state.load_numbers(dict(checkpoint.numbers))


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two environments differ, as `threads 2 -> 1, ...`; empty when results stay the same
    to the last bit."""
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    return ", ".join(f"{name} {saved.get(name)} -> {now.get(name)}" for name in sorted(names))
