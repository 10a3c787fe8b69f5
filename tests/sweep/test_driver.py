"""All trials of a sweep by one command, under kills of its parts: the same trials go on, and end
with the bits of runs that nobody has disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running import (
    Project,
    children,
    curve,
    ended,
    processes_of,
    record,
    steps_of,
    until,
    weights,
)
from xrun.run.folder import RunFolder
from xrun.sweep.board import Board
from xrun.sweep.standing import Standing
from xrun.sweep.trials import Trials

SWEEP = """\
sweep:
  parameters:
    model.args.width: [4, 8, -1]
    train.optimizer.lr: [0.003, 0.1]
  metric: loss
  parallel: 2
  stop: {method: halving, rungs: 1, reduction: 3}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project of which no process is left behind, whatever a test has done."""
    project = Project(tmp_path / "swept")
    text = project.recipe.read_text().replace(
        "  optimizer", "  evaluate: {every: 5 steps}\n  optimizer"
    )
    project.write("recipes/swept.yaml", text + SWEEP)
    yield project
    for pid in processes_of(project.root):
        os.kill(pid, signal.SIGKILL)


def trials_of(project: Project) -> Trials:
    return Trials.of(project.root / "recipes" / "swept.yaml")


def standing_of(project: Project) -> Standing:
    trials = trials_of(project)
    return Board(trials, trials.own_plan, reads=True).standing()


def trial_that_runs(project: Project, driver: int) -> int:
    """The process of a trial that has begun to train."""
    held = {
        RunFolder(trial.plan.folder).owner_pid()
        for trial in trials_of(project).all()
        if RunFolder(trial.plan.folder).metrics.exists()
    }
    return next((pid for pid in children(driver) if pid in held), 0)


def test_kills_change_no_survivor_and_no_bit(project: Project) -> None:
    """SIGKILL of the command, SIGKILL of a trial, SIGTERM of the command: the same command goes on
    each time. Trials that fail are results. The survivors are those that the runs without a sweep
    tell, and have their bits."""
    command = project.start("recipes/swept.yaml")
    until(lambda: trial_that_runs(project, command.pid), "a trial that trains")
    second = project.xrun("recipes/swept.yaml")
    assert second.code == 3
    assert f"is running already (process {command.pid})" in second.err
    os.kill(command.pid, signal.SIGKILL)
    assert ended(command).code == -signal.SIGKILL
    until(lambda: not processes_of(project.root), "the end of what the command has left")

    command = project.start("recipes/swept.yaml")
    victim = until(lambda: trial_that_runs(project, command.pid), "a trial that trains")
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in children(command.pid), "its end")
    until(lambda: trial_that_runs(project, command.pid), "a trial that trains")
    os.kill(command.pid, signal.SIGTERM)
    done = ended(command)
    assert done.code == 75, done.err
    assert "The same command goes on with what is missing." in done.err
    assert not processes_of(project.root)

    done = project.xrun("recipes/swept.yaml", seconds=500)
    assert done.code == 0, done.out + done.err
    losses = {number: losses_alone(project, number) for number in range(1, 5)}
    expected = tuple(sorted(sorted(losses, key=lambda number: losses[number][10])[:2]))
    standing = standing_of(project)
    assert standing.at(2) == expected
    assert [standing.state_of(number) for number in (5, 6)] == ["failed", "failed"]
    assert standing.best == min(expected, key=lambda number: losses[number][20])
    assert f"Best: trial {standing.best}, loss " in done.out
    for number in range(1, 5):
        run = RunFolder(trials_of(project).trial(number).plan.folder)
        assert steps_of(run)[-1] == (20 if number in expected else 10)
        if number in expected:
            assert curve(run) == curve(alone(project, number).run)
            assert weights(run) == weights(alone(project, number).run)
            ends = [attempt.get("reason") or "" for attempt in record(run)["attempts"]]
            assert any(reason.startswith("paused after step 10") for reason in ends)

    spent = project.xrun("recipes/swept.yaml", "-s", "sweep.budget.hours=1e-9")
    assert spent.code == 7
    assert "sweep.budget.hours: " in spent.err
    again = project.xrun("recipes/swept.yaml")
    assert (again.code, f"Best: trial {standing.best}" in again.out) == (0, True)


def alone(project: Project, number: int) -> Project:
    """The trial's values in a project of their own, trained by one attempt without a sweep."""
    other = Project(project.root.parent / f"alone-{number}")
    if not other.home.exists():
        values = trials_of(project).values[number - 1]
        given = [f"{key}={value}" for key, value in values.items()]
        assert other.attempt("train.evaluate.every=5 steps", *given).code == 0
    return other


def losses_alone(project: Project, number: int) -> dict[int, float]:
    """Step -> val/loss."""
    points = alone(project, number).run.points()
    return {point["step"]: point["val/loss"] for point in points if "val/loss" in point}
