"""The board: results of trials that come at once are all there, in every kind of store."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from support.running import Project
from xrun.errors import CheckpointCorrupt
from xrun.run.plan import Plan
from xrun.run.stores import open_store
from xrun.sweep.board import Board
from xrun.sweep.standing import Result
from xrun.sweep.trials import Trials

SWEEP = """\
sweep:
  parameters: {model.args.width: {min: 4, max: 19, points: 16}}
  stop: {method: halving, rungs: 1, reduction: 4}
"""


def trials(project: Project) -> Trials:
    path = project.write("recipes/swept.yaml", project.recipe.read_text() + SWEEP)
    return Trials.of(path, ["train.evaluate.every=5 steps"])


def put_at_once(made: Trials, plan: Plan, threads: int = 4) -> Board:
    """Every trial's result, by several processes' worth of boards at once."""

    def put(numbers: range) -> None:
        board = Board(made, plan)
        for number in numbers:
            board.post(number, 1, Result(10, number / 16))

    numbers = [range(first, 17, threads) for first in range(1, threads + 1)]
    workers = [threading.Thread(target=put, args=[each]) for each in numbers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Board(made, plan, reads=True)


def test_no_result_is_lost(tmp_path: Path) -> None:
    """Sixteen results by four at once: each is there, and the rung is decided from all of them. The
    same again commits nothing."""
    made = trials(Project(tmp_path))
    standing = put_at_once(made, made.own_plan).standing()
    assert len(standing.results[1]) == 16
    assert standing.at(2) == (1, 2, 3, 4)
    head = open_store(made.own_plan, "reader", create=False).head()
    assert Board(made, made.own_plan).post(3, 1, Result(10, 0.9)) == standing
    assert open_store(made.own_plan, "reader", create=False).head() == head


def test_a_board_is_no_run(tmp_path: Path) -> None:
    """What lies there and is none is refused, by its name; a board is listed as no run."""
    made = trials(Project(tmp_path))
    plan = made.own_plan
    assert Board(made, plan, reads=True).standing().results == {}
    open_store(plan, "a1").commit({"attempts": []}, None)
    with pytest.raises(CheckpointCorrupt, match=f"board {made.id} is not a sweep's"):
        Board(made, plan).standing()


def test_another_sweep_has_another_board(tmp_path: Path) -> None:
    """What decides which trials go on is in the sweep's id; how many run at a time, and what they
    may cost, is not."""
    project = Project(tmp_path)
    own = trials(project)
    path = tmp_path / "recipes" / "swept.yaml"
    every = "train.evaluate.every=5 steps"
    ids = {
        change: Trials.of(path, [every, change]).id
        for change in (
            "sweep.parallel=3",
            "sweep.budget.hours=2",
            "sweep.stop.reduction=3",
            "sweep.metric=loss",
            "sweep.metric=accuracy",
            "train.steps=40",
            "train.optimizer.lr=0.1",
            "sweep.parameters.train.seed=[0, 1]",
        )
    }
    assert [change for change, name in ids.items() if name == own.id] == [
        "sweep.parallel=3",
        "sweep.budget.hours=2",
        "sweep.metric=loss",
    ]
    assert len(set(ids.values())) == 6
    assert own.own_plan == replace(own.base, run=own.id)
