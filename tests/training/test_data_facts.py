"""A run goes on with the data that it was trained on, or says that they are others: real attempts,
between which the dataset's files change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.running import COMMITTED, RECIPE, Project, curve, record
from xrun.cli.texts import report_text
from xrun.run.checkpoint import MOVES, data_differences
from xrun.run.plan import Plan
from xrun.run.record import RunRecord

DATASET = (
    COMMITTED
    + """
import os
import signal
import uuid

import torch


class Rows:
    def __init__(self, told, first):
        self.count, self.revision, self.first = told["samples"], told["revision"], first
        if self.revision == "unstable":
            self.revision = uuid.uuid4().hex

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if self.first == 0:
            perhaps_stop()
        return row(self.first + i)


class Stream:
    def __init__(self, told):
        self.num_shards, self.revision = told["shards"], told["revision"]

    def shard(self, number):
        return iter(range(number * 1000, number * 1000 + 30))

    def transform(self, i):
        perhaps_stop()
        return row(i)


def row(i):
    return torch.randn(4, generator=torch.Generator().manual_seed(i)), i % 3


CALLS = []


def perhaps_stop():
    # In the 7th step of an attempt, once a step that somebody has named is committed.
    # Later saves begin when due once that of step 0 is committed, however slow the disk.
    CALLS.append(1)
    stop = PROJECT / "stop"
    if stop.exists() and len(CALLS) in (2 * 8, 7 * 8):
        last = len(CALLS) == 7 * 8
        wanted, end = int(stop.read_text()) if last else 0, time.monotonic() + 60
        while committed() < wanted and time.monotonic() < end:
            time.sleep(0.005)
        if last:
            stop.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def build():
    told = json.loads((PROJECT / "data.json").read_text())
    if "shards" in told["train"]:
        return {"train": Stream(told["train"])}
    return {"train": Rows(told["train"], 0), "val": Rows(told["val"], 1000)}
"""
)
TRAIN = {"samples": 40, "revision": "r1"}
VAL = {"samples": 9, "revision": None}


def data(project: Project, train: Mapping[str, Any] = TRAIN, val: Mapping[str, Any] = VAL) -> None:
    project.write("data.json", json.dumps({"train": train, "val": val}))


def begun(root: Path, **first: Any) -> Project:
    """A run of 20 steps whose first attempt was killed after a commit."""
    project = Project(root, RECIPE)
    project.write("datasets/points.py", DATASET)
    data(project, **first)
    project.write("stop", "5")
    assert project.attempt().code == 75
    assert 5 <= record(project.run)["checkpoints"][-1]["step"] < 20
    return project


@pytest.mark.parametrize("processes", [1, 2])
def test_other_data_are_refused(tmp_path: Path, processes: int) -> None:
    """Exit 5, with both lengths and revisions, on any number of processes; nothing is committed
    but the attempt's end."""
    project = begun(tmp_path)
    before = record(project.run)
    data(project, {"samples": 45, "revision": "r2"})
    done = project.attempt(processes=processes)
    assert done.code == 5, done.err
    assert "train: 40 samples of revision r1 -> 45 samples of revision r2." in done.err
    after = record(project.run)
    assert after["checkpoints"] == before["checkpoints"]
    assert after["attempts"][-1]["code"] == 5
    assert before["checkpoints"][-1]["data"] == {"train": TRAIN, "val": VAL}


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        ({**TRAIN, "revision": "r2"}, VAL, "train: 40 samples of revision r1 -> 40 samples of"),
        ({**TRAIN, "samples": 39}, VAL, "-> 39 samples of revision r1"),
        (TRAIN, {**VAL, "samples": 10}, "val: 9 samples -> 10 samples."),
    ],
)
def test_each_fact_counts(
    tmp_path: Path, train: Mapping[str, Any], val: Mapping[str, Any], said: str
) -> None:
    """Another revision of as many samples, fewer samples, and those that are evaluated on."""
    project = begun(tmp_path)
    data(project, train, val)
    done = project.attempt()
    assert (done.code, said in done.err) == (5, True), done.err


def test_other_data_may_be_meant(tmp_path: Path) -> None:
    """With `--other-data` the run goes on and is marked from that step on; the attempts after it
    need no flag."""
    project = begun(tmp_path)
    step = record(project.run)["checkpoints"][-1]["step"]
    data(project, {"samples": 45, "revision": "r2"})
    project.write("stop", str(step + 1))
    first = project.xrun("recipes/tiny.yaml", "--other-data")
    changed = "train: 40 samples of revision r1 -> 45 samples of revision r2"
    assert f"From step {step} on the run is not exact: other data ({changed})." in first.err
    done = project.attempt()
    assert done.code == 0, done.err
    run = RunRecord.from_json(record(project.run))
    assert [each.other_data for each in run.attempts if each.other_data] == [changed]
    assert run.newest is not None
    assert (run.newest.exact, run.newest.data["train"]["samples"]) == (False, 45)
    report = project.run.report()
    assert not report.exact
    assert f"  not exact from step {step} on: other data ({changed})" in report_text(report)
    assert "computed in parts" not in report_text(report)
    assert f"Other data from step {step} on" in (project.run.model / "README.md").read_text()


@pytest.mark.parametrize("revision", ["r1", None, "unstable", 7])
def test_the_same_data_are_never_refused(tmp_path: Path, revision: Any) -> None:
    """Whatever names them: nothing, a number, or something that is another in each process."""
    train = {"samples": 40, "revision": revision}
    project = begun(tmp_path, train=train)
    project.write("stop", str(record(project.run)["checkpoints"][-1]["step"] + 1))
    assert project.attempt().code == 75
    done = project.attempt()
    assert done.code == 0, done.err
    run = RunRecord.from_json(record(project.run))
    assert run.newest is not None
    assert run.newest.exact
    assert not any(attempt.other_data for attempt in run.attempts)
    known = {"r1": "r1", None: None, "unstable": MOVES, 7: "7"}[revision]
    assert run.newest.data["train"] == {"samples": 40, "revision": known}


def test_a_moving_revision_hides_no_other_length(tmp_path: Path) -> None:
    """What cannot be compared is left out, and the rest still counts."""
    project = begun(tmp_path, train={"samples": 40, "revision": "unstable"})
    data(project, {"samples": 41, "revision": "unstable"})
    done = project.attempt()
    assert done.code == 5, done.err
    assert "train: 40 samples of revision" in done.err


def test_a_fork_may_have_other_data(tmp_path: Path) -> None:
    """That is what forks are for; from then on its own data are its data."""
    project = begun(tmp_path)
    run = project.run.run
    data(project, {"samples": 50, "revision": "r3"})
    done = project.xrun("recipes/tiny.yaml", "--fork", run)
    assert done.code == 0, done.err
    newest = RunRecord.from_json(record(project.run)).newest
    assert newest is not None
    assert (project.run.run != run, newest.exact) == (True, True)
    assert newest.data["train"]["revision"] == "r3"


def test_streams_are_compared_by_their_shards(tmp_path: Path) -> None:
    """Other shards are refused; where they are meant the next epoch begins, since the place in the
    old ones means nothing."""
    project = begun(tmp_path, train={"shards": 4, "revision": None})
    data(project, {"shards": 3, "revision": None})
    done = project.attempt()
    assert done.code == 5, done.err
    assert "train: 4 shards -> 3 shards." in done.err
    step = record(project.run)["checkpoints"][-1]["step"]
    done = project.xrun("recipes/tiny.yaml", "--other-data")
    assert done.code == 0, done.err
    stream = record(project.run)["checkpoints"][-1]["numbers"]["stream"]
    epochs = (20 - step) // 12  # of 90 samples in batches of 8
    assert (stream["epoch"], stream["first_step"]) == (1 + epochs, step + 12 * epochs)
    assert len(curve(project.run)) == 20


def test_a_record_of_before_goes_on(tmp_path: Path) -> None:
    """Checkpoints that know nothing of their data are continued, and the next ones know."""
    project = begun(tmp_path)
    store = project.run.store()
    head = store.head()
    assert head is not None
    old = [{k: v for k, v in each.items() if k != "data"} for each in head.record["checkpoints"]]
    store.commit({**head.record, "checkpoints": old}, head)
    data(project, {"samples": 45, "revision": "r2"})
    done = project.attempt()
    assert done.code == 0, done.err
    assert record(project.run)["checkpoints"][-1]["data"]["train"]["samples"] == 45


def test_the_flag_travels_in_the_plan(tmp_path: Path) -> None:
    """To every attempt, and outside of what names the run."""
    from dataclasses import replace

    from xrun.launcher.bundle import travelling

    plan = Project(tmp_path).plan()
    flagged = replace(plan, other_data=True)
    assert Plan.from_json(travelling(flagged).to_json()).other_data
    assert (flagged.digest, flagged.run) == (plan.digest, plan.run)
    old = {k: v for k, v in json.loads(plan.to_json()).items() if k != "other_data"}
    assert Plan.from_json(json.dumps(old)).other_data is False


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ({}, {"train": TRAIN}, {}),
        ({"train": TRAIN}, {"train": {"samples": 40, "revision": None}}, {}),
        ({"train": TRAIN}, {"train": TRAIN, "val": VAL}, {"val": "absent -> 9 samples"}),
        ({"train": TRAIN, "val": VAL}, {"train": TRAIN}, {"val": "9 samples -> absent"}),
        ({"train": {"shards": 2}}, {"train": {"shards": 3}}, {"train": "2 shards -> 3 shards"}),
    ],
)
def test_what_both_know_is_compared(
    before: Mapping[str, Any], now: Mapping[str, Any], changed: Mapping[str, str]
) -> None:
    """What one of them does not know is no difference."""
    assert data_differences(before, now) == changed
