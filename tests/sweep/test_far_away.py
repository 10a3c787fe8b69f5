"""A sweep whose states and board are in a bucket: any machine goes on where another has ended, and
a listing of the place tells of runs alone, and a page of the sweep as well."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.buckets import Server, moto
from support.far_away import environment
from support.running import Project, attempt, curve, weights
from xrun.pages.sheet import Room, sheet_of
from xrun.run.folder import RunFolder
from xrun.run.listing import boards_at, list_runs
from xrun.run.plan import Plan
from xrun.sweep.board import Board
from xrun.sweep.result import Measure, result_of
from xrun.sweep.standing import Result
from xrun.sweep.told import ToldSweep
from xrun.sweep.trial import Course
from xrun.sweep.trials import Trials

pytestmark = pytest.mark.once

SWEEP = """\
sweep:
  parameters: {train.optimizer.lr: [0.001, 0.01, 0.1, 0.3]}
  stop: {method: halving, rungs: 1, reduction: 4}
"""
EVALUATED = "train.evaluate.every=5 steps"


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with moto() as server:
        yield server


def go(project: Project, bucket: str, number: int) -> tuple[int, Trials]:
    """A trial, by a machine that has this project's folder."""
    path = project.write("recipes/swept.yaml", project.recipe.read_text() + SWEEP)
    trials = Trials.of(path, [EVALUATED, f"checkpoint.store={bucket}"])

    def launch(plan: Plan) -> int:
        return attempt(plan).code

    plan = trials.trial(number).plan
    board = Board(trials, trials.own_plan)
    return Course(trials, number, plan, board, launch, lambda text: None).go(), trials


def test_a_sweep_survives_the_loss_of_every_machine(tmp_path: Path, s3: Server) -> None:
    """A trial pauses on a machine that is then gone. Another one, which has never seen it, knows
    its result, goes on once the rung is full, and ends with the bits of the run without a sweep."""
    alone = Project(tmp_path / "alone")
    assert alone.attempt(EVALUATED, "train.optimizer.lr=0.1").code == 0
    with environment(s3.environ):
        bucket = f"{s3.make('swept')}/team/runs"
        first = Project(tmp_path / "first")
        code, trials = go(first, bucket, 3)
        assert code == 0
        shutil.rmtree(first.root)

        other = Project(tmp_path / "other")
        path = other.write("recipes/swept.yaml", other.recipe.read_text() + SWEEP)
        trials = Trials.of(path, trials.overrides)
        board = Board(trials, trials.own_plan)
        plan = trials.trial(3).plan
        known = board.standing().results[1][3]
        assert result_of(replace(plan, pause=4), Measure.of(trials)) == known
        for number, value in ((1, 5.0), (2, 4.0), (4, 3.0)):
            board.post(number, 1, Result(5, value))
        assert board.standing().at(2) == (3,)
        assert go(other, bucket, 3)[0] == 0
        run = RunFolder(plan.folder)
        assert board.standing().best == 3
        assert curve(run) == curve(alone.run)
        assert weights(run) == weights(alone.run)
        assert [each.run for each in list_runs(bucket)] == [plan.run]
        (report,) = list_runs(bucket)
        (head,) = boards_at(bucket)
        told = ToldSweep.of(head)
        assert told is not None
        assert told.standing == board.standing()
        assert [row.run for row in told.rows([report], {})] == ["", "", plan.run, ""]
        sheet = sheet_of(report, Room.on_a_page(1))
        assert sheet.series["train/loss"].steps == tuple(range(1, 21))
        assert [number for number, _ in sheet.logs] == [1, 2]
        assert sheet.report.logged_step == 20
