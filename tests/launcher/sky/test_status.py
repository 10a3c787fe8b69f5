"""What `xrun status` and the next plan know of runs on clouds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from support.running import PER_STEP, Project, steps_of
from xrun.cli.texts import cloud_words
from xrun.launcher.record import LaunchRecord, one_launcher, read_launch, write_launch
from xrun.launcher.sky.jobs import Job
from xrun.launcher.sky.status import OnCloud, RunStatus, hourly, with_jobs
from xrun.launcher.throughput import Machines, hours_left, known_throughput
from xrun.recipe.accelerators import Accelerators
from xrun.run.folder import RunFolder
from xrun.run.prices import Price
from xrun.run.report import RunReport
from xrun.store.directory.store import DirectoryStore

JOB = Job(7, "tiny", "RUNNING", True, 1, "aws", "us-east-1", "az2", True, 0.0, None, "")
PRICES = [
    Price(cloud="aws", usd_per_hour=price, region=region, zone=zone, spot=spot)
    for region, zone, spot, price in (
        ("us-east-1", "az1", True, 2.5),
        ("us-east-1", "az2", True, 8.0),
        ("us-east-1", "", False, 22.0),
        ("eu", "z", True, 1.0),
    )
]
RECORD = LaunchRecord("tiny", job=7, prices=tuple(PRICES))


def test_the_price_now_is_that_of_the_jobs_place() -> None:
    assert hourly(JOB, RECORD) == 8.0
    assert hourly(dataclasses.replace(JOB, spot=False, zone=""), RECORD) == 22.0
    assert (
        hourly(dataclasses.replace(JOB, zone="unknown"), RECORD) == 8.0
    )  # the dearest zone of its kind
    assert hourly(dataclasses.replace(JOB, cloud="gcp"), RECORD) is None


def test_a_run_here_is_none_of_skypilots_business(tmp_path: Path) -> None:
    report = RunReport("tiny", str(tmp_path), "stopped")
    (found,) = with_jobs([RunFolder(tmp_path)], [report])
    assert found == RunStatus(report)
    assert found.to_json() == report.to_json()


def test_a_cloud_runs_line_says_where_and_how_much() -> None:
    def words(status: str, **known: Any) -> str:
        return ", ".join(cloud_words(OnCloud(7, known.pop("how", "RUNNING"), **known), status))

    told = words(
        "running", place="aws us-east-1 spot", usd_per_hour=8.0, usd=3.456, hours_left=1.25
    )
    assert told == "job 7, on aws us-east-1 spot at $8.00/h, $3.46 so far, 1.2 h left"
    assert words("running") == "job 7"
    assert words("stopped", how="CANCELLED") == "job 7 cancelled"
    assert words("stopped", how=None, problem="Nobody answers.") == "job 7, Nobody answers."


def test_what_programs_get_of_a_cloud_run(tmp_path: Path) -> None:
    """SkyPilot's word is the run's status while the job lives; what is not known is not there."""
    report = RunReport("tiny", str(tmp_path), "stopped", step=5)
    alive = OnCloud(7, "RUNNING", status="running", recoveries=1, place="aws", usd_per_hour=None)
    told = RunStatus(report, alive).to_json()
    assert (told["status"], told["job"], told["step"], told["recoveries"]) == ("running", 7, 5, 1)
    assert (told["usd_per_hour"], told["hours_left"]) == (None, None)
    assert "usd" not in told
    ended = RunStatus(report, OnCloud(7, "CANCELLED", usd=1.5)).to_json()
    assert (ended["status"], ended["job_status"], ended["usd"]) == ("stopped", "CANCELLED", 1.5)
    assert not {"place", "recoveries", "usd_per_hour"} & ended.keys()


def test_the_launch_record_survives_and_tells_what_is_uncertain(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "tiny")
    assert read_launch(folder) is None
    write_launch(folder, dataclasses.replace(RECORD, asked=5.0, job=None))
    assert read_launch(folder) == dataclasses.replace(RECORD, asked=5.0, job=None)
    assert read_launch(folder).uncertain
    assert not dataclasses.replace(RECORD, asked=5.0, request="r").uncertain
    (folder.path / "launch.json").write_text(json.dumps({"run": "tiny", "of a newer xrun": 1}))
    assert read_launch(folder) == LaunchRecord("tiny")


def test_one_launcher_at_a_time(tmp_path: Path) -> None:
    """The lock goes with its holder."""
    folder = RunFolder(tmp_path / "tiny")
    said: list[str] = []
    with one_launcher(folder, said.append):
        pass
    with one_launcher(folder, said.append):
        pass
    assert said == []


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
