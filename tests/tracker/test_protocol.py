"""What every tracker promises, on both: files in the run's folder, and a run at Weights & Biases.
Covers `xrun.tracker.wandb.tracker`.

Each life of a tracker is a process of its own, as an attempt is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopback.wandb import Wandb
from support.paths import SOURCES
from xrun.run.points import read_points
from xrun.tracker.jsonl import JsonlTracker
from xrun.tracker.protocol import Tracker
from xrun.tracker.wandb.api import RunPath
from xrun.tracker.wandb.tracker import WandbTracker

LIFE = """
import json, sys
from pathlib import Path
kind, folder, calls = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
if kind == "jsonl":
    from xrun.tracker.jsonl import JsonlTracker
    tracker = JsonlTracker(folder)
else:
    from xrun.tracker.wandb.api import RunPath
    from xrun.tracker.wandb.tracker import WandbTracker
    tracker = WandbTracker(RunPath("alice", "p", folder.name), folder, seconds=1.0)
for verb, *arguments in calls:
    getattr(tracker, verb)(*arguments)
told = tracker.last_commit()
print(json.dumps(told))
"""


class Lives:
    """One run, told of by one kind of tracker in life after life."""

    def __init__(self, kind: str, folder: Path, wandb: Wandb) -> None:
        self.kind, self.folder, self.wandb = kind, folder, wandb
        folder.mkdir()

    def live(self, *calls: tuple[Any, ...]) -> Any:
        """A process that makes these calls; what it then knows of the last commit."""
        command = [sys.executable, "-c", LIFE, self.kind, str(self.folder), json.dumps(calls)]
        environ = {**self.wandb.environ("alice"), "PYTHONPATH": SOURCES, "HOME": str(self.folder)}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def points(self) -> list[tuple[int, str, float]]:
        """Everything that was kept: step, name, value."""
        if self.kind == "jsonl":
            rows = read_points(self.folder / "metrics.jsonl")
        else:
            history = self.wandb.history("alice", "p", self.folder.name)
            rows = [{**row, "step": row["train/step"]} for row in history]
        return [
            (row["step"], name, row[name])
            for row in rows
            for name in ("train/loss", "val/loss")
            if name in row
        ]


@pytest.fixture(scope="module")
def wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wandb]:
    with Wandb(tmp_path_factory.mktemp("wandb")) as server:
        yield server


@pytest.fixture(params=["jsonl", "wandb"])
def lives(request: pytest.FixtureRequest, tmp_path: Path, wandb: Wandb) -> Lives:
    return Lives(request.param, tmp_path / f"run-{request.node.name.partition('[')[0][-8:]}", wandb)


def train(first: int, last: int) -> list[tuple[Any, ...]]:
    """A point of training per step, and one of evaluation at every fifth."""
    calls: list[tuple[Any, ...]] = []
    for step in range(first, last + 1):
        calls.append(("log", step, {"train/loss": 1 / step}))
        if step % 5 == 0:
            calls.append(("log", step, {"val/loss": 2 / step}))
    return calls


def kept(last: int) -> list[tuple[int, str, float]]:
    return [
        (step, name, value)
        for step in range(1, last + 1)
        for name, value in (("train/loss", 1 / step), ("val/loss", 2 / step))
        if name == "train/loss" or step % 5 == 0
    ]


def test_what_was_logged_is_there_when_it_has_finished(lives: Lives) -> None:
    lives.live(("start", {"run": "r"}, 0), *train(1, 12), ("finish",))
    assert lives.points() == kept(12)


def test_no_point_is_doubled_after_going_back(lives: Lives) -> None:
    """Also none is lost, and what comes again has the value of an undisturbed run."""
    lives.live(("start", {"run": "r"}, 0), *train(1, 12), ("finish",))
    lives.live(("start", {"run": "r"}, 7), *train(8, 20), ("finish",))
    assert lives.points() == kept(20)


def test_the_newest_commit_is_known_to_the_next_life(lives: Lives) -> None:
    """Of a new run none is known, which is an answer."""
    assert lives.live() is None
    begin = ("start", {"run": "r"}, 0)
    lives.live(begin, *train(1, 5), ("committed", 3, "abc"), ("committed", 5, "def"), ("finish",))
    assert lives.live() == [5, "def"]


def test_both_are_trackers(tmp_path: Path) -> None:
    """As mypy sees them, and here by their methods."""
    make: list[Callable[[], Tracker]] = [
        lambda: JsonlTracker(tmp_path),
        lambda: WandbTracker(RunPath("alice", "p", "r"), tmp_path),
    ]
    for one in make:
        tracker = one()
        verbs = [tracker.start, tracker.log, tracker.committed, tracker.last_commit, tracker.finish]
        assert all(verb.__doc__ for verb in verbs)
