"""Runs for people: what a start and an end say, a line each for `xrun status`, all of it for
`xrun report`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import EX_TEMPFAIL
from ..run.record import AttemptRecord
from ..run.report import RunReport, duration_words, speed_words

if TYPE_CHECKING:
    from ..launcher.measure import Measured
    from ..launcher.sky.status import OnCloud, RunStatus
    from ..run.folder import RunFolder
    from ..run.plan import Plan


def start_text(plan: Plan) -> str:
    """What `xrun RECIPE` says before it trains here."""
    processes = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    return f"Run {plan.run}: {processes} on this machine, in {plan.folder}"


def outcome_text(folder: RunFolder, code: int, command: str) -> str:
    """What it says after it, `command` being what goes on; "" where the attempt has said it."""
    if code == EX_TEMPFAIL and folder.witness.exists():
        return f"Stopped; the state is safe. Go on with: {command}"
    if code == EX_TEMPFAIL:
        return f"Stopped before anything was committed here. Start again with: {command}"
    if code:
        return ""
    metrics = sorted(folder.report().metrics.items())
    told = ", ".join(f"{name} {value:.4g}" for name, value in metrics if name.startswith("val/"))
    there = folder.plan().model_address
    lines = [
        f"Finished {folder.run}{': ' + told if told else ''}",
        f"  model    {folder.model}",
        *([f"  and at   {there}"] if there is not None else []),
        f"  metrics  {folder.metrics}",
        f"  report   xrun report {folder.run}",
    ]
    return "\n".join(lines)


def status_line(status: RunStatus) -> str:
    """What `xrun status` says of a run."""
    report = status.report
    if report.error:
        return f"{report.run:<40} unreadable  {report.error}"
    kills = sum(attempt.was_lost for attempt in report.attempts)
    parts = [
        _committed(report, status.status),
        f"{len(report.attempts)} attempt{'s' if len(report.attempts) != 1 else ''}",
        f"{kills} ended from outside",
        *(list(speed_words(report.speed))[:1] if status.status == "running" else ()),
        *([f"{_lacks(report)}: `xrun export-model`"] if report.export_failed else ()),
        *(cloud_words(status.cloud, status.status) if status.cloud else ()),
    ]
    return f"{report.run:<40} {status.status:<9} {', '.join(parts)}"


def _committed(report: RunReport, status: str) -> str:
    if report.step is None:
        return "nothing committed"
    known = report.committed and status != "finished"
    age = f" {duration_words(time.time() - (report.committed or 0))} ago" if known else ""
    return f"step {report.step} committed{age}"


def cloud_words(cloud: OnCloud, status: str) -> Iterator[str]:
    """The parts of a status line that only a cloud run has."""
    how = (cloud.job_status or "").lower()
    if cloud.job:
        yield f"job {cloud.job}" + (f" {how}" if how not in ("", status) else "")
    if cloud.place:
        price = f" at ${cloud.usd_per_hour:.2f}/h" if cloud.usd_per_hour is not None else ""
        yield f"on {cloud.place}{price}"
    if cloud.usd is not None:
        yield f"${cloud.usd:.2f} so far"
    if cloud.hours_left is not None:
        yield f"{cloud.hours_left:.1f} h left"
    if cloud.problem:
        yield cloud.problem


def report_text(report: RunReport) -> str:
    """What `xrun report` says of a run."""
    lines = [f"{report.run}: {report.status}, {_committed(report, 'finished')}"]
    lines += [_attempt(number, each) for number, each in enumerate(report.attempts, 1)]
    lines += [f"  {name} {value:.6g}" for name, value in sorted(report.metrics.items())]
    if speed := ", ".join(speed_words(report.speed)):
        lines.append(f"  speed {report.speed.get('step_seconds', 0.0):.3g} s per step, {speed}")
    least = "" if report.knows_what_was_lost else "at least "
    lines.append(
        f"  recomputed {least}{report.steps_recomputed} steps, {least}{report.seconds_lost:.1f} s"
        " lost"
    )
    lines += _why_not_exact(report)
    if report.model:
        lines.append(f"  model {report.model} (SHA-256 {report.weights_sha256})")
    if report.export_failed:
        lines.append(f"  {_lacks(report)}: {report.export_failed}")
        lines.append(f"  `xrun export-model {report.run}` tries again")
    return "\n".join(lines)


def _lacks(report: RunReport) -> str:
    return "model not published" if report.model else "no model"


def measured_text(measured: Measured) -> str:
    """What `xrun evaluate` says: a line for each metric."""
    what = f"model of step {measured.step}" if measured.of == "model" else f"step {measured.step}"
    head = f"{measured.run}, {what}: {measured.samples} samples of {measured.split}"
    width = max(map(len, measured.metrics))
    rows = (f"  {name:<{width}}  {value:.6g}" for name, value in sorted(measured.metrics.items()))
    return "\n".join([head, *rows])


def _why_not_exact(report: RunReport) -> Iterator[str]:
    others = [each for each in report.attempts if each.other_data]
    for attempt in others:
        yield f"  not exact from step {attempt.first_step} on: other data ({attempt.other_data})"
    in_parts = any((each.parts or 1) > 1 for each in report.attempts)
    if not report.exact and (in_parts or not others):
        yield "  not exact: micro-batches that did not fit into memory were computed in parts"


def _attempt(number: int, attempt: AttemptRecord) -> str:
    reason = f" ({attempt.reason})" if attempt.reason else ""
    return (
        f"  attempt {number}: from step {attempt.first_step}, {attempt.processes} processes,"
        f" {attempt.end or 'running'}{reason}"
    )
