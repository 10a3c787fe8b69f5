"""Row 17: what early stops save. A sweep of 24 trials of digits by halving beside the same trials
to their ends, for six seeds: the share of the grid's steps that it trains, and whether its winner
is the grid's.

Two trials of three go on, at five rungs between an eighth and two thirds of the steps. That was
chosen on plain PyTorch, on seeds from 100 on, of this grid and of one with other data: the best few
of a grid are close, and a rung that keeps half of them loses one of them more often than two that
keep two thirds. Seeds 11, 12 and 13 were set then, before anything was measured with them; 0, 1 and
2 are those of the row before. The winner is said by the loss, which has no ties, as counted
pictures have.

Trials are trained once, to their ends. A sweep that finds its trials further than its rungs decides
from the points that they had there, as after a kill, so it trains nothing and no clock plays a part
in this row; what it would have trained is the step of each trial's last result.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.result import Row, main, median, spread
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
  stop: {method: halving, rungs: 5, reduction: 1.5}
"""
TARGET = 0.4


def measure(quick: bool) -> Iterator[Row]:
    """One number, in which no clock plays a part."""
    steps, seeds = (120, [0]) if quick else (600, [11, 12, 13, 0, 1, 2])
    seen = []
    for seed in seeds:
        seen.append(_sweep(steps, seed))
        print(seen[-1], flush=True)
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
        f"train.evaluate.every={steps // 30} steps",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipes" / "sweep.yaml"
        path.parent.mkdir()
        path.write_text((ROOT / "recipes" / "digits_mlp.yaml").read_text() + SWEEP)
        alone = (*short, "sweep.stop=null")
        trials, whole = Trials.of(path, short), Trials.of(path, alone)
        grid = _decided(whole, _attempt)
        early = _decided(trials, _nothing)
    count, winner = trials.count, early.best
    last = [early.result_of(number) for number in range(1, count + 1)]
    assert winner is not None
    return {
        "seed": seed,
        "trials": count,
        "share": sum(each.step for each in last if each) / (steps * count),
        "winner": winner,
        "of_the_grid": grid.best,
        "rank": grid.ranked(1).index(winner) + 1,
        "losses": [grid.results[1][number].value for number in (winner, grid.best)],
    }


def _decided(trials: Trials, launch: Callable[[Plan], int]) -> Standing:
    """What the board says once no trial has anything left to do."""
    board = Board(trials, trials.own_plan)
    while not board.standing().is_complete:
        for each in trials.all():
            Course(trials, each.number, each.plan, board, launch, print).go()
    return board.standing()


def _nothing(plan: Plan) -> int:
    raise AssertionError(f"{plan.run} was at its end, and is trained again")


def _attempt(plan: Plan) -> int:
    return attempt(plan).code


if __name__ == "__main__":
    main(measure)
