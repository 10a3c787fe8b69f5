"""Runs that pages are made of and which nobody has trained: on rented machines that were taken
away, with every kind of point, put where they would be through the store itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from xrun.errors import AttemptEnd
from xrun.run.checkpoint import Checkpoint
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.run.record import AttemptRecord, Finished, RunRecord
from xrun.run.stores import open_store
from xrun.sweep.board import Board
from xrun.sweep.standing import Result
from xrun.sweep.trials import Trials

from .running import Project

BEGAN = 1_790_000_000.0
AGAIN = 5
"""Steps that each attempt but the first computes again."""
SECONDS = 3.0
"""A step takes them."""
SWEEP = """\
sweep:
  parameters:
    train.optimizer.lr: {min: 1e-4, max: 1e-1, log: true, points: 4}
    model.args.width: [4, 8, 16]
  stop: {method: halving, rungs: 1, reduction: 3}
"""
_PLACES: tuple[dict[str, Any], ...] = (
    {"cloud": "aws", "region": "us-east-1", "accelerators": "A10G:1", "usd_per_hour": 1.01},
    {"cloud": "gcp", "region": "europe-west4", "accelerators": "A100:1", "usd_per_hour": 1.35},
    {"cloud": "aws", "region": "us-west-2", "accelerators": "A10G:1", "usd_per_hour": 0.92},
)


def trained(
    plan: Plan,
    *,
    steps: int,
    until: int = 0,
    lost: int = 0,
    seed: int = 0,
    level: float = 0.15,
    printed: str = "",
) -> RunFolder:
    """A run in `lost` + 1 attempts, each of its steps logged, towards a loss of `level`: finished,
    or stopped `until` a step; each attempt has `printed` a line of its own besides."""
    folder = RunFolder(plan.folder)
    folder.write_plan(plan)
    source = random.Random(seed)
    record, head, now, done = RunRecord(), None, BEGAN + 50_000 * seed, 0
    last = until or steps
    with folder.metrics.open("w") as file:
        for number in range(1, lost + 2):
            name = f"2026{number:04}T000000000-{seed:06x}"
            end = last * number // (lost + 1)
            first = max(0, done - AGAIN)
            store = open_store(plan, name)
            record = record.begun(plan, _attempt(name, number + seed, now, first if done else None))
            head = store.commit(record.to_json(), head)
            for step in range(first + 1, end + 1):
                now += SECONDS
                for point in _points(source, step, steps, level):
                    file.write(json.dumps({**point, "time": now, "attempt": name}) + "\n")
            _log(folder.logs(name), done, end, printed)
            kept = Checkpoint(end, name, plan.digest, now, numbers={"best": _best(end, level)})
            record = replace(record, checkpoints=(*record.checkpoints[-1:], kept))
            record = _ended(record, now, end, is_last=number == lost + 1, finished=end == steps)
            head, done = store.commit(record.to_json(), head), end
            now += 600
    return folder


def swept(project: Project, steps: int = 90) -> Trials:
    """A sweep of twelve trials that has come to its end by halving."""
    path = project.write("recipes/tiny.yaml", project.recipe.read_text() + SWEEP)
    trials = Trials.of(path, [f"train.steps={steps}", f"train.evaluate.every={steps // 9} steps"])
    board, source, rung = Board(trials, trials.own_plan), random.Random(1), steps // 3
    levels = {}
    for each in trials.all():
        rate, width = each.values["train.optimizer.lr"], each.values["model.args.width"]
        levels[each.number] = 0.1 + abs(math.log10(rate) + 2) / 4 + 1 / width + source.random() / 40
        board.post(each.number, 1, Result(rung, 1.5 * levels[each.number]))
    kept = board.standing().at(2)
    for each in trials.all():
        number, level = each.number, levels[each.number]
        until = 0 if number in kept else rung
        trained(each.plan, steps=steps, until=until, lost=number % 3, seed=number, level=level)
        if number in kept:
            board.post(number, 2, Result(steps, level))
    return trials


def _attempt(name: str, place: int, now: float, first: int | None) -> AttemptRecord:
    again = {} if first is None else {"steps_recomputed": AGAIN, "seconds_lost": AGAIN * SECONDS}
    begun = {
        "started": now,
        "billed_from": now - 60,
        "trained_from": now,
        "price_date": "2026-11-20",
    }
    where = {**_PLACES[place % len(_PLACES)], "on_demand_usd_per_hour": 3.06, "spot": True}
    before = -1 if first is None else first
    return AttemptRecord(name, from_step=before, resumed_step=first, **begun, **where, **again)


def _points(source: random.Random, step: int, steps: int, level: float) -> Iterator[dict[str, Any]]:
    loss = 2.3 * math.exp(-5 * step / steps) + level * (1 + 0.3 * source.random())
    yield {
        "step": step,
        "train/loss": loss,
        "train/lr": 0.01 * min(1.0, 10 * step / steps) * (1 - step / steps / 1.001),
        "speed/samples_per_second": 300 + 30 * source.random(),
        "speed/memory_gib": 11.2 + step / steps,
    }
    if step % max(1, steps // 10) == 0:
        yield {"step": step, "val/loss": 1.1 * loss, "val/accuracy": max(0.0, 1 - loss / 2.6)}


def _best(step: int, level: float) -> dict[str, Any]:
    return {"value": level + 1 / step, "step": step}


def _log(folder: Path, first: int, last: int, printed: str) -> None:
    folder.mkdir(parents=True)
    (folder / "rank0.log").write_text(f"from step {first} on\n{printed}\nstep {last} is done\n")


def _ended(record: RunRecord, now: float, step: int, *, is_last: bool, finished: bool) -> RunRecord:
    if not is_last:
        taken = {"code": 75, "end": AttemptEnd.OUTSIDE, "reason": "the machine was taken away"}
        return record.with_last(ended=now, committed=step, last_seen=now, **taken)
    if not finished:
        return record.with_last(ended=now, code=7, end=AttemptEnd.STOPPED, committed=step)
    record = record.with_last(ended=now, code=0, end=AttemptEnd.FINISHED, committed=step)
    return replace(record, finished=Finished(step, weights_sha256="ab" * 32))
