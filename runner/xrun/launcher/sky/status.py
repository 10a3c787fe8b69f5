"""What `xrun status` says of runs on clouds besides what their stores know: job, dollars an hour,
dollars so far, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import XrunError
from ...run import spending
from ...run.folder import RunFolder
from ..record import LaunchRecord, read_launch
from ..throughput import hours_left
from . import jobs as sky_jobs
from .jobs import Job


def with_jobs(
    folders: Sequence[RunFolder], reports: Sequence[dict[str, Any]], now: float | None = None
) -> list[dict[str, Any]]:
    """The reports, those of cloud runs with `job`, `job_status`, `place`, `usd_per_hour`, `usd` and
    `hours_left`.

    SkyPilot is asked once, and only if there is such a run that has not finished.
    """
    records = [read_launch(folder) for folder in folders]
    unfinished = any(
        record and report["status"] != "finished"
        for record, report in zip(records, reports, strict=True)
    )
    jobs, problem = _jobs() if unfinished else ([], "")
    when = time.time() if now is None else now
    return [
        {**report, **_facts(folder, report, record, jobs, when), "problem": problem}
        if record
        else report
        for folder, report, record in zip(folders, reports, records, strict=True)
    ]


def _jobs() -> tuple[list[Job], str]:
    try:
        return sky_jobs.jobs(), ""
    except XrunError as error:
        return [], str(error)


def _facts(
    folder: RunFolder,
    report: Mapping[str, Any],
    record: LaunchRecord,
    jobs: Sequence[Job],
    now: float,
) -> dict[str, Any]:
    job = next((job for job in jobs if job.id == record.job and job.run == record.run), None)
    attempts, end = report.get("attempts", []), job.ended if job and job.ended else now
    facts: dict[str, Any] = {"job": record.job, "job_status": job.status if job else None}
    if any("usd_per_hour" in attempt for attempt in attempts):
        facts["usd"] = round(spending.dollars(attempts, end), 2)
    if job and job.live:
        facts |= {"status": job.status.lower(), "recoveries": job.recoveries}
    if job and job.live and job.cloud:
        kind = "" if job.spot is None else "spot" if job.spot else "on demand"
        place = " ".join(filter(None, [job.cloud, job.region, kind]))
        facts |= {
            "place": place,
            "usd_per_hour": hourly(job, record),
            "hours_left": hours_left(folder),
        }
    return facts


def hourly(job: Job, record: LaunchRecord) -> float | None:
    """What the job's machines cost now, by the prices seen at its launch; the dearest zone if
    SkyPilot does not name one."""
    here = [
        price
        for price in record.prices
        if (price["cloud"], price["region"]) == (job.cloud, job.region)
    ]
    kind = [
        price["usd_per_hour"]
        for price in here
        if job.spot in (None, price["spot"]) and price["zone"] in ("", job.zone)
    ]
    return max(
        kind or [price["usd_per_hour"] for price in here if job.spot in (None, price["spot"])],
        default=None,
    )


def cloud_words(report: Mapping[str, Any]) -> list[str]:
    """The parts of a status line that only a cloud run has."""
    how = (report.get("job_status") or "").lower()
    words = (
        [f"job {report['job']}" + (f" {how}" if how not in ("", report.get("status")) else "")]
        if report.get("job")
        else []
    )
    if report.get("place"):
        price = (
            f" at ${report['usd_per_hour']:.2f}/h" if report.get("usd_per_hour") is not None else ""
        )
        words.append(f"on {report['place']}{price}")
    if report.get("usd") is not None:
        words.append(f"${report['usd']:.2f} so far")
    if report.get("hours_left") is not None:
        words.append(f"{report['hours_left']:.1f} h left")
    return [*words, report["problem"]] if report.get("problem") else words
