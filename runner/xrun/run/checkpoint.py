"""`Checkpoint`: one committed state of a run, as its record names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..store.protocol import StoredFile

ARITHMETIC = 3
"""The version of how xrun computes: it is raised with each change by which the same recipe on the
same machine ends in other bits. 2: the number of samples is told and not read off a batch, and the
loss of a classification is a mean over the labels that are not ignored. 3: modules that `build`
puts into evaluation mode stay there, the moving average takes whole numbers over, and a parameter
without a gradient is left alone on any number of processes, under `reduction: exact` too."""


DataFacts = Mapping[str, Mapping[str, Any]]
"""By split: how many `samples` or `shards` it has and its `revision`, as far as that is known."""
SPLITS = ("train", "val")
"""Those that a run uses."""
MOVES = ""
"""Stands for the revision of data that call themselves differently in each process."""


def data_differences(before: DataFacts, now: DataFacts) -> dict[str, str]:
    """What differs between two sets of data, by split, as `400 samples of revision a -> 450 samples
    of revision b`. What is not known of both makes no difference."""
    if not before:
        return {}
    both = {name: (before.get(name), now.get(name)) for name in SPLITS}
    changed = {name: pair for name, pair in both.items() if _differ(*pair)}
    return {name: f"{_told(old)} -> {_told(new)}" for name, (old, new) in changed.items()}


def _differ(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
    if old is None or new is None:
        return old is not new
    known = (name for name in old if {old[name], new.get(name)}.isdisjoint((None, MOVES)))
    return any(old[name] != new[name] for name in known)


def _told(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "absent"
    sizes = [f"{facts[name]} {name}" for name in ("samples", "shards") if name in facts]
    revision = f"revision {facts['revision']}" if facts.get("revision") else ""
    return " of ".join(filter(None, [*sizes, revision]))


@dataclass(frozen=True)
class Checkpoint:
    """One committed state; its JSON form is the manifest. `digest` is the recipe's, `numbers`
    TrainState's, `time` seconds since 1970, `data` what the steps before it were trained on.

    `arithmetic` is the version that computed it; manifests of before it had a number are of the
    first.
    """

    step: int
    attempt: str = ""
    digest: str = ""
    time: float = 0.0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: int = 1
    data: DataFacts = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, Any]:
        """Everything that the bits depend on besides the recipe."""
        return {**self.environment, "arithmetic": self.arithmetic}

    @property
    def micro_batch(self) -> int:
        """The micro-batch that the run has settled on; 0 if that is not said."""
        return int(self.numbers.get("micro_batch") or 0)

    def differences(self, environment: Mapping[str, Any]) -> str:
        """In what the conditions differ from those of steps that are computed in this environment
        now, as `threads 2 -> 1, ...`; "" when results stay the same to the last bit."""
        before, now = self.conditions, {**environment, "arithmetic": ARITHMETIC}
        names = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
        return ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)

    @property
    def exact(self) -> bool:
        """Whether every step up to it was computed as the recipe says."""
        return bool(self.numbers.get("exact", True))

    @property
    def best_step(self) -> int | None:
        """The step of the best state that had been evaluated by then."""
        best = self.numbers.get("best")
        return int(best["step"]) if best else None

    def is_best_by(self, metric: str, mode: str) -> bool:
        """Whether no state evaluated before was better than this one, by this metric and mode."""
        return self.best_step == self.step and is_by(self.numbers["best"], metric, mode)

    def to_json(self) -> dict[str, Any]:
        """The manifest."""
        told = {name: value for name, value in vars(self).items() if name != "more"}
        if not self.data:  # nobody knew, as before it was kept
            del told["data"]
        files = {name: file.to_json() for name, file in self.files.items()}
        return {**told, "files": files, **self.more}

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> Checkpoint:
        """Read a manifest; keys that a newer xrun has added are kept in `more`."""
        stored, names = manifest.get("files", {}), cls.__dataclass_fields__.keys() - {"more"}
        files = {name: StoredFile.from_json(file) for name, file in stored.items()}
        known = {name: manifest[name] for name in names if name in manifest}
        more = {name: value for name, value in manifest.items() if name not in names}
        return cls(**{**known, "files": files, "more": more})


def is_by(best: Mapping[str, Any], metric: str, mode: str) -> bool:
    """Whether a best evaluation was chosen by this metric and mode; an older xrun said neither."""
    return (best.get("metric", metric), best.get("mode", mode)) == (metric, mode)
