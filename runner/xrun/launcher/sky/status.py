"""What `xrun status` says of runs on clouds besides what their stores know: job, dollars an hour,
time left, and whether the last machine is still there, which their receipts depend on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import XrunError
from ...run.folder import RunFolder
from ...run.receipt import receipt_of
from ...run.report import RunReport
from ..record import LaunchRecord, read_launch
from ..speeds import hours_left
from .jobs import Job, jobs

_RUNNING = "RUNNING"
"""SkyPilot's word for a job that has its machines; while it recovers one there are none."""


@dataclass(frozen=True)
class OnCloud:
    """What is known of a run's job: its number, and SkyPilot's word for how it is.

    While it lives: `status`, `recoveries`; while it has machines: their `place`, dollars an hour,
    hours left. What is not known is None. `problem` says why SkyPilot could not be asked.
    """

    job: int | None
    job_status: str | None
    status: str | None = None
    recoveries: int | None = None
    place: str | None = None
    usd_per_hour: float | None = None
    hours_left: float | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """For programs: what a run here has no place for is left out."""
        always = (
            "job",
            "job_status",
            "problem",
            *(("usd_per_hour", "hours_left") if self.place else ()),
        )
        return {
            name: value for name, value in vars(self).items() if name in always or value is not None
        }


@dataclass(frozen=True)
class RunStatus:
    """A run's report, and of a cloud run what its job is doing."""

    report: RunReport
    cloud: OnCloud | None = None

    @property
    def status(self) -> str:
        """SkyPilot's word while the job lives, else the report's."""
        return (self.cloud and self.cloud.status) or self.report.status

    @property
    def runs(self) -> bool:
        """Whether it runs, or its job looks for a machine."""
        return self.report.status == "running" or bool(self.cloud and self.cloud.status)

    @property
    def seconds_left(self) -> float | None:
        """What is left to train takes so long; None where that is not known, or it is over."""
        if self.cloud and self.cloud.hours_left is not None:
            return 3600 * self.cloud.hours_left
        return self.report.seconds_left

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        cloud = self.cloud.to_json() if self.cloud else {}
        left = {"seconds_left": self.seconds_left} if not self.report.error else {}
        return {**self.report.to_json(), **cloud, **left, "status": self.status}


def with_jobs(
    folders: Sequence[RunFolder], reports: Sequence[RunReport], now: float | None = None
) -> list[RunStatus]:
    """The reports, those of cloud runs with what their jobs are doing.

    SkyPilot is asked once, and only if there is such a run that has not finished.
    """
    records = [_record(folder) for folder in folders]
    unfinished = any(
        isinstance(record, LaunchRecord) and report.status != "finished"
        for record, report in zip(records, reports, strict=True)
    )
    live, problem = _jobs() if unfinished else ([], "")
    when = time.time() if now is None else now
    found = []
    for folder, report, record in zip(folders, reports, records, strict=True):
        if isinstance(record, LaunchRecord):
            found.append(_on_cloud(folder, report, record, live, problem, when))
        else:
            found.append(RunStatus(report, record))
    return found


def _record(folder: RunFolder) -> LaunchRecord | OnCloud | None:
    """What is written down of a run's launch, or why that cannot be read."""
    try:
        return read_launch(folder)
    except XrunError as error:
        return OnCloud(None, None, problem=str(error))


def _jobs() -> tuple[list[Job], str]:
    try:
        return jobs(), ""
    except XrunError as error:
        return [], str(error)


def _on_cloud(
    folder: RunFolder,
    report: RunReport,
    record: LaunchRecord,
    known: Sequence[Job],
    problem: str,
    now: float,
) -> RunStatus:
    job = next((job for job in known if job.id == record.job and job.run == record.run), None)
    running = job is not None and job.status == _RUNNING
    until = job.ended if job and job.ended else now
    report = replace(
        report, receipt=receipt_of(report.run, report.attempts, until, running=running)
    )
    if job is None or not job.live:
        return RunStatus(report, OnCloud(record.job, job.status if job else None, problem=problem))
    kind = "" if job.spot is None else "spot" if job.spot else "on demand"
    cloud = OnCloud(
        record.job,
        job.status,
        job.status.lower(),
        job.recoveries,
        place=" ".join(filter(None, [job.cloud, job.region, kind])) if job.cloud else None,
        usd_per_hour=hourly(job, record) if job.cloud else None,
        hours_left=hours_left(folder) if job.cloud else None,
        problem=problem,
    )
    return RunStatus(report, cloud)


def hourly(job: Job, record: LaunchRecord) -> float | None:
    """What the job's machines cost now, by the prices seen at its launch; the dearest zone if
    SkyPilot does not name one."""
    place = job.cloud, job.region
    here = [
        price
        for price in record.prices
        if (price.cloud, price.region) == place and job.spot in (None, price.spot)
    ]
    zone = [price.usd_per_hour for price in here if price.zone in ("", job.zone)]
    return max(zone or [price.usd_per_hour for price in here], default=None)
