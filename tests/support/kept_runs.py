"""Runs whose state lies somewhere and which nobody has trained: what a few attempts would have
committed, put there through the store itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from xrun.errors import AttemptEnd
from xrun.run import logs, points
from xrun.run.checkpoint import Checkpoint
from xrun.run.plan import Plan
from xrun.run.record import AttemptRecord, Finished, RunRecord
from xrun.run.stores import open_store

NAMES = ("20260101T000000000-aaaaaa", "20260102T000000000-bbbbbb")
"""Two attempts; the first was ended from outside."""


def keep(plan: Plan, folder: Path, *, finished: bool = True) -> RunRecord:
    """The state of a run of two attempts and 20 steps, at the plan's address; `folder` stands for
    the machine that has trained it."""
    head = None
    record = RunRecord()
    for number, name in enumerate(NAMES):
        store = open_store(plan, name)
        started = 1_800_000_000.0 + 1000 * number
        attempt = AttemptRecord(name, started=started, nodes=2, processes=2)
        record = record.begun(plan, attempt)
        head = store.commit(record.to_json(), head)
        printed = folder / "logs" / name
        printed.mkdir(parents=True, exist_ok=True)
        for rank in range(2):
            (printed / f"rank{rank}.log").write_text(f"attempt {number + 1}, rank {rank}\n")
        metrics = folder / "metrics.jsonl"
        with metrics.open("a") as file:
            for step in range(1 + 10 * number, 11 + 10 * number):
                point = {"step": step, "train/loss": 1 / step, "attempt": name, "time": started}
                file.write(json.dumps(point) + "\n")
            file.write(json.dumps({"step": 10 * (number + 1), "val/loss": 0.5}) + "\n")
        if plan.address.durable:
            record = replace(
                record,
                points=points.extended(store, metrics, record.points, 10 * (number + 1)),
                logs=logs.kept(store, printed, name, record.logs),
            )
        step = 10 * (number + 1)
        checkpoint = Checkpoint(step, name, plan.digest, started + 50)
        record = replace(record, checkpoints=(*record.checkpoints, checkpoint))
        if number:
            ended = record.with_last(ended=started + 100, code=0, end=AttemptEnd.FINISHED)
            done = Finished(20, steps_per_epoch=10, weights_sha256="ab" * 32)
            record = replace(ended, finished=done) if finished else record
        head = store.commit(record.to_json(), head)
    return RunRecord.of(head)
