"""What `xrun status` and the next plan know of runs on clouds."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from xrun.cli.texts import cloud_words, why_not_text
from xrun.launcher.record import LaunchRecord
from xrun.launcher.sky.jobs import Job
from xrun.launcher.sky.status import OnCloud, RunStatus, _on_cloud, hourly, with_jobs
from xrun.run.folder import RunFolder
from xrun.run.prices import Price
from xrun.run.receipt import receipt_of
from xrun.run.record import AttemptRecord
from xrun.run.report import RunReport
from xrun.run.spending import QUIET_SECONDS

JOB = Job(7, "tiny", "RUNNING", True, 1, "aws", "us-east-1", "az2", True, 0.0, None, "")
PRICES = [
    Price(cloud="aws", usd_per_hour=price, region=region, zone=zone, spot=spot)
    for region, zone, spot, price in (
        ("us-east-1", "az1", True, 2.5),
        ("us-east-1", "az2", True, 8.0),
        ("us-east-1", "", False, 22.0),
        ("eu", "z", True, 1.0),
    )
]
RECORD = LaunchRecord("tiny", job=7, prices=tuple(PRICES))


def test_the_price_now_is_that_of_the_jobs_place() -> None:
    assert hourly(JOB, RECORD) == 8.0
    assert hourly(dataclasses.replace(JOB, spot=False, zone=""), RECORD) == 22.0
    assert (
        hourly(dataclasses.replace(JOB, zone="unknown"), RECORD) == 8.0
    )  # the dearest zone of its kind
    assert hourly(dataclasses.replace(JOB, cloud="gcp"), RECORD) is None


def test_a_machine_that_is_gone_costs_nothing_while_the_next_is_looked_for(tmp_path: Path) -> None:
    """Two dollars an hour: one hour until the last sign of life, then seven without a machine. Of a
    job that runs the machine is there, and of one that has ended it was until then at most."""
    hour = 3600.0
    life = AttemptRecord("a", started=0.0, last_seen=hour, usd_per_hour=2.0)
    report = RunReport("tiny", str(tmp_path), "stopped", attempts=(life,))

    def usd(status: str, ended: float | None = None) -> float | None:
        job = dataclasses.replace(JOB, status=status, live=ended is None, ended=ended, cloud="")
        found = _on_cloud(RunFolder(tmp_path), report, RECORD, [job], "", 8 * hour).report.receipt
        return None if found.usd is None else round(found.usd, 2)

    seen = round(2.0 * (1 + QUIET_SECONDS / hour), 2)
    assert usd("RUNNING") == 16.0
    assert usd("RECOVERING") == usd("CANCELLED", ended=8 * hour) == seen
    assert usd("CANCELLED", ended=hour + 36.0) == 2.02


def test_a_run_here_is_none_of_skypilots_business(tmp_path: Path) -> None:
    report = RunReport("tiny", str(tmp_path), "stopped")
    (found,) = with_jobs([RunFolder(tmp_path)], [report])
    assert found == RunStatus(report)
    assert found.to_json() == report.to_json()


def test_a_cloud_runs_line_says_where_and_how_much() -> None:
    def words(status: str, **known: Any) -> str:
        return ", ".join(cloud_words(OnCloud(7, known.pop("how", "RUNNING"), **known), status))

    told = words("running", place="aws us-east-1 spot", usd_per_hour=8.0, hours_left=1.25)
    assert told == "job 7, on aws us-east-1 spot at $8.00/h"
    assert words("running") == "job 7"
    known = OnCloud(7, "RUNNING", status="running", hours_left=1.25)
    assert RunStatus(RunReport("tiny", "r", "running"), known).to_json()["seconds_left"] == 4500.0
    assert words("stopped", how="CANCELLED") == "job 7 cancelled"
    nobody = RunStatus(RunReport("tiny", "r", "stopped"), OnCloud(7, None, problem="No answer."))
    assert list(why_not_text([nobody, nobody])) == ["No answer."], "once below the table"


def test_what_programs_get_of_a_cloud_run(tmp_path: Path) -> None:
    """SkyPilot's word is the run's status while the job lives; what is not known is not there."""
    report = RunReport("tiny", str(tmp_path), "stopped", step=5)
    alive = OnCloud(7, "RUNNING", status="running", recoveries=1, place="aws", usd_per_hour=None)
    told = RunStatus(report, alive).to_json()
    assert (told["status"], told["job"], told["step"], told["recoveries"]) == ("running", 7, 5, 1)
    assert (told["usd_per_hour"], told["hours_left"]) == (None, None)
    life = AttemptRecord("a", started=0.0, ended=3600.0, usd_per_hour=1.5)
    report = replace(report, receipt=receipt_of("tiny", [life], 9000.0))
    ended = RunStatus(report, OnCloud(7, "CANCELLED")).to_json()
    assert (ended["status"], ended["job_status"], ended["usd"]) == ("stopped", "CANCELLED", 1.5)
    assert not {"place", "recoveries", "usd_per_hour"} & ended.keys()
