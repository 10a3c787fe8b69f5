"""Writes a run's points as TensorBoard's events: a process of its own, so that it can never hold up
or hurt the training.

`python -m xrun.tracker.tensorboard.writer FOLDER ATTEMPT` follows `FOLDER/metrics.jsonl` while an
attempt lives, and ends after the last point when its stdin does. The exit code is 0 if every point
is there; else 1, and what is wrong is on its stdout, one sentence.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import signals, streams
from ...files import read_json
from ...libraries import TENSORBOARD, what_is_missing
from ...lock import locked
from ...run.folder import RunFolder
from ..wandb.rows import PointFile

POLL_SECONDS = 0.5


def main(folder: str, attempt: str) -> int:
    """Follow the attempt to its end; returns the exit code."""
    # The end of stdin is what ends this process: the last points come after any signal.
    signals.ignore(signals.STOPS)
    run = RunFolder(Path(folder))
    where = run.plan().tensorboard
    if where is None:
        return 0
    if missing := what_is_missing(TENSORBOARD):
        print(missing, flush=True)
        return 1
    try:
        return follow(run, attempt, where)
    except OSError as error:
        print(f"{where} cannot be written: {error.strerror}.", flush=True)
        return 1


def follow(run: RunFolder, attempt: str, where: Path) -> int:
    """Write what there is, then what comes."""
    from .events import Events

    # The writer of an attempt before may still be at its last points.
    with locked(run.path / "tensorboard.lock"):
        ended = False
        # Until then the points are those of an attempt before, and not yet cut.
        while _config(run).get("attempt") != attempt:
            if ended:
                return 0
            ended = _has_ended(POLL_SECONDS)
        while True:
            seen, points = _identity(run), PointFile(run.metrics)
            with Events(where, attempt) as events:
                events.add(points.read())
                events.replace()
                while not ended and _identity(run) == seen:
                    ended = _has_ended(POLL_SECONDS)
                    events.add(points.read())
            if _identity(run) == seen:
                return 0


def _identity(run: RunFolder) -> object:
    """What is another one after the log was cut: ranks that are started again in the same attempt
    go back as well."""
    try:
        file = run.metrics.stat().st_ino
    except FileNotFoundError:
        file = 0
    return file, _config(run).get("started")


def _config(run: RunFolder) -> dict[str, Any]:
    """What the newest attempt has written when it began to log."""
    return read_json(run.config, dict) or {}


def _has_ended(seconds: float) -> bool:
    """Wait so long; whether stdin has ended."""
    return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 4096)


def main_and_exit(arguments: Sequence[str]) -> None:
    """Below the training's priority."""
    streams.deaf()
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    sys.exit(main(*arguments))


if __name__ == "__main__":
    main_and_exit(sys.argv[1:])
