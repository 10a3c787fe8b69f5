"""How fast a run will be, by what earlier attempts have measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.running import PER_STEP, Project, steps_of
from xrun.launcher.throughput import Machines, hours_left, known_throughput
from xrun.recipe.accelerators import Accelerators
from xrun.run.folder import RunFolder
from xrun.store.directory.store import DirectoryStore


@pytest.fixture
def trained(tmp_path: Path) -> Project:
    """A run of 20 steps whose second attempt, on another cloud machine, has committed steps 8 and
    12 two seconds apart."""
    project = Project(tmp_path)
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    manifests: list[dict[str, Any]] = [
        {"step": step, "attempt": "two", "time": 1000 + step / 2, "files": {}} for step in (8, 12)
    ]
    attempts = [
        {
            "id": "one",
            "started": 900.0,
            "ended": 910.0,
            "from_step": -1,
            "committed": 5,
            "cloud": "aws",
            "accelerators": "A100:8",
        },
        {
            "id": "two",
            "started": 990.0,
            "from_step": 5,
            "cloud": "aws",
            "accelerators": "H100:8",
            "nodes": 2,
        },
    ]
    store = DirectoryStore(RunFolder(plan.folder).state, plan.run, "two", plan.owner)
    store.commit({"digest": plan.digest, "checkpoints": manifests, "attempts": attempts}, None)
    return project


def test_what_attempts_have_measured_is_known_to_the_next_plan(trained: Project) -> None:
    """From their checkpoints, else from their whole life; also for another run of the same step."""
    eight = [Machines(Accelerators(name, 8), nodes) for name, nodes in (("A100", 1), ("H100", 2))]
    known = known_throughput(trained.plan("train.seed=1"))
    assert known.measured[eight[1]].steps_per_second == pytest.approx(2.0)
    assert known.measured[eight[0]].steps_per_second == pytest.approx(0.5)
    assert known.measured[eight[0]].source.startswith("measured in attempt 1 of tiny-")
    assert known.steps_left == 20
    assert known_throughput(trained.plan()).steps_left == 8
    assert known_throughput(trained.plan("model.args={width: 9}")).measured == {}


def test_epochs_have_an_end_once_somebody_has_counted_them(tmp_path: Path) -> None:
    """How many steps an epoch has is known from any attempt on, also of another run with the same
    data."""
    project, epochs = Project(tmp_path), ("train.steps=null", "train.epochs=2")
    assert known_throughput(project.plan(*epochs)).steps_left is None
    project.trap("SIGKILL", call=7 * PER_STEP, committed=5)
    assert project.attempt(*epochs).code == 75
    assert known_throughput(project.plan(*epochs)).steps_left == 26 - max(steps_of(project.run))
    assert known_throughput(project.plan(*epochs, "train.seed=1")).steps_left == 26
    assert known_throughput(project.plan(*epochs, "dataset.args={n: 50}")).steps_left is None


def test_the_time_left_is_the_newest_attempts(trained: Project) -> None:
    assert hours_left(trained.run) == pytest.approx(8 / 2.0 / 3600)
