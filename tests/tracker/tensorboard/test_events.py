"""TensorBoard's files, read by TensorBoard's own reader: they have the points of metrics.jsonl,
each once. Covers `xrun.tracker.tensorboard.writer` and `xrun.tracker.tensorboard.process`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.running import PER_STEP, Project, until
from xrun.run.folder import RunFolder
from xrun.run.points import read_points
from xrun.tracker.jsonl import JsonlTracker
from xrun.tracker.tensorboard.events import Events, write_all

Scalars = dict[str, list[tuple[int, float, float]]]
"""By name: step, value (TensorBoard keeps 32 bits), time."""


def in_tensorboard(folder: Path) -> Scalars:
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = read.Tags()["scalars"]
    return {tag: [(e.step, e.value, e.wall_time) for e in read.Scalars(tag)] for tag in tags}


def expected(points: Iterable[Mapping[str, Any]]) -> Scalars:
    found: Scalars = {}
    for point in points:
        for name, value in point.items():
            if "/" in name and isinstance(value, int | float):
                told = (point["step"], float(np.float32(value)), point.get("time", 0.0))
                found.setdefault(name, []).append(told)
    return found


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_reader_finds_every_number(tmp_path: Path) -> None:
    """Under its name, at its step, with its time; whatever is no number is left out."""
    points = [
        {"step": 1, "train/loss": 0.1, "train/samples": "0a", "time": 1.5, "attempt": "a"},
        {"step": 1, "val/loss": 2, "time": 2.5, "attempt": "a"},
        {"step": 2, "train/loss": float("inf"), "speed/mfu": 0.25},
    ]
    write_all(tmp_path / "one" / "two", points)
    found = in_tensorboard(tmp_path / "one" / "two")
    assert found == expected(points)
    assert set(found) == {"train/loss", "val/loss", "speed/mfu"}


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    """A torn file that a killed writer has left goes, and so do points that no longer are."""
    points = [{"step": step, "train/loss": 1 / step} for step in range(1, 9)]
    write_all(tmp_path, points)
    torn = next(tmp_path.iterdir())
    torn.write_bytes(torn.read_bytes()[:-7])
    write_all(tmp_path, points[:5])
    assert in_tensorboard(tmp_path) == expected(points[:5])
    assert len(files(tmp_path)) == 1


def test_a_reader_that_runs_meanwhile_drops_what_it_had(tmp_path: Path) -> None:
    """TensorBoard is open while a run goes back: the points stand there once."""
    points = [{"step": step, "train/loss": 1 / step} for step in range(1, 9)]
    write_all(tmp_path, points)
    read = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert len(read.Scalars("train/loss")) == 8
    again = [{"step": step, "train/loss": 2 / step} for step in range(1, 7)]
    with Events(tmp_path, "b") as events:
        events.add(again)
        read.Reload()
        events.replace()
    assert [(e.step, e.value) for e in read.Reload().Scalars("train/loss")] == [
        (step, value) for step, value, _ in expected(again)["train/loss"]
    ]


def test_a_killed_run_has_the_points_of_its_log(tmp_path: Path) -> None:
    """Killed twice, each time between two checkpoints: what was computed again stands there once.
    In one file, below a folder of the recipe's."""
    project = Project(tmp_path / "project")
    told = "tracking.tensorboard={folder: events}"
    for call in (8 * PER_STEP, 13 * PER_STEP):
        project.trap("SIGKILL", call=call, committed=5)
        assert project.attempt(told).code == 75
    done = project.attempt(told)
    assert done.code == 0, done.err
    where = project.root / "events" / project.run.run
    points = project.run.points()
    assert in_tensorboard(where) == expected(points)
    assert [step for step, *_ in in_tensorboard(where)["train/loss"]] == list(range(1, 21))
    assert len(files(where)) == 1


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """The run trains to its end, and says what is missing and how to get it."""
    project = Project(tmp_path / "project")
    project.write("events", "a file\n")
    done = project.attempt("tracking.tensorboard={folder: events}")
    assert done.code == 0
    assert "Not every point is in TensorBoard's files." in done.err
    assert f"`xrun sync {project.run.run}` writes all of them." in done.err


class Followed:
    """A writer that follows a log, which the test writes."""

    def __init__(self, project: Project) -> None:
        self.run = RunFolder(Path(project.plan("tracking.tensorboard=true").folder))
        self.run.write_plan(project.plan("tracking.tensorboard=true"))
        self.tracker = JsonlTracker(self.run.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xrun.tracker.tensorboard.writer", self.run.path, "a"],
            stdin=subprocess.PIPE,
        )

    def log(self, first: int, last: int) -> None:
        """Go on at `first`, from an older step or not."""
        self.tracker.start({"attempt": "a"}, first - 1)
        for step in range(first, last + 1):
            self.tracker.log(step, {"train/loss": 1 / step, "speed/mfu": first / step})

    def seen(self) -> list[int]:
        """The steps that TensorBoard shows now."""
        where = self.run.path / "tensorboard"
        if not where.exists():
            return []
        return [step for step, *_ in in_tensorboard(where).get("train/loss", [])]


def test_ranks_that_are_started_again_go_back_too(tmp_path: Path) -> None:
    """In the same attempt, while the writer follows: the log is cut, and the files are."""
    followed = Followed(Project(tmp_path / "project"))
    followed.log(1, 12)
    until(lambda: followed.seen() == list(range(1, 13)), "twelve steps")
    followed.log(6, 9)
    followed.tracker.finish()
    followed.process.communicate()
    assert followed.process.returncode == 0
    points = read_points(followed.run.metrics)
    assert in_tensorboard(followed.run.path / "tensorboard") == expected(points)
    assert followed.seen() == list(range(1, 10))


@pytest.mark.once
def test_a_log_of_another_attempt_is_left_alone(tmp_path: Path) -> None:
    """An attempt that ends before it has logged anything writes nothing."""
    followed = Followed(Project(tmp_path / "project"))
    (followed.run.path / "config.json").write_text(json.dumps({"attempt": "before"}))
    followed.process.communicate()
    assert followed.process.returncode == 0
    assert not (followed.run.path / "tensorboard").exists()
