"""Early stopping (`train.evaluate.patience`): the run ends finished, at the same step through kills
and on several processes, says why, and does not go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.running import Project, copy, curve, record, steps_of, weights
from xrun.run.checkpoint import is_by
from xrun.run.folder import RunFolder

STOPS = (
    "train.evaluate={every: 2 steps, metric: loss, mode: max, patience: 3}",
    "train.optimizer.lr=0.05",
    "checkpoint.keep=2",
)
"""The loss falls, so that the first evaluation is the best one if more is better."""
END = 8


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("patient"))
    assert project.attempt(*STOPS).code == 0
    return project


def end(project: Project) -> tuple[int, str, str]:
    """The last step, the run's status, and why it ended."""
    report = project.run.report()
    return report.step or 0, report.status, report.attempts[-1].reason or ""


def test_it_ends_after_so_many_evaluations_without_a_better_one(undisturbed: Project) -> None:
    """Best at step 2, then three that are no better: finished at step 8 with its model, the reason
    in the record; the best checkpoint is there."""
    step, status, reason = end(undisturbed)
    losses = {p["step"]: p["val/loss"] for p in undisturbed.run.points() if "val/loss" in p}
    assert max(losses, key=lambda at: losses[at]) == 2
    assert (step, status) == (END, "finished")
    assert reason == (
        "stopped early at step 8: in 3 evaluations in a row val/loss was not better than"
        f" {losses[2]:.6g} at step 2"
    )
    assert record(undisturbed.run)["finished"]["reason"] == reason
    assert steps_of(undisturbed.run)[0] == 2
    assert weights(undisturbed.run)


def test_it_does_not_go_on(undisturbed: Project) -> None:
    """Neither with the same command nor with more steps; with more patience it does."""
    for more in ((), ("train.steps=30",)):
        assert undisturbed.attempt(*STOPS, *more).code == 0
        assert end(undisturbed)[:2] == (END, "finished")
    assert len(undisturbed.run.report().attempts) == 1


def test_kills_change_nothing(undisturbed: Project, tmp_path: Path) -> None:
    """Killed after the second evaluation that was no better, it still ends at the same step, with
    the same bits."""
    project = Project(tmp_path)
    project.trap("SIGKILL", call=4 * 6 + 1, committed=5)
    code = project.attempt(*STOPS).code
    while code == 75:
        code = project.attempt(*STOPS).code
    assert code == 0
    assert len(project.run.report().attempts) > 1
    assert end(project) == end(undisturbed)
    assert weights(project.run) == weights(undisturbed.run)
    assert curve(project.run) == curve(undisturbed.run)


@pytest.mark.parametrize(("metric", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_a_fork_by_another_metric_looks_for_its_best_anew(
    undisturbed: Project, tmp_path: Path, metric: str, mode: str
) -> None:
    """The run has ended for lack of patience, its best a high loss; a fork that counts something
    else goes on, and its best is of its own evaluations, also where it is killed on its way."""
    project = copy(undisturbed, tmp_path / "forked")
    run, how = project.run.run, f"metric: {metric}, mode: {mode}"
    given = (*STOPS, f"train.evaluate={{every: 2 steps, {how}}}", "train.export=best")
    project.trap("SIGKILL", call=4 * 6 + 1, committed=END + 5)
    while (code := project.attempt(*given, run="tiny-forked", fork=run).code) == 75:
        pass
    assert code == 0
    forked = RunFolder(project.home / "tiny-forked")
    values = {p["step"]: p[f"val/{metric}"] for p in forked.points() if f"val/{metric}" in p}
    assert min(values) == END + 2
    value = (min if mode == "min" else max)(values.values())
    step = next(each for each in sorted(values) if values[each] == value)
    told = {"step": step, "value": value, "metric": metric, "mode": mode}
    assert record(forked)["checkpoints"][-1]["numbers"]["best"] == told
    assert record(forked)["finished"]["exported_step"] == step
    assert len(record(forked)["attempts"]) > 1
    assert forked.report().best == {"metric": f"val/{metric}", "step": step, "value": value}


def test_a_best_of_an_older_xrun_counts_as_the_recipes() -> None:
    """It has no metric and no mode; with them it counts by these alone."""
    older = {"step": 2, "value": 0.5}
    assert is_by(older, "loss", "max")
    assert is_by({**older, "metric": "loss", "mode": "max"}, "loss", "max")
    assert not is_by({**older, "metric": "loss", "mode": "max"}, "loss", "min")
    assert not is_by({**older, "metric": "loss", "mode": "max"}, "accuracy", "max")


def test_two_processes_agree(tmp_path: Path) -> None:
    """Both end after the same step."""
    project = Project(tmp_path)
    assert project.attempt(*STOPS, processes=2).code == 0
    assert end(project)[:2] == (END, "finished")


def test_more_patience_goes_on(undisturbed: Project) -> None:
    """To the next evaluations, and then to the last step."""
    more = [each.replace("patience: 3", "patience: 4") for each in STOPS]
    assert undisturbed.attempt(*more).code == 0
    assert end(undisturbed)[:2] == (END + 2, "finished")
    without = [each.replace(", patience: 3", "") for each in STOPS]
    assert undisturbed.attempt(*without).code == 0
    assert end(undisturbed) == (20, "finished", "")
    assert record(undisturbed.run)["finished"].get("reason") is None
