"""SkyPilot's managed jobs in xrun's words: which there are, their logs, their end. A run's job has
the run's id as its name."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from ...backoff import Backoff
from ...terminal import Plain
from .client import skypilot

_FIELDS = (
    "job_id task_id job_name status resources cluster_resources cloud region zone recovery_count"
    " submitted_at start_at end_at failure_reason"
).split()
_LAUNCH = "jobs.launch"
_WITHOUT_MACHINES = ("PENDING", "SUBMITTED", "STARTING", "RECOVERING")
_BACKOFF = Backoff(first=2.0, longest=2.0)
"""Between two looks at the API server."""


@dataclass(frozen=True)
class Job:
    """A managed job. `live`: it has not ended; `spot` None where it does not run now. Times are
    seconds since 1970."""

    id: int
    run: str
    status: str
    live: bool
    recoveries: int
    cloud: str
    region: str
    zone: str
    spot: bool | None
    submitted: float | None
    ended: float | None
    reason: str


def jobs(run: str = "", *, live: bool = False) -> list[Job]:
    """The person's managed jobs, the newest first; of one run, or all; only those that have not
    ended, or all.

    Raises:
        CloudUnavailable: the API server does not answer.
    """
    with skypilot() as sky:
        try:
            request = sky.jobs.queue_v2(
                refresh=False, skip_finished=live, name_match=run or None, fields=_FIELDS
            )
            records = sky.get(request)[0]
        except sky.exceptions.ClusterNotUpError:
            # No job controller: nothing was ever launched, or all has ended and it has stopped
            # itself.
            return []
    found = [_job(record) for record in records if not record.task_id]
    return sorted((job for job in found if not run or job.run == run), key=lambda job: -job.id)


def _job(record: Any) -> Job:
    """SkyPilot writes "-" for what a job does not have now."""
    cloud, region, zone, machines = (
        (value or "").strip("-")
        for value in (record.cloud, record.region, record.zone, record.cluster_resources)
    )
    return Job(
        id=record.job_id,
        run=record.job_name,
        status=record.status.value,
        live=not record.status.is_terminal(),
        recoveries=record.recovery_count or 0,
        cloud=cloud.lower(),
        region=region,
        zone=zone,
        spot="[Spot]" in machines if machines else None,
        submitted=record.submitted_at,
        ended=record.end_at,
        reason=record.failure_reason or "",
    )


def requests_for(run: str) -> list[str]:
    """Ids of the requests to launch this run that the API server still works on."""
    with skypilot() as sky:
        asked = sky.api_status()
    return [
        request.request_id
        for request in asked
        if _LAUNCH in request.name and _name_in(request.request_body) == run
    ]


def _name_in(body: str) -> str:
    """The job's name in a request's body; another user's request has none. The rest of it, secrets
    among it, is not looked at."""
    values = json.loads(body) or {}
    return str(values.get("name") or "")


def submit(task: Any, run: str, pool: str | None = None) -> str:
    """Ask the API server to launch a task as the job of a run, in this pool or on machines of its
    own; returns the id of the request. This call may cost money."""
    with skypilot() as sky:
        return str(sky.jobs.launch(task, name=run, pool=pool))


def job_of(request: str) -> int | None:
    """Wait until the API server has worked on a request to launch; the job's id, or None if it made
    none.

    Raises:
        LaunchError: SkyPilot refused the launch.
    """
    with skypilot() as sky:
        ids, _ = sky.get(request)
    return int(ids[0]) if ids else None


def cancel_job(job: int) -> None:
    """End a job and give its machines back; its processes are not waited for."""
    with skypilot() as sky:
        sky.get(sky.jobs.cancel(job_ids=[job]))


def print_log(job: int, *, follow: bool, out: TextIO | None = None) -> None:
    """What a job's newest attempt has printed; with `follow` until the job has ended, through
    recoveries."""
    plain = Plain(out or sys.stdout)
    with skypilot() as sky:
        sky.jobs.tail_logs(job_id=job, follow=follow, output_stream=plain)


def wait_until_begun(run: str, job: int, say: Callable[[str], None]) -> None:
    """Wait until a job has its machines, or has ended; `say` hears what it waits for."""
    tries = 0
    while (found := next((each for each in jobs(run, live=True) if each.id == job), None)) and (
        found.status in _WITHOUT_MACHINES
    ):
        tries += 1
        say(f"Waiting for machines for {run}: the job {job} is {found.status.lower()}")
        time.sleep(_BACKOFF.seconds(tries))


def comes_true(what: Callable[[], bool], seconds: float) -> bool:
    """Whether something about jobs comes true within so many seconds."""
    end, tries = time.monotonic() + seconds, 0
    while not (true := what()) and time.monotonic() < end:
        tries += 1
        time.sleep(_BACKOFF.seconds(tries))
    return true


def wait_until_ended(run: str, job: int, seconds: float = 120.0) -> Job | None:
    """The job as it ended: its log ends a moment before it does. None where it is still there after
    that time: it recovers, or its log was cut off."""
    ended: list[Job] = []

    def has_ended() -> bool:
        ended[:] = [each for each in jobs(run) if each.id == job and not each.live]
        return bool(ended)

    return ended[0] if comes_true(has_ended, seconds) else None
