"""Row 17: what early stops save. A sweep of 24 trials of digits by halving, as real commands, and
then the same trials to their ends: the share of the grid's steps that was trained, with the same
winner.

The rest of the grid goes on from where the sweep has left each trial, so the whole costs one grid.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.result import Row, main
from xrun.run.folder import RunFolder
from xrun.sweep.board import Board
from xrun.sweep.trials import Trials

ROOT = Path(__file__).parent.parent
SWEEP = """
sweep:
  parameters:
    train.optimizer.lr: {min: 1e-4, max: 1e-1, log: true, points: 6}
    model.args.hidden: [16, 32, 64, 128]
  metric: loss
  parallel: 2
  stop: {method: halving, rungs: 2, reduction: 3}
"""
TARGET = 0.4


def measure(quick: bool) -> Iterator[Row]:
    """One number, in which no clock plays a part."""
    steps = 60 if quick else 600
    short = (f"train.steps={steps}", f"train.evaluate.every={steps // 6} steps")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipes" / "sweep.yaml"
        path.parent.mkdir()
        path.write_text((ROOT / "recipes" / "digits_mlp.yaml").read_text() + SWEEP)
        alone = (*short, "sweep.stop=null")
        trials, whole = Trials.of(path, short), Trials.of(path, alone)
        seconds = _timed(path, short)
        standing = Board(trials, trials.own_plan, reads=True).standing()
        runs = [RunFolder(each.plan.folder) for each in trials.all()]
        trained = sum(max(run.record().committed_step, 0) for run in runs)
        rest = _timed(path, alone)
        winner = Board(whole, whole.own_plan, reads=True).standing().best
    share, met = trained / (steps * len(runs)), standing.best == winner
    also = {"trials": len(runs), "steps": steps, "winner": standing.best, "of_the_grid": winner}
    also |= {"seconds": seconds, "seconds_of_the_rest": rest}
    name = "steps of a sweep by halving, of the grid's, with the same winner"
    yield Row(17, name, share, TARGET, "lower", {"grid": 1.0}, (share, share), also, met)


def _timed(path: Path, overrides: Sequence[str]) -> float:
    """Seconds of the command."""
    given = [part for each in overrides for part in ("-s", each)]
    command = [sys.executable, "-P", "-m", "xrun", str(path), *given, "--yes"]
    began = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.monotonic() - began


if __name__ == "__main__":
    main(measure)
