"""What a run's folder tells.

Covers `xrun.run.report`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from support.running import PER_STEP, Project, weights
from xrun.cli.texts import outcome_text, report_text, status_lines
from xrun.errors import CheckpointError, LaunchError
from xrun.launcher.local import only_one
from xrun.launcher.sky.status import RunStatus
from xrun.run.folder import RunFolder, project_here, runs_in


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run that was killed once in step 8."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.trap("SIGKILL", call=7 * PER_STEP + 1, paced=True)
    assert [made.attempt().code, made.attempt().code] == [75, 0]
    return made


def test_the_report_tells_what_happened(project: Project) -> None:
    """The report has status, checkpoints, every attempt with its end, the steps computed again,
    metrics and the weights' hash."""
    report = project.run.report().to_json()
    assert report["status"] == "finished"
    assert report["step"] == report["logged_step"] == 20
    assert len(report["checkpoints"]) == 3
    assert report["checkpoints"][-1] == 20
    assert [attempt["kind"] for attempt in report["attempts"]] == ["outside", "finished"]
    assert report["attempts"][1]["resumed_step"] == 5
    assert report["steps_recomputed"] == 2
    assert set(report["metrics"]) >= {"train/loss", "val/loss", "val/accuracy"}
    assert report["weights_sha256"] == weights(project.run)
    assert report["model"] == str(project.run.model)
    assert json.loads(json.dumps(report)) == report


def test_state_that_is_gone_is_told(project: Project, tmp_path: Path) -> None:
    """A run whose state somebody has deleted is not one that has not begun."""
    folder = RunFolder(shutil.copytree(project.run.path, tmp_path / project.run.run))
    shutil.rmtree(folder.state)
    gone = f"{folder.witness} knows of a commit of step 20, and {folder.state} has none"
    with pytest.raises(CheckpointError, match=gone):
        folder.report()
    assert (described := folder.describe()).status == "unreadable"
    assert gone in described.error
    folder.witness.unlink()
    assert folder.report().status == "stopped", "nothing says that there was any"


def test_a_folder_that_somebody_has_renamed_is_told_as_that(
    project: Project, tmp_path: Path
) -> None:
    """Its state is not lost, and one command brings it back."""
    folder = RunFolder(shutil.copytree(project.run.path, tmp_path / "mine"))
    again = f"mv {folder.path} {tmp_path / project.run.run}"
    with pytest.raises(CheckpointError, match=f"under another name; .* Name it back: {again}"):
        folder.report()


def test_a_model_that_somebody_has_deleted_is_not_announced(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are metrics, at the end or later; what makes it again can be typed where one stands."""
    folder = RunFolder(shutil.copytree(project.run.path, tmp_path / project.run.run))
    shutil.rmtree(folder.model)
    folder.metrics.unlink()
    found = folder.report()
    assert (found.model, found.lacks) == (None, "model deleted")
    assert f"`xrun export-model {folder.path}` makes it again" in report_text(found)
    assert f"no metrics are in {folder.path}" in report_text(found)
    assert "model deleted" in status_lines([RunStatus(found)], 0.0, None)[1]
    ended = [f"Finished {folder.run}", f"  report   xrun report {folder.path}"]
    assert outcome_text(folder, 0, "").splitlines() == ended
    monkeypatch.chdir(project.root)
    assert outcome_text(project.run, 0, "").endswith(f"xrun report {project.run.run}")


def test_a_project_is_found_from_all_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its recipes or its runs; one in the home folder is not that of every folder below."""
    for marker in ("own/recipes/tiny.yaml", "ran/runs/tiny-1/plan.json", "recipes/mine.yaml"):
        (tmp_path / marker).parent.mkdir(parents=True)
        (tmp_path / marker).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, project in (
        ("own/models/deep", "own"),
        ("own/recipes", "own"),
        ("ran/deep", "ran"),
        ("new", "new"),
        (".", "."),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        assert project_here() == (tmp_path / project).resolve()


def test_a_torn_last_line_is_no_point(project: Project, tmp_path: Path) -> None:
    """A line of metrics.jsonl that was cut short counts as nothing, for the newest point and for
    all of them."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(project.run.path, folder.path)
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 99, "train/loss": 1.0')
    assert folder.last_point()["step"] == 20
    assert len(folder.points()) == len(project.run.points())


def test_the_newest_point_is_found_behind_long_lines(tmp_path: Path) -> None:
    """The newest training point is found when points of evaluation follow it, and there is none in
    an empty folder."""
    folder = RunFolder(tmp_path)
    assert folder.last_point() == {}
    lines = [{"step": step, "train/loss": 1.0} for step in range(500)] + [
        {"step": 499, "val/loss": 2.0}
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert folder.last_point() == lines[-2]


def test_the_lock_names_its_owner(project: Project) -> None:
    """While somebody runs the run its process is known and the status is `running`; afterwards it
    is not."""
    assert project.run.owner_pid() is None
    with only_one(project.run):
        assert project.run.owner_pid() == os.getpid()
        assert project.run.report().status == "running"
        with pytest.raises(LaunchError, match=str(os.getpid())), only_one(project.run):
            pass
    assert project.run.report().status == "finished"


def test_a_run_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """A run without a plan is one sentence with the way out."""
    with pytest.raises(
        LaunchError, match=r"There is no run nothing in .*`xrun status` lists the runs\."
    ):
        RunFolder(tmp_path / "nothing").plan()
    (tmp_path / "sleep-1").mkdir()
    (tmp_path / "sleep-1" / "plan.json").touch()
    for typed, hint in {"slep-1": "Did you mean `sleep-1`?", "sleep": "there is sleep-1."}.items():
        with pytest.raises(LaunchError, match=re.escape(hint)):
            RunFolder(tmp_path / typed).plan()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    """A plan.json that is no plan is one sentence that names the file and how to write it anew."""
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(LaunchError, match=r"plan\.json is damaged.*Move it away"):
        RunFolder(tmp_path).plan()


def test_an_unreadable_run_does_not_hide_the_others(project: Project, tmp_path: Path) -> None:
    """A run whose state cannot be read is described by its error."""
    folder = RunFolder(tmp_path / project.run.run)
    shutil.copytree(project.run.path, folder.path)
    for path in (folder.state / "commits").glob("*.json"):
        path.write_bytes(b"")
    assert folder.describe().status == "unreadable"
    assert "damaged" in folder.describe().error
    assert project.run.describe().status == "finished"


def test_logs_are_found_by_attempt_and_rank(project: Project) -> None:
    """The log of the last attempt is the default; an attempt or process that is not there is named
    with how many there are."""
    assert "Starting at step 0" in project.run.log_text(1, 0)
    assert project.run.log_text(None, 0) == project.run.log_text(2, 0)
    assert "Going on from step 5." in project.run.log_text(2, 0)
    with pytest.raises(LaunchError, match="has 2 attempts"):
        project.run.log_text(3, 0)
    with pytest.raises(LaunchError, match="left no log of process 7"):
        project.run.log_text(1, 7)


def test_runs_are_listed_newest_first(project: Project, tmp_path: Path) -> None:
    """The run whose plan was written last comes first; folders without a plan are no runs."""
    (tmp_path / "nothing").mkdir()
    for number, name in enumerate(("one", "two")):
        plan = RunFolder(tmp_path / name).write_plan(project.plan(run=name))
        os.utime(plan, ns=(number, number))
    assert [folder.run for folder in runs_in(tmp_path)] == ["two", "one"]
    assert runs_in(tmp_path / "absent") == []


def test_more_steps_are_not_finished(project: Project, tmp_path: Path) -> None:
    """A finished run whose newest plan asks for more steps is no longer finished."""
    folder = RunFolder(tmp_path / project.run.run)
    shutil.copytree(project.run.path, folder.path)
    folder.write_plan(project.plan("train.steps=21"))
    assert folder.report().status == "stopped"
