"""A sweep without its recipe: what the board tells is what `xrun sweep table` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from support.running import Project
from support.shown_runs import trained
from xrun.run.folder import runs_in
from xrun.run.listing import boards_at, of_folders, sweeps_of
from xrun.run.stores import open_store
from xrun.sweep.board import Board
from xrun.sweep.standing import Result
from xrun.sweep.table import rows
from xrun.sweep.told import ToldSweep
from xrun.sweep.trials import Trials

SWEEP = """\
sweep:
  parameters:
    model.args.width: [4, 8]
    train.optimizer: [{name: adamw, lr: 0.1}, {name: sgd, lr: 0.2}]
  stop: {method: halving, rungs: 1, reduction: 2}
"""


def test_a_board_tells_its_sweep(tmp_path: Path) -> None:
    """Row by row, in every state, with runs found by their values; a run of another length with the
    same values is not taken for the trial."""
    project = Project(tmp_path)
    path = project.write("recipes/tiny.yaml", project.recipe.read_text() + SWEEP)
    trials = Trials.of(path, ["train.evaluate.every=5 steps"])
    every = trials.all()
    for each in every[:3]:
        trained(each.plan, steps=20)
    other = trials.trial(1).plan
    trained(replace(other, run="tiny-longer", sweep=""), steps=40, seed=9)
    board = Board(trials, trials.own_plan)
    board.post(1, 1, Result(10, 0.5))
    board.post(2, 1, Result(10, failed="its val/loss is nan"))
    board.post(3, 1, Result(10, 0.25))

    (head,) = boards_at(str(project.home))
    told = ToldSweep.of(head)
    assert told is not None
    reports = of_folders(runs_in(project.home), metrics=False)
    standing = board.standing()
    known = list(rows(every, standing))
    assert told.standing == standing
    found = told.rows(reports, sweeps_of(reports))
    alike = [
        [replace(row, run="", hours=round(row.hours or 0, 4)) for row in each]
        for each in (found, known)
    ]
    assert alike[0] == alike[1]
    assert [row.run for row in found] == [*(row.run for row in known[:3]), ""]
    assert told.importance() == {"model.args.width": 0.5, "train.optimizer": 0.5}


def test_a_damaged_board_is_no_sweep(tmp_path: Path) -> None:
    """And takes nothing else from a page."""
    project = Project(tmp_path)
    path = project.write("recipes/tiny.yaml", project.recipe.read_text() + SWEEP)
    trials = Trials.of(path, ["train.evaluate.every=5 steps"])
    store = open_store(trials.own_plan, "a")
    damaged: list[dict[str, Any]] = [{"sweep": []}, {"sweep": {"mode": "min", "trials": [1]}}]
    for record in damaged:
        head = store.commit(record, store.head())
        assert ToldSweep.of(head) is None
