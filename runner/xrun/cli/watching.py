"""The command that looks at a run until it ends: watch."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from ..launcher.sky.status import RunStatus
    from ..run.report import RunReport

_LOCAL_SECONDS, _FAR_SECONDS = 2.0, 30.0


@click.command()
@options.address
@click.option(
    "--every",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    help="Time between two looks. Default: 2 for a run here, 30 for one elsewhere.",
)
def watch(address: str, every: float | None) -> None:
    """Watch a run until it ends: step, loss, speed, the newest commit, attempts. Ctrl-C ends only
    the watching.

    The exit code is 0 if the run has finished, else that of its last attempt.
    """
    from ..errors import EX_TEMPFAIL
    from ..run.report import OVER
    from ..terminal import bare, shown

    look, pause = _look(address)
    stream = bare(sys.stdout)
    told, before = 0, ""
    while True:
        status = look()
        report = status.report
        lines = list(_news(report, told))
        told = len(report.attempts)
        line = shown(_line(status))
        over = status.status in OVER
        if stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            kept = "".join(f"{shown(each)}\n" for each in lines)
            stream.write(f"\r\x1b[2K{kept}{line[:width]}" + "\n" * over)
        elif lines or line != before or over:
            stream.write("".join(f"{shown(each)}\n" for each in [*lines, line]))
        stream.flush()
        before = line
        if over:
            break
        time.sleep(every or pause)
    if status.status != "finished":
        code = report.attempts[-1].code if report.attempts else None
        sys.exit(code or EX_TEMPFAIL)


def _look(address: str) -> tuple[Callable[[], RunStatus], float]:
    """What asks how a run is, and how often it does."""
    from ..launcher.record import read_launch
    from ..launcher.sky.status import RunStatus, with_jobs
    from ..run.folder import find_run
    from ..run.opened import is_run_id, open_run

    if not is_run_id(address):
        return lambda: RunStatus(open_run(address).report(time.time())), _FAR_SECONDS
    folder = find_run(address)
    pause = _LOCAL_SECONDS if read_launch(folder) is None else _FAR_SECONDS
    return lambda: with_jobs([folder], [folder.describe()])[0], pause


def _news(report: RunReport, told: int) -> Iterator[str]:
    """The attempts that have ended since the last look."""
    for number, attempt in enumerate(report.attempts, 1):
        if number >= max(told, 1) and attempt.end is not None and number < len(report.attempts):
            why = f": {attempt.reason}" if attempt.reason else ""
            yield f"attempt {number} ended ({attempt.end}{why}); attempt {number + 1} goes on"


def _line(status: RunStatus) -> str:
    """How the run is now."""
    from ..run.report import duration_words, left_words, speed_words
    from .texts import cloud_words

    report = status.report
    if report.error:
        return f"{report.run} unreadable: {report.error}"
    step = report.logged_step if report.logged_step is not None else report.step
    loss = report.metrics.get("train/loss")
    age = duration_words(time.time() - report.committed) if report.committed else ""
    committed = f"step {report.step} committed {age} ago" if report.step is not None else ""
    left = left_words(status.seconds_left)
    parts = [
        f"step {step}" if step is not None else "nothing logged yet",
        f"{left} left" if left else "",
        f"loss {loss:.4g}" if loss is not None else "",
        *(speed_words(report.speed) if status.status == "running" else ()),
        committed if status.status != "finished" else "",
        f"attempt {len(report.attempts)}" if report.attempts else "",
        *(cloud_words(status.cloud, status.status) if status.cloud else ()),
    ]
    return f"{report.run} {status.status}: {', '.join(part for part in parts if part)}"


COMMANDS = (watch,)
