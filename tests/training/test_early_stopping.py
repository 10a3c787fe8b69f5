"""Early stopping (`train.evaluate.patience`): the run ends finished, at the same step through kills
and on several processes, says why, and does not go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.running import Project, curve, record, steps_of, weights

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
