"""`xrun cancel RUN|ADDRESS`: the job on a cloud ends where this account's SkyPilot has one of that
name; any other attempt is asked by way of its store, where it looks, to save and to stop."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import UTC, datetime

from ..errors import LaunchError, XrunError
from ..libraries import LAUNCHING
from ..run.folder import find_run
from ..run.opened import OpenedRun, is_run_id, open_run
from ..run.stop_request import LOOK_SECONDS, STOP_SECONDS
from .record import read_launch

Say = Callable[[str], None]


def cancel(text: str, *, save: bool, say: Say) -> None:
    """End the run that a person means; with `save` its job may save first. SkyPilot is asked only
    about a run that exists.

    Raises:
        LaunchError: there is no such run, or nothing of it runs.
        XrunError: its store cannot be asked.
    """
    if is_run_id(text) and read_launch(find_run(text)) is not None:
        folder = find_run(text)
        from .sky.cancel import cancel as cancel_jobs

        cancel_jobs(folder.run, lambda: folder.store().ask_to_stop(), save=save, say=say)
        return
    opened = open_run(text, by_page=False)  # nothing is stopped by what a page says
    if not is_run_id(text) and _has_job(opened, say):
        from .sky.cancel import cancel as cancel_jobs

        cancel_jobs(opened.run, opened.store.ask_to_stop, save=save, say=say)
        return
    ask(opened, text, say)


def ask(opened: OpenedRun, text: str, say: Say) -> None:
    """Leave the wish that the attempt which runs save and stop for good; `text` is what names the
    run.

    Raises:
        LaunchError: the last attempt has ended.
    """
    last = opened.record.attempts[-1] if opened.record.attempts else None
    if last is None or last.ended is not None:
        how = f"its last attempt has ended ({last.reason or last.end})" if last else "none began"
        raise LaunchError(
            f"Nothing of {opened.run} runs: {how}.", "`xrun report` tells what happened."
        )
    attempt = opened.store.ask_to_stop()
    later = f"To go on with it later: xrun resume {shlex.quote(text)}"
    if (pid := opened.beside.owner_pid() if opened.beside else None) is not None:
        say(
            f"Asked {opened.run}, which runs on this machine (process {pid}), to save and to stop;"
            f" it hears that within {LOOK_SECONDS:.0f} s. {later}"
        )
        return
    seen = datetime.fromtimestamp(last.last_known, UTC).strftime("%Y-%m-%d %H:%M UTC")
    say(
        f"Asked attempt {attempt} of {opened.run} to save and to stop. If it lives (last seen"
        f" {seen}), it hears that within {LOOK_SECONDS:.0f} s and ends within"
        f" {STOP_SECONDS / 60:.0f} minutes. {later}"
    )


def _has_job(opened: OpenedRun, say: Say) -> bool:
    """Whether this account's SkyPilot has a live job of the run; without SkyPilot there is none."""
    on_clouds = bool((opened.record.recipe or {}).get("hardware", {}).get("any_of"))
    if not on_clouds or LAUNCHING.missing():
        return False
    from .sky.jobs import jobs

    try:
        return bool(jobs(opened.run, live=True))
    except XrunError as error:
        say(f"SkyPilot cannot be asked: {error}")
        return False
