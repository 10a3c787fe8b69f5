"""The end of a run that is trained: real attempts, whose export fails, and which weights it takes.

Covers `xrun.launcher.export` and `xrun.training.export_again`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from support.running import FAILING, Project, curve, one_line, record, weights
from xrun.cli.app import cli
from xrun.clock import now
from xrun.errors import LaunchError
from xrun.launcher.export import export_model
from xrun.run.record import RunRecord
from xrun.run.spending import hours
from xrun.run.stores import open_store


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


@pytest.mark.parametrize("killed", [False, True])
def test_a_model_that_is_made_again_takes_nothing_of_the_budget(
    tmp_path: Path, killed: bool
) -> None:
    """Days later the run has cost what it had cost at its end, also where an attempt was killed
    before it could record that; looking at a run changes nothing of its record."""
    project = Project(tmp_path)
    assert project.attempt().code == 0
    days_ago(project, 3, killed=killed)
    before, took = project.run.record(), project.run.report().receipt.hours
    run = project.run.run
    for looks in (("verify",), ("report",), ("receipt",), ("evaluate", "--split", "val")):
        assert project.xrun(looks[0], run, *looks[1:]).code == 0
    assert project.run.record() == before
    assert project.xrun("export-model", run).code == 0
    after = project.run.record()
    assert project.run.report().receipt.hours == pytest.approx(took)
    assert f"{took:.4f} h" in (project.run.model / "README.md").read_text()
    assert hours(after.attempts, now()) == pytest.approx(took, abs=1e-4), "so the budget counts"
    if not killed:
        assert after.attempts == before.attempts


def days_ago(project: Project, days: int, *, killed: bool) -> None:
    """Commit that the run's only attempt lived so long ago; of one that was `killed` at the end
    nobody has recorded any."""
    head = project.run.head()
    assert head is not None
    record = RunRecord.of(head)
    own = record.attempts[0]
    times = ("started", "trained_from", "billed_from", "last_seen", "ended")
    known = {name: getattr(own, name) for name in times if getattr(own, name) is not None}
    earlier = {name: when - days * 86400 for name, when in known.items()}
    record = record.with_last(**earlier)
    if killed:
        record = replace(
            record.with_last(ended=None, end=None, code=None, reason=None, committed=None),
            finished=None,
        )
    open_store(project.run.plan(), head.attempt).commit(record.to_json(), head)
    project.run.metrics.unlink()  # its points are as old


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
