"""The end of a run that is trained: real attempts, whose export fails, and which weights it takes.

Covers `xrun.launcher.export` and `xrun.training.export_again`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from support.running import FAILING, Project, curve, one_line, record, weights
from xrun.cli.app import cli
from xrun.errors import LaunchError
from xrun.launcher.export import export_model


def failing(root: Path, why: str = "no such key") -> Project:
    project = Project(root)
    project.write("models/line.py", FAILING)
    project.write("broken", why)
    return project


@pytest.mark.parametrize("processes", [1, 2])
def test_an_export_that_fails_leaves_a_finished_run(tmp_path: Path, processes: int) -> None:
    """The end is said with its cause and the way out, in code 2; the record has both, and the same
    command again trains nothing and says so."""
    project = failing(tmp_path)
    done = project.attempt(processes=processes)
    assert done.code == 2, done.err
    said = (
        "Training is finished, and step 20 is committed; the export failed: models/line.py:"
        " RuntimeError: no such key. Fix the cause, then type"
        f" `xrun export-model {project.run.run}`."
    )
    assert said in done.err
    report = project.run.report()
    assert (report.status, report.step, report.model) == ("finished", 20, None)
    assert report.export_failed == "models/line.py: RuntimeError: no such key."
    assert len(report.attempts) == 1
    assert not project.run.model.exists()
    again = project.attempt(processes=processes)
    assert again.code == 2
    assert one_line(again.err), again.err
    assert f"type `xrun export-model {project.run.run}`" in again.err
    assert "Nothing was trained." in again.err
    assert len(record(project.run)["attempts"]) == 1


def test_the_export_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`xrun export-model` makes the model of the last commit once its cause is gone, and then the
    run is as one that never failed."""
    project = failing(tmp_path)
    assert project.attempt().code == 2
    (tmp_path / "broken").unlink()
    done = project.xrun("export-model", project.run.run)
    assert done.code == 0, done.err
    assert done.out == f"Exported step 20 of {project.run.run} to {project.run.model}\n"
    finished = project.run.record().finished
    assert finished is not None
    assert (finished.export_failed, finished.exported_step) == (None, 20)
    kept = load_file(project.run.model / "line.safetensors")
    (tmp_path / "other").mkdir()
    other = failing(tmp_path / "other")
    (tmp_path / "other" / "broken").unlink()
    assert other.attempt().code == 0
    same = load_file(other.run.model / "line.safetensors")
    assert all(torch.equal(kept[name], same[name]) for name in same)
    assert finished.weights_sha256 == other.run.report().weights_sha256
    assert "its model is in" in project.attempt().err
    assert len(record(project.run)["attempts"]) == 1


def test_a_model_that_is_made_again_costs_the_run_nothing(tmp_path: Path) -> None:
    """The attempt ended when it ended: its receipt and budget know nothing of the time until
    somebody made the model once more."""
    project = Project(tmp_path)
    assert project.attempt().code == 0
    before = record(project.run)["attempts"]
    receipt = json.loads(project.xrun("receipt", project.run.run, "--json").out)
    assert project.xrun("export-model", project.run.run).code == 0
    assert record(project.run)["attempts"] == before
    assert json.loads(project.xrun("receipt", project.run.run, "--json").out) == receipt


def test_a_trouble_that_passes_is_tried_again_by_itself(tmp_path: Path) -> None:
    """A full disk ends the attempt with 75; the next one goes on to the export, and trains
    nothing."""
    project = failing(tmp_path, why="")
    done = project.attempt()
    assert done.code == 75, done.err
    finished = project.run.record().finished
    assert finished is not None
    assert finished.export_again is True
    assert "28" in (finished.export_failed or "")
    before = curve(project.run)
    (tmp_path / "broken").unlink()
    assert project.attempt().code == 0
    report = project.run.report()
    assert (report.export_failed, len(report.attempts)) == (None, 2)
    assert curve(project.run) == before


def test_a_run_that_has_not_finished_has_no_model_yet(tmp_path: Path) -> None:
    """It is refused by its steps, before anything is imported."""
    project = Project(tmp_path)
    project.trap("SIGKILL", call=11 * 4, committed=5)
    assert project.attempt().code == 75
    with pytest.raises(LaunchError, match=r"has not finished: step \d+ of 20 is committed"):
        export_model(project.run)


BEST = (
    "train.export=best",
    "train.evaluate={every: 2 steps, metric: accuracy, mode: min}",
    "checkpoint={every: 1 steps, keep: 3}",
)
"""The step that is worst is early, and is taken for the best; saves are always on their way."""


@pytest.mark.parametrize(
    ("more", "processes"),
    [((), 1), (("train.ema=0.5",), 1), ((), 2), (("train.sharding=fsdp",), 2)],
    ids=["plain", "ema", "two", "fsdp"],
)
def test_the_best_checkpoint_is_exported(
    tmp_path: Path, more: tuple[str, ...], processes: int
) -> None:
    """The model is what a run that ends at the best step exports, bit by bit; record and card say
    which step it is."""
    project = Project(tmp_path)
    done = project.attempt(*BEST, *more, processes=processes)
    assert done.code == 0, done.err
    points = [point for point in project.run.points() if "val/accuracy" in point]
    best = min(points, key=lambda point: (point["val/accuracy"], point["step"]))
    finished = project.run.record().finished
    assert finished is not None
    assert finished.exported_step == best["step"] < finished.step == 20
    card = (project.run.model / "README.md").read_text()
    assert f"This is step {best['step']}, the best one." in card
    assert f"| val/accuracy | {best['val/accuracy']:.6g} |" in card
    (tmp_path / "short").mkdir()
    short = Project(tmp_path / "short")
    steps = f"train.steps={best['step']}"
    assert short.attempt(*BEST[1:], *more, steps, processes=processes).code == 0
    assert weights(project.run) == weights(short.run)


def test_best_needs_something_to_be_measured_on(tmp_path: Path) -> None:
    """Without `val` it is refused before the first step."""
    project = Project(tmp_path)
    text = (tmp_path / "datasets" / "points.py").read_text()
    project.write("datasets/points.py", text.replace(', "val": Points("val", 41)', ""))
    done = project.attempt(*BEST)
    assert done.code == 2
    assert "train.export: `best` needs the split 'val'" in done.err


def test_the_command_says_what_it_is_for() -> None:
    """`xrun export-model --help` names the two choices."""
    told = CliRunner().invoke(cli, ["export-model", "--help"]).output
    assert "--best" in told
    assert "--last" in told
