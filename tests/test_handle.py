"""A run in a program: `xrun.start`, `xrun.open_run`, `xrun.list_runs`, and docs/library.ipynb.

Covers `xrun.launcher.detached`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import xrun
from support.buckets import moto
from support.kept_runs import NAMES, keep
from support.paths import ROOT
from support.running import PER_STEP, Project, ended, until
from xrun.errors import (
    CheckpointError,
    LaunchError,
    RecipeError,
    StoreError,
    TrainError,
    error_of,
)
from xrun.run.folder import RunFolder

pytestmark = pytest.mark.once

NOTEBOOK = ROOT / "docs" / "library.ipynb"
PROGRAM = """\
import sys, xrun
print(xrun.start(sys.argv[1], {"train.steps": 10}).status)
"""
LEAVES = """\
import sys, xrun
run = xrun.start(sys.argv[1], detach=True)
print(run.id, run.status)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that the program stands in."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def program(text: str, *arguments: str | Path, cwd: Path, **environ: str) -> subprocess.Popen[str]:
    """A program of a person's own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.e2e
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every cell in its order, in the folder that it lies in, and once more: then nothing is
    trained."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert all(not cell.get("outputs") for cell in cells)
    for trained in (2, 0):
        done = ended(program(code, cwd=NOTEBOOK.parent, XRUN_HOME=str(tmp_path / "runs")))
        assert done.code == 0, done.err
        assert "`train.optimizer.rate`" in done.out or "train.optimizer.rate:" in done.out
        assert done.err.count("Starting at step 0: ") == trained
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_finished_run_is_started_at_no_cost(project: Project) -> None:
    """By the same call again; another one of the same recipe has an id of its own."""
    plan = project.plan("train.optimizer.lr=0.02")
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder)
    run = xrun.start(project.recipe, {"train.optimizer.lr": 0.02})
    assert (run.id, run.status, run.report.attempts[-1].id) == (plan.run, "finished", NAMES[-1])
    assert [each.id for each in xrun.list_runs()] == [plan.run]


def test_a_stop_is_no_error_of_the_program(project: Project) -> None:
    """Ctrl-C lets the run save, and ends the program by what no `except Exception` takes."""
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    process = program(PROGRAM, project.recipe, cwd=project.root)
    until((project.root / "held").exists, "the hold")
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code != 0
    assert "Stopped: " in done.err
    assert re.search(r"was asked to stop; step \d+ is safe\. The same call goes on\.", done.err)
    assert project.run.report().step == 8


def test_a_detached_run_outlives_its_program(project: Project) -> None:
    """It is looked at while it trains, the same call returns it, it stops when it is asked to, and
    started again it goes on to its end."""
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    done = ended(program(LEAVES, project.recipe, cwd=project.root))
    assert (done.code, done.out.split()) == (0, [project.run.run, "running"]), done.err
    until((project.root / "held").exists, "the hold")
    run = xrun.start(project.recipe, detach=True)
    assert (run.status, run.report.steps) == ("running", 20)
    assert run.metrics["step"][:5] == [1, 2, 3, 4, 5]
    stopped = run.stop()
    assert (stopped.status, stopped.step) == ("stopped", 8)
    with pytest.raises(xrun.errors.Stopped, match=r"stop; step 8 is safe\. The same call goes on"):
        stopped.wait()
    with pytest.raises(LaunchError, match=f"Nothing of {run.id} runs: its last attempt has ended"):
        stopped.stop()

    again = xrun.start(project.recipe, detach=True)
    finished = again.wait()
    assert (again.id, finished.status, finished.step) == (run.id, "finished", 20)
    assert finished.metrics["step"] == list(range(1, 21))
    assert finished.wait().status == "finished"
    assert "Going on from step 8." in (project.run.path / "launcher.log").read_text()


def test_a_detached_run_fails_as_another(project: Project) -> None:
    """By the class of its exit code with the sentence of its attempt, later of its record."""
    project.trap("nan", call=9)
    with pytest.raises(TrainError, match=r"^The loss of step 3 is nan"):
        xrun.start(project.recipe, detach=True).wait()
    failed = xrun.open_run(project.run.run)
    with pytest.raises(TrainError, match=rf"^{failed.id}: The loss of step 3 is nan.* `xrun logs"):
        failed.wait()


def test_a_failure_is_the_sentence_of_the_command(project: Project) -> None:
    """As an exception of the class that the exit code means, from any thread."""
    plan = replace(project.plan(), owner="somebody")
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder, finished=False)
    raised: list[BaseException] = []

    def started() -> None:
        try:
            xrun.start(project.recipe, {"train.steps": 30})
        except StoreError as error:
            raised.append(error)

    thread = threading.Thread(target=started)
    thread.start()
    thread.join()
    done = project.xrun("recipes/tiny.yaml", "-s", "train.steps=30")
    assert (done.code, "belongs to somebody" in done.err) == (StoreError.exit_code, True)
    assert [f"xrun: {error}" for error in raised] == done.err.splitlines()[-1:]


def test_what_is_wrong_is_refused_before_anything_starts(project: Project) -> None:
    with pytest.raises(RecipeError, match=r"train\.stepz"):
        xrun.start(project.recipe, {"train.stepz": 3})
    with pytest.raises(RecipeError, match=r"a dict, such as .* \(got \['train\.epochs=1'\]\)"):
        xrun.start(project.recipe, ["train.epochs=1"])
    with pytest.raises(RecipeError, match=r"absent\.yaml"):
        xrun.start("recipes/absent.yaml")
    with pytest.raises(RecipeError, match="`xrun new URL`"):
        xrun.start("https://example.org/a/b/blob/main/recipes/x.yaml")
    swept = project.recipe.read_text() + "sweep: {parameters: {train.seed: [1, 2]}}\n"
    project.write("recipes/swept.yaml", swept)
    with pytest.raises(RecipeError, match="the recipe has a sweep"):
        xrun.start("recipes/swept.yaml")
    with pytest.raises(LaunchError, match="There is no run tiny-0"):
        xrun.open_run("tiny-0")
    assert xrun.list_runs() == []
    assert not project.home.exists()


def test_a_run_is_looked_at(project: Project) -> None:
    """What it has logged, its checkpoints' tensors, and what it lacks, each in one sentence."""
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder, finished=False)
    run = xrun.open_run(plan.run)
    assert (run.id, run.status, run.where) == (plan.run, run.report.status, str(plan.folder))
    assert repr(run) == f"<Run {run.id}: {run.status}, step {run.step}/20>"
    assert [each.id for each in xrun.list_runs()] == [run.id]
    assert xrun.list_runs(project.home)[0].report.run == run.id
    assert run.metrics["step"] == sorted(run.metrics["step"])
    assert len(run.metrics) == len(run.metrics.pandas()) == run.metrics.arrow().num_rows
    with pytest.raises(KeyError, match="Did you mean `train/loss`"):
        run.metrics["train/los"]
    with pytest.raises(CheckpointError, match="keeps no checkpoint of step 7"):
        run.tensors(7)
    with pytest.raises(LaunchError, match=rf"{run.id} has no model yet: it is"):
        run.model()


def test_a_run_far_away_is_opened(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its address, from a machine that has nothing of it."""
    with moto() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        bucket = server.make("opened")
        plan = project.plan(f"checkpoint.store={bucket}/runs")
        keep(plan, tmp_path / "lost")
        run = xrun.open_run(f"{bucket}/runs/{plan.run}")
        assert (run.id, run.status, run.step) == (plan.run, "finished", 20)
        assert len(run.metrics) > 0
        assert [each.id for each in xrun.list_runs(f"{bucket}/runs")] == [plan.run]
        with pytest.raises(LaunchError, match=f"The model of {run.id} is not at {bucket}"):
            run.model()
        assert run.wait().status == "finished"
        with pytest.raises(LaunchError, match=f"Nothing of {run.id} runs"):
            run.stop()


def test_the_class_says_how_it_ended() -> None:
    assert {code: type(error_of(code, "")).__name__ for code in (1, 2, 3, 4, 5, 6, 7, 75)} == {
        1: "XrunError",
        2: "ComponentError",
        3: "LaunchError",
        4: "StoreError",
        5: "CheckpointError",
        6: "TrainError",
        7: "StoppedOnPurpose",
        75: "CloudUnavailable",
    }
    assert isinstance(error_of(6, "x"), TrainError)


def test_tensors_are_those_of_the_model(project: Project) -> None:
    """Of a trained run: each parameter as it was committed, and the optimizer's state."""
    assert project.attempt("train.steps=5").code == 0
    run = xrun.open_run(project.run.run)
    tensors, model = run.tensors(), run.model()
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], value)
    assert any(name.startswith("optimizer.") for name in tensors)
    assert not model.training
