"""Row 17: what early stops save. A sweep of 24 trials of digits by halving, and then the same
trials to their ends, for three seeds: the share of the grid's steps that was trained, and whether
the winner is the grid's.

The configuration was chosen by reasoning, before anything was measured with it. One trial of two
goes on, at 1/8, 1/4 and 1/2 of the steps: high learning rates come late, so a trial is to lose to
half of the others before it goes, and the last three are chosen after half of the steps. The winner
is said by the loss, which has no ties, as counted pictures have.

Trials go to their rungs by what `xrun RECIPE --trial N` calls, one after the other, with ranks that
have imported torch already: no clock plays a part in this row. The rest of the grid goes on from
where the sweep has left each trial, so the whole costs one grid.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.result import Row, main, median, spread
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.sweep.board import Board
from xrun.sweep.standing import Standing
from xrun.sweep.trial import Course
from xrun.sweep.trials import Trials

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "servers")]

from support.running import attempt  # noqa: E402

SWEEP = """
sweep:
  parameters:
    train.optimizer.lr: {min: 1e-4, max: 1e-1, log: true, points: 6}
    model.args.hidden: [16, 32, 64, 128]
  metric: loss
  parallel: 2
  stop: {method: halving, rungs: 3, reduction: 2}
"""
TARGET = 0.4


def measure(quick: bool) -> Iterator[Row]:
    """One number, in which no clock plays a part."""
    steps, seeds = (80, [0]) if quick else (600, [0, 1, 2])
    seen = [_sweep(steps, seed) for seed in seeds]
    shares = [each["share"] for each in seen]
    name = "steps of a sweep by halving, of the grid's, with the same winner"
    also = {"trials": seen[0]["trials"], "steps": steps, "seeds": seen}
    met = all(each["rank"] == 1 for each in seen)
    yield Row(17, name, median(shares), TARGET, "lower", {"grid": 1.0}, spread(shares), also, met)


def _sweep(steps: int, seed: int) -> dict[str, Any]:
    """The sweep, and then its grid: the share of the steps that the sweep has trained, its winner,
    and the place of that in the grid, where 1 is the best one."""
    short = (
        f"train.seed={seed}",
        f"train.steps={steps}",
        f"train.evaluate.every={steps // 8} steps",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipes" / "sweep.yaml"
        path.parent.mkdir()
        path.write_text((ROOT / "recipes" / "digits_mlp.yaml").read_text() + SWEEP)
        alone = (*short, "sweep.stop=null")
        trials, whole = Trials.of(path, short), Trials.of(path, alone)
        winner = _trained(trials).best
        runs = [RunFolder(each.plan.folder) for each in trials.all()]
        trained = sum(max(run.record().committed_step, 0) for run in runs)
        grid = _trained(whole)
    assert winner is not None
    return {
        "seed": seed,
        "trials": len(runs),
        "share": trained / (steps * len(runs)),
        "winner": winner,
        "of_the_grid": grid.best,
        "rank": grid.ranked(1).index(winner) + 1,
        "losses": [grid.results[1][number].value for number in (winner, grid.best)],
    }


def _trained(trials: Trials) -> Standing:
    """What the board says once no trial has anything left to do."""
    board = Board(trials, trials.own_plan)
    while not board.standing().is_complete:
        for each in trials.all():
            Course(trials, each.number, each.plan, board, _attempt, print).go()
    return board.standing()


def _attempt(plan: Plan) -> int:
    return attempt(plan).code


if __name__ == "__main__":
    main(measure)
