"""What `method: bayes` proposes follows from the recipe and the board, is on the board before its
trial starts, and is never proposed anew."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.running import Project, ended, processes_of, until
from xrun.errors import LaunchError, RecipeError
from xrun.run.folder import RunFolder
from xrun.sweep.board import Board
from xrun.sweep.proposal import propose
from xrun.sweep.space import Values
from xrun.sweep.standing import Result, Standing
from xrun.sweep.trials import Trials

pytestmark = pytest.mark.once

RATE = "train.optimizer.lr"
RATES = """\
sweep:
  method: bayes
  max_trials: 20
  parameters: {train.optimizer.lr: {min: 1e-5, max: 1, log: true}}
"""
SMALL = """\
sweep:
  method: bayes
  max_trials: 50
  parameters:
    model.args.width: [4, 8]
    train.seed: {min: 1, max: 2}
    train.optimizer.weight_decay: {min: 0, max: 0.2, points: 3}
"""


def written(project: Project, sweep: str) -> Path:
    return project.write("recipes/swept.yaml", project.recipe.read_text() + sweep)


def played(
    path: Path, results: Callable[[int, Values], Result | None], most: int
) -> tuple[Values, ...]:
    """The proposals of a sweep whose trials end with these results before the next one is
    proposed; None is one that runs meanwhile."""
    trials = Trials.of(path, ["sweep.mode=min", "sweep.metric=loss"])
    board = Board(trials, trials.own_plan)
    while len(trials.values) < most:
        trials = propose(trials, board)
        number, values = len(trials.values), trials.values[-1]
        if (result := results(number, values)) is not None:
            board.post(number, 1, result)
    assert board.standing().proposed == trials.values
    return trials.values


def all_at_once(trials: Trials, board: Board, most: int = 50) -> Trials:
    """The trials that there are before any of them has a result."""
    runs = list[str]()
    while trials.are_open and len(trials.values) < most:
        trials = propose(trials, board, runs)
        runs.append(trials.trial(len(trials.values)).plan.run)
    assert len(set(runs)) == len(runs)
    return trials


def distance(values: Values) -> float:
    """How many factors of ten a rate is from 0.01, the best one."""
    return abs(math.log10(values[RATE]) + 2)


def end(number: int, values: Values) -> Result:
    return Result(20, distance(values))


def test_the_same_board_gives_the_same_proposals(tmp_path: Path) -> None:
    """On another machine too; with other results, and with one that has failed or still runs, they
    are others. They come close to what is best."""
    paths = [written(Project(tmp_path / name), RATES) for name in ("a", "b", "c", "d", "e")]
    first, broken = played(paths[0], end, 16), Result(3, failed="broken")
    assert played(paths[1], end, 13) == first[:13]
    others = [
        played(paths[2], lambda number, values: Result(20, -distance(values)), 13),
        played(paths[3], lambda number, values: None if number == 9 else end(number, values), 13),
        played(paths[4], lambda number, values: broken if number == 9 else end(number, values), 13),
    ]
    # Ten are drawn, whatever has come of them.
    assert [each[:10] == first[:10] for each in others] == [True] * 3
    assert len({tuple(each[RATE] for each in made) for made in [first[:13], *others]}) == 4
    drawn, proposed = [sorted(map(distance, part)) for part in (first[:10], first[10:])]
    assert proposed[3] < drawn[5]
    assert all(1e-5 <= each[RATE] <= 1 for each in first)


def test_a_small_space_is_tried_to_its_end(tmp_path: Path) -> None:
    """No two trials are one run, and with trials that all run at once neither; there are no more
    than the space has."""
    trials = Trials.of(written(Project(tmp_path), SMALL))
    trials = all_at_once(trials, Board(trials, trials.own_plan))
    assert len(trials.all()) == trials.count == 12
    with pytest.raises(LaunchError, match=r"has 12 trials \(got 13\)"):
        trials.trial(13)


def test_what_is_no_other_run_is_passed_over(tmp_path: Path) -> None:
    """Where then nothing is left, that is said, with the trials that there are."""
    sweep = SMALL.replace("model.args.width: [4, 8]", "train.optimizer.lr: [1, 1.0, 0.1]")
    path = written(Project(tmp_path), sweep)
    trials = Trials.of(path)
    board = Board(trials, trials.own_plan)
    trials = all_at_once(trials, board, 12)
    runs = [each.plan.run for each in trials.all()]
    with pytest.raises(LaunchError, match="no combination left after 12 trials"):
        propose(trials, board, runs)
    assert len(board.standing().proposed) == 12


def test_a_mistake_is_said_before_anything_is_proposed(tmp_path: Path) -> None:
    """Of any value that a trial could have, at its place."""
    path = written(Project(tmp_path), RATES.replace("1e-5", "-1").replace(", log: true", ""))
    with pytest.raises(RecipeError, match=r"train\.optimizer\.lr: must be greater than 0"):
        Trials.of(path).check()
    path = written(Project(tmp_path), SMALL.replace("[4, 8]", "[4, eight]"))
    with pytest.raises(RecipeError, match=r"model\.args\.width: `build` in line.py takes `int`"):
        Trials.of(path).check()
    path = written(Project(tmp_path), SMALL.replace("train.seed", "train.sed"))
    with pytest.raises(RecipeError, match=r"train\.sed: there is no such key"):
        Trials.of(path).check()


def test_who_was_first_has_proposed(tmp_path: Path) -> None:
    """Of two processes that propose at once one does, and the other takes that."""
    trials = Trials.of(written(Project(tmp_path), RATES))
    one, other = (Board(trials, trials.own_plan) for _ in range(2))
    first = propose(trials, one)
    assert propose(trials, other) == first
    standing = other.standing()
    assert Standing.from_json(other.rules, standing.to_json()) == standing


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "swept")
    yield project
    for pid in processes_of(project.root):
        os.kill(pid, signal.SIGKILL)


def test_a_killed_command_proposes_nothing_anew(project: Project) -> None:
    """Whatever has begun was on the board before, and the next command begins with that, two at a
    time."""
    written(project, RATES.replace("20", "3") + "  parallel: 2\n  metric: loss\n")
    path = project.root / "recipes" / "swept.yaml"
    trials = Trials.of(path)
    board = Board(trials, trials.own_plan)
    early = project.xrun("recipes/swept.yaml", "--trial", "2")
    assert (early.code, "has 0 trials so far, and others follow" in early.err) == (3, True)
    command = project.start("recipes/swept.yaml")
    until(lambda: len(begun(project)) == 2, "two trials that have begun", 400)
    os.kill(command.pid, signal.SIGKILL)
    ended(command)
    until(lambda: not processes_of(project.root), "the end of what the command has left", 400)
    before = board.standing().proposed
    assert len(before) in (2, 3)
    known = trials.with_values(before)
    assert begun(project) <= {each.plan.run for each in known.all()}

    done = project.xrun("recipes/swept.yaml", seconds=580)
    assert done.code == 0, done.out + done.err
    standing = board.standing()
    assert standing.proposed[: len(before)] == before
    assert (len(standing.proposed), standing.is_complete) == (3, True)
    assert begun(project) == {each.plan.run for each in trials.with_proposed(standing).all()}
    assert f"Best: trial {standing.best}, loss " in done.out


def begun(project: Project) -> set[str]:
    """The runs that have folders."""
    return {path.name for path in project.home.glob("tiny-*") if RunFolder(path).plan_file.exists()}
