"""A run whose state is on a loopback Hub and whose points go to a loopback W&B, under kills and
faults that follow from a seed.

A life is a real attempt (`running.attempt`): the entrypoint's code, a real process per rank, the
real sender, real SIGKILLs. Between two lives the machine may be lost: everything that it had is
deleted.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from loopback.hub import Hub
from loopback.wandb import Wandb
from xrun.run.folder import RunFolder
from xrun.store.hub.store import stored_files

from .running import PER_STEP, STEPS, Done, Project, attempt, curve, weights

FINISHED, EX_TEMPFAIL = 0, 75
FAST = {
    "XRUN_HUB_SPACING": "0",
    "XRUN_HUB_HOURLY": "1000000",
    "XRUN_HUB_PATIENCE": "3",
    "XRUN_WANDB_CHECK": "1",
}
"""A loopback Hub has no limit of commits; a schedule has no minutes to wait for it."""
HUB = {
    "status before": {
        "match": r"POST .*/commit/|/preupload/|GET .*/(revision|resolve)/",
        "status": 503,
    },
    "status after": {"match": r"POST .*/commit/", "status": 500, "when": "after"},
    "too many": {"match": r"POST .*/commit/", "status": 429, "retry_after": 0.1},
    "cut before": {"match": r"POST .*/commit/|PUT |/resolve/", "cut": True},
    "cut after": {"match": r"POST .*/commit/", "cut": True, "when": "after"},
    "stall": {"match": r"POST .*/commit/|/resolve/", "stall": 0.3},
    "truncate": {"match": r"GET .*/resolve/", "truncate": 100},
    "stale": {"match": r"GET .*/(revision|tree|refs|commits)", "stale": True},
    "stale many": {"match": r"GET .*/(revision|tree|refs|commits)", "stale": True, "times": 4},
    "down": {"match": r"/(commit|preupload|resolve|revision|lfs-files)", "status": 502, "times": 3},
}
WANDB = {
    "stream refused": {"match": r"file_stream", "status": 500, "times": 3},
    "stream cut": {"match": r"file_stream", "cut": True, "when": "after", "times": 2},
    "stream slow": {"match": r"file_stream", "stall": 0.3, "times": 2},
    "questions refused": {"match": r"(?i)graphql|query|mutation|upsert", "status": 502, "times": 2},
}


@dataclass
class Schedule:
    """What one seed led to."""

    seed: int
    lives: int = 0
    kills: int = 0
    bare: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class FarAway:
    """One project with its two servers."""

    def __init__(self, root: Path, hub: Hub, wandb: Wandb | None, name: str) -> None:
        self.project = Project(root)
        self.hub, self.wandb = hub, wandb
        self.name, self.repo = name, f"alice/{name}"
        told = [f"tracking.wandb={{project: {name}, entity: alice}}"] if wandb else []
        self.overrides = [f"checkpoint.store=hub://{self.repo}", *told]
        self.environ = hub.environ("alice") | (wandb.environ("alice") if wandb else {}) | FAST

    def live(self) -> Done:
        """One attempt."""
        with environment(self.environ):
            return attempt(replace(self.project.plan(*self.overrides), owner="alice"))

    @property
    def run(self) -> RunFolder:
        """The run's folder on this machine."""
        return RunFolder(self.project.plan(*self.overrides).folder)

    def lose_the_machine(self) -> None:
        """Everything but the project's sources is gone."""
        shutil.rmtree(self.project.home, ignore_errors=True)
        for path in [*self.project.root.glob("home/*"), self.project.root / "trap.json"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def committed(self) -> dict[str, Any] | None:
        """The record of the head on the server, every file of which is there with the bytes that
        were committed."""
        try:
            record: dict[str, Any] = json.loads(self.hub.read(self.repo, "head.json", "state"))[
                "record"
            ]
        except Exception as error:
            if (
                "not at" in str(error)
                or "not found" in str(error).lower()
                or "Invalid" in str(error)
            ):
                return None
            raise
        for file in stored_files(record):
            content = self.hub.read(self.repo, file.copies[0], "state")
            assert xxh3_128(content).hexdigest() == file.hash, (
                f"{file.copies[0]} is not what was committed"
            )
        return record

    def rows(self) -> list[dict[str, Any]]:
        """What W&B has, in the order of its rows."""
        assert self.wandb is not None
        return self.wandb.history("alice", self.name, self.project.plan(*self.overrides).run)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def step_of(record: Mapping[str, Any] | None) -> int:
    """The newest committed step; -1 if there is none."""
    return max([manifest["step"] for manifest in (record or {}).get("checkpoints", [])], default=-1)


def play(far: FarAway, seed: int, expected: tuple[str, dict[int, dict[str, Any]]]) -> Schedule:
    """Lives with kills, faults and lost machines, until the run has finished; what must hold is
    looked at after each."""
    rng, result = random.Random(seed), Schedule(seed)
    acknowledged = -1
    kills = rng.randint(1, 2)
    for life in range(12):
        last = life >= 8
        if not last:
            arm(far, rng, result)
        if result.kills < kills and not last:
            far.project.trap(
                "SIGKILL", call=rng.randint(1, STEPS) * PER_STEP - rng.randint(0, PER_STEP - 1)
            )
        else:
            (far.project.root / "trap.json").unlink(missing_ok=True)
        code = far.live().code
        result.lives += 1
        result.kills += not (far.project.root / "trap.json").exists() and code == EX_TEMPFAIL
        far.hub.faults.clear()
        if far.wandb:
            far.wandb.faults.clear()
        record = far.committed()
        witness = far.run.path / "committed.json"
        acknowledged = max(
            [acknowledged, *([json.loads(witness.read_text())["step"]] if witness.exists() else [])]
        )
        if step_of(record) < acknowledged:
            result.wrong.append(
                f"life {life}: step {acknowledged} was acknowledged, the head has {step_of(record)}"
            )
        if record and (
            again := [
                a
                for a in record["attempts"]
                if a.get("resumed_step", a["from_step"]) < a["from_step"]
            ]
        ):
            result.wrong.append(f"life {life}: {again} started before what was committed")
        if code == FINISHED:
            break
        if code not in (EX_TEMPFAIL, 3, 4) or (code == 3 and step_of(record) >= 0):
            result.wrong.append(f"life {life}: ended with {code}")
        if rng.random() < 0.4:
            result.bare += 1
            far.lose_the_machine()
    else:
        result.wrong.append("never finished")
        return result
    compare(far, expected, result)
    return result


def arm(far: FarAway, rng: random.Random, result: Schedule) -> None:
    """A few faults, at some later request each."""
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(HUB))
        far.hub.faults.add(**HUB[name], skip=rng.choice([0, 0, 1, 2, 5, 9]))
        result.faults[name] += 1
    if far.wandb and rng.random() < 0.6:
        name = rng.choice(list(WANDB))
        far.wandb.faults.add(**WANDB[name], skip=rng.randint(0, 3))
        result.faults[name] += 1


def compare(
    far: FarAway, expected: tuple[str, dict[int, dict[str, Any]]], result: Schedule
) -> None:
    """The finished run against an undisturbed one: weights, the log of this machine, the history at
    W&B."""
    final, losses = expected
    if weights(far.run) != final:
        result.wrong.append("other final weights")
    if curve(far.run) != losses:
        result.wrong.append("another log on the machine")
    if far.wandb is None:
        return
    rows = [row for row in far.rows() if "train/loss" in row]
    seen = Counter(row["train/step"] for row in rows)
    if sorted(seen) != sorted(losses) or max(seen.values()) > 1:
        result.wrong.append(f"W&B has the steps {dict(seen)}")
    elif any(row["train/loss"] != losses[row["train/step"]]["train/loss"] for row in rows):
        result.wrong.append("W&B has other values")
