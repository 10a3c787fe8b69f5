"""All trials of a sweep by one command, under kills of its parts: the same trials go on, and end
with the bits of runs that nobody has disturbed."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.paths import RECIPES
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
from xrun.sweep.driver import Driver
from xrun.sweep.result import Measure
from xrun.sweep.standing import Result, Standing
from xrun.sweep.trials import Trials

SWEEP = """\
sweep:
  parameters:
    model.args.width: [4, 8, 16, -1]
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


def trial_of(trials: Trials, driver: int) -> int:
    """The process of a trial that has begun to train; 0 while there is none."""
    held = {
        RunFolder(trial.plan.folder).owner_pid()
        for trial in trials.all()
        if RunFolder(trial.plan.folder).metrics.exists()
    }
    return next((pid for pid in children(driver) if pid in held), 0)


def test_kills_change_no_survivor_and_no_bit(project: Project) -> None:
    """SIGKILL of the command, SIGKILL of a trial, SIGTERM of the command: the same command goes on
    each time. Trials that fail are results. The survivors are those that the runs without a sweep
    tell, and have their bits."""
    trials = trials_of(project)
    command = project.start("recipes/swept.yaml")
    until(lambda: trial_of(trials, command.pid), "a trial that trains", 400)
    second = project.xrun("recipes/swept.yaml")
    assert second.code == 3
    assert f"is running already (process {command.pid})" in second.err
    os.kill(command.pid, signal.SIGKILL)
    assert ended(command).code == -signal.SIGKILL
    until(lambda: not processes_of(project.root), "the end of what the command has left", 400)

    command = project.start("recipes/swept.yaml")
    victim = until(lambda: trial_of(trials, command.pid), "a trial that trains", 400)
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in children(command.pid), "its end", 400)
    until(lambda: trial_of(trials, command.pid), "a trial that trains", 400)
    os.kill(command.pid, signal.SIGTERM)
    done = ended(command)
    assert done.code == 75, done.err
    assert "Run the same command again: it goes on with the trials that are missing." in done.err
    assert not processes_of(project.root)

    done = project.xrun("recipes/swept.yaml", seconds=580)
    assert done.code == 0, done.out + done.err
    losses = {number: losses_alone(project, number) for number in range(1, 4)}
    expected = sorted(losses, key=lambda number: losses[number][10])[:2]
    standing = standing_of(project)
    assert standing.at(2) == tuple(sorted(expected))
    assert standing.state_of(4) == "failed"
    assert standing.best == min(expected, key=lambda number: losses[number][20])
    assert f"Best: trial {standing.best}, loss " in done.out
    runs = {number: RunFolder(trials_of(project).trial(number).plan.folder) for number in losses}
    assert {number: steps_of(run)[-1] for number, run in runs.items()} == {
        number: 20 if number in expected else 10 for number in losses
    }
    for number in expected:
        ends = [attempt.get("reason") or "" for attempt in record(runs[number])["attempts"]]
        assert any(reason.startswith("paused after step 10") for reason in ends)
        assert curve(runs[number]) == curve(alone(project, number).run)
        assert weights(runs[number]) == weights(alone(project, number).run)

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


def test_a_sweep_is_stopped_by_its_recipe(project: Project) -> None:
    """`xrun sweep stop` has the trials that run saved, and the command ended; a second time there
    is nothing to stop."""
    project.trap("hold", call=5)
    command = project.start("recipes/swept.yaml")
    until((project.root / "held").exists, "a trial that trains", 400)
    stopped = project.xrun("sweep", "stop", "recipes/swept.yaml")
    assert stopped.code == 0, stopped.err
    assert f"Asked the command that runs it (process {command.pid})" in stopped.out
    assert "`xrun recipes/swept.yaml` goes on with its trials." in stopped.out
    assert ended(command).code == 75
    assert not processes_of(project.root)
    again = project.xrun("sweep", "stop", "recipes/swept.yaml")
    assert again.code == 3
    assert f"Nothing of the sweep {trials_of(project).id} runs." in again.err


TWO = """\
sweep:
  parameters: {model.args.width: [4, 8]}
  metric: loss
  parallel: 2
"""
ENDS = """
import sys, time
from pathlib import Path
from xrun.sweep.board import Board
from xrun.sweep.driver import Driver
from xrun.sweep.standing import Result
from xrun.sweep.trials import Trials

recipe, trial, value, code, told = sys.argv[1:]
if value:
    trials = Trials.of(Path(recipe))
    result = Result(20, failed="it diverged") if value == "nan" else Result(20, float(value))
    Board(trials, trials.own_plan).post(int(trial), 1, result)
while told and not Path(told).exists():
    time.sleep(0.01)
sys.exit(int(code))
"""
"""A trial's process: it puts a value on the board where it has one, waits for a file where it is
given one, and ends with a code."""


def ends(project: Project, trial: int, value: str, code: int = 0, told: str = "") -> list[str]:
    recipe = str(project.root / "recipes" / "swept.yaml")
    return [sys.executable, "-c", ENDS, recipe, str(trial), value, str(code), told]


def test_a_failure_that_is_told_before_its_process_ends_leaves_no_code(project: Project) -> None:
    """Trial 1 has failed on the board; its process lives until trial 2 has ended, and that was
    said."""
    project.write("recipes/swept.yaml", project.recipe.read_text() + TWO)
    trials, told, said = trials_of(project), project.root / "told", list[str]()

    def say(line: str) -> None:
        said.append(line)
        if sum("has failed" in each or "has finished" in each for each in said) == 2:
            told.touch()

    def command(number: int) -> list[str]:
        if number == 1:
            return ends(project, 1, "nan", 6, str(told))
        until(lambda: board.standing().result_of(1), "the failure of trial 1")
        return ends(project, 2, "0.5")

    board = Board(trials, trials.own_plan)
    assert Driver(trials, board, command, say, said.append).run() == 0
    assert sorted(said) == [
        "trial 1 has failed: it diverged",
        "trial 2 has finished, loss 0.5 at step 20.",
    ]


def test_a_result_that_somebody_brings_after_the_last_look_counts(project: Project) -> None:
    """Trial 1 has ended with a code; another process has its result while the driver tells that,
    and nothing else runs."""
    project.write("recipes/swept.yaml", project.recipe.read_text() + TWO)
    trials, said = trials_of(project), list[str]()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("trial 1 ended with 3 and no result"):
            subprocess.run(ends(project, 1, "0.25"), check=True)

    board = Board(trials, trials.own_plan)
    board.post(2, 1, Result(20, 0.5))
    command = ends(project, 1, "", 3)
    assert Driver(trials, board, lambda number: command, say, said.append).run() == 0
    assert said[-1] == "trial 1 has finished, loss 0.25 at step 20."


DIGITS = """\
sweep:
  parameters:
    train.optimizer.lr: {min: 1e-4, max: 1e-1, log: true, points: 6}
    model.args.hidden: [16, 32, 64, 128]
  parallel: 2
  stop: {method: halving, rungs: 2, reduction: 3}
"""
SHORT = (
    "train.steps=60",
    "train.schedule.warmup_steps=10",
    "train.evaluate.every=10 steps",
    "checkpoint.every=7 steps",
)
GIVEN = [part for each in SHORT for part in ("-s", each)]
KILLS = 12


@pytest.mark.soak
def test_24_trials_of_digits_under_kills(tmp_path: Path) -> None:
    """SIGKILLs of trials, of the command, and of all at once, as a machine that vanishes: the
    survivors are those that the points of the whole grid tell, with at most 0.4 of its steps, and
    each has the bits of the run that nobody has disturbed."""
    project, text = Project(tmp_path / "swept"), (RECIPES / "digits_mlp.yaml").read_text()
    path = project.write("recipes/swept.yaml", text + DIGITS)
    trials = Trials.of(path, SHORT)
    disturb(project, trials, random.Random(0))
    done = project.xrun("recipes/swept.yaml", *GIVEN, seconds=5000)
    assert done.code == 0, done.out + done.err
    standing = Board(trials, trials.own_plan, reads=True).standing()
    runs = {each.number: RunFolder(each.plan.folder) for each in trials.all()}
    trained = sum(steps_of(run)[-1] for run in runs.values())
    print(f"{trained} of {60 * len(runs)} steps, {trained / 60 / len(runs):.3f} of the grid's")
    assert trained <= 0.4 * 60 * len(runs)

    grid = project.xrun("recipes/swept.yaml", *GIVEN, "-s", "sweep.stop=null", seconds=5000)
    assert grid.code == 0, grid.out + grid.err
    expected = Standing(standing.rules)
    for rung, part in enumerate(trials.parts, 1):
        for number in expected.at(rung):
            plan = replace(trials.trial(number).plan, pause=part)
            found = Measure.of(trials).result(runs[number].points(), plan.pause_step(None) or 60)
            expected = expected.with_result(number, rung, found)
    assert standing == expected
    for number in standing.at(3):
        other = Project(tmp_path / f"alone-{number}")
        other.write("recipes/swept.yaml", text)
        values = [f"{key}={value}" for key, value in trials.values[number - 1].items()]
        given = [part for each in values for part in ("-s", each)]
        assert other.xrun("recipes/swept.yaml", *GIVEN, *given, seconds=1000).code == 0
        assert curve(other.run) == curve(runs[number])
        assert weights(other.run) == weights(runs[number])


def disturb(project: Project, trials: Trials, source: random.Random) -> None:
    """Start the sweep again and again, and kill parts of it while trials train."""
    board, command = Board(trials, trials.own_plan, reads=True), None
    for _ in range(KILLS):
        if command is None or command.poll() is not None:
            none = subprocess.DEVNULL
            command = project.start("recipes/swept.yaml", *GIVEN, stdout=none, stderr=none)
        further = functools.partial(has, board, known(board) + source.choice([0, 1, 2, 3]))
        until(further, "further results", 3000)
        trial = until(functools.partial(trial_of, trials, command.pid), "a trial", 3000)
        what = source.choice(["a trial", "the command", "all"])
        if what == "a trial":
            os.kill(trial, signal.SIGKILL)
        elif what == "the command":
            os.kill(command.pid, signal.SIGKILL)
            command.wait()
        else:
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()
        print(f"killed {what}, with {known(board)} results there", flush=True)
    if command is not None and command.poll() is None:
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()


def has(board: Board, results: int) -> bool:
    """Whether so many results are on a board."""
    return known(board) >= results


def known(board: Board) -> int:
    """How many results are on a board."""
    return sum(map(len, board.standing().results.values()))
