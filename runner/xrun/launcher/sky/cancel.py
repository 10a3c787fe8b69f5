"""`xrun cancel`: a run's job ends and its machines go back, at once or when it has saved.

SkyPilot ends a job's processes and takes the machine in the same moment, so it saves nothing. An
attempt that is to save first is asked by way of the run's store, which both sides know, and ends by
itself.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import LaunchError, XrunError
from ...run.stop_request import LOOK_SECONDS, STOP_SECONDS
from .jobs import Job, cancel_job, comes_true, jobs


def cancel(
    run: str,
    ask: Callable[[], str],
    *,
    save: bool,
    say: Callable[[str], None],
    seconds: float = STOP_SECONDS + 2 * LOOK_SECONDS,
) -> None:
    """End a run's jobs and give their machines back; with `save` the attempt that runs is asked
    first, by `ask`, which returns its id, and has `seconds`.

    Raises:
        LaunchError: there is no job.
    """
    live = jobs(run, live=True)
    if not live:
        raise LaunchError(f"{run} has no job on a cloud now.", "`xrun status` tells how it ended.")
    if save and _asked(ask, live[0], say) and _ended(run, seconds):
        say(f"{run} has stopped. To go on with it: xrun resume {run}")
        return
    for job in live:
        cancel_job(job.id)
    say(
        f"The job {live[-1].id} of {run} is being cancelled; its last commit stands."
        f" To go on with it: xrun resume {run}"
    )


def _asked(ask: Callable[[], str], job: Job, say: Callable[[str], None]) -> bool:
    if job.status != "RUNNING":
        say(f"The job {job.id} is {job.status.lower()}: nothing runs that could save.")
        return False
    try:
        attempt = ask()
    except XrunError as error:
        say(f"The run cannot be asked to save: {error}")
        return False
    say(
        f"Asked attempt {attempt} to save and to stop."
        if attempt
        else "The run has committed nothing yet."
    )
    return bool(attempt)


def _ended(run: str, seconds: float) -> bool:
    """Whether the run's jobs end by themselves in time."""
    return comes_true(lambda: not jobs(run, live=True), seconds)
