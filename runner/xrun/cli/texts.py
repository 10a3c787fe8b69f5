"""Runs for people: what a start and an end say, a line each for `xrun status`, all of it for
`xrun report`, the receipt, and what differs between runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import EX_TEMPFAIL
from ..run import compared
from ..run.folder import RunFolder, as_typed
from ..run.receipt import UNKNOWN, Receipt, money
from ..run.record import AttemptRecord
from ..run.report import RunReport, duration_words, left_words, speed_words
from .plot import plot
from .tables import Column, lines_of

if TYPE_CHECKING:
    from ..launcher.measure import Measured
    from ..launcher.sky.status import OnCloud, RunStatus
    from ..run.plan import Plan


COLOURS = {"running": "green", "finished": "cyan", "stopped": "yellow", "failed": "red"}
COLOURS |= {"killed": "yellow"} | dict.fromkeys(("unreadable", "unreachable"), "red")
"""The colour of each status; SkyPilot's own words have none."""
_WHY_FAILED = 3
"""Of so many runs that have failed, the newest, the reason stands below the table."""
_STATUS = (
    Column("RUN", cut=True, names=True),
    Column("STATUS"),
    Column("STEP", right=True),
    Column("LEFT", right=True, rank=2),
    Column("BEST", rank=1),
    Column("LAST SIGN", rank=4),
    Column("ATTEMPTS", rank=6),
    Column("SPEED", rank=7),
    Column("COST", right=True),
    Column("JOB", rank=5),
    Column("DIFFERS", rank=3, cut=True),
)


def start_text(plan: Plan) -> str:
    """What `xrun RECIPE` says before it trains here."""
    processes = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    return f"Run {plan.run}: {processes} on this machine, in {plan.folder}"


def left_text(plan: Plan, command: str) -> str:
    """What `--again` says of the newest run of the recipe that it leaves unfinished, `command`
    being what goes on with that one."""
    safe = RunFolder(plan.folder).what_is_safe()
    return (
        f"{plan.run} is not finished and stays{f': {safe}' if safe else '.'} Go on with: {command}"
    )


def outcome_text(folder: RunFolder, code: int, command: str) -> str:
    """What it says after it, `command` being what goes on; "" where the attempt has said it."""
    if code == EX_TEMPFAIL and (safe := folder.what_is_safe()):
        return f"Stopped; {safe} Go on with: {command}"
    if code == EX_TEMPFAIL:
        return f"Stopped before anything was committed here. Start again with: {command}"
    if code:
        return ""
    metrics = sorted(folder.report().metrics.items())
    told = ", ".join(f"{name} {value:.4g}" for name, value in metrics if name.startswith("val/"))
    there = folder.plan().model_address
    lines = [
        f"Finished {folder.run}{': ' + told if told else ''}",
        *([f"  model    {folder.model}"] if folder.model.is_dir() else []),
        *([f"  {'and at' if folder.model.is_dir() else 'model '}   {there}"] if there else []),
        *([f"  metrics  {folder.metrics}"] if folder.metrics.exists() else []),
        f"  report   xrun report {as_typed(folder.run, folder.path)}",
    ]
    return "\n".join(lines)


def status_lines(found: Sequence[RunStatus], now: float, width: int | None) -> list[str]:
    """What `xrun status` says: a head, and a line for each run."""
    differs = compared.differing([each.report for each in found])
    rows = [_row(each, now, differ) for each, differ in zip(found, differs, strict=True)]
    return lines_of(_STATUS, rows, width)


def _row(status: RunStatus, now: float, differs: str) -> tuple[str, ...]:
    report = status.report
    if report.error:
        return (report.run, status.status, *[""] * (len(_STATUS) - 2))
    lost = sum(attempt.was_lost for attempt in report.attempts)
    attempts = f"{len(report.attempts)}{f', {lost} lost' if lost else ''}"
    speed = next(speed_words(report.speed), "") if status.runs else ""
    job = ", ".join(cloud_words(status.cloud, status.status)) if status.cloud else ""
    age = f"{duration_words(now - report.last_seen)} ago" if report.last_seen else compared.ABSENT
    return (
        report.run,
        status.status,
        compared.progress(report),
        left_words(status.seconds_left),
        compared.best(report) if report.best else "",
        age,
        attempts,
        speed,
        report.receipt.price,
        ", ".join(filter(None, (report.lacks, job))),
        differs,
    )


def why_not_text(found: Sequence[RunStatus]) -> Iterator[str]:
    """Below the table, whole: why runs cannot be read or saved, why the newest ones have failed,
    why SkyPilot cannot be asked, and what makes a model that is missing."""
    for each in found:
        if each.report.error:
            yield f"{each.report.run}: {each.report.error}"
        if each.report.export_failed:
            again = (
                f"`xrun export-model {as_typed(each.report.run, each.report.folder)}` tries again."
            )
            yield f"{each.report.run}: {each.report.lacks}; {again}"
        if each.report.no_room:
            yield f"{each.report.run}: {each.report.no_room}"
    failed = [each.report for each in found if each.report.status == "failed"]
    failed.sort(key=lambda report: -report.last_seen)
    for report in failed[:_WHY_FAILED]:
        if reason := report.attempts[-1].reason if report.attempts else None:
            yield f"{report.run} failed: {' '.join(reason.split())}"
    yield from dict.fromkeys(
        each.cloud.problem for each in found if each.cloud and each.cloud.problem
    )


def sums_text(found: Sequence[RunStatus]) -> str:
    """What all these runs have cost together, as far as they can be read."""
    receipts = [each.report.receipt for each in found if not each.report.error]
    rented = [each for each in receipts if not each.is_own]
    known = [each.usd for each in rented if each.usd is not None]
    count = f"{len(receipts)} run{'' if len(receipts) == 1 else 's'}"
    if unread := len(found) - len(receipts):
        count += f", and {unread} that cannot be read"
    hours = f"{sum(each.hours for each in receipts):.1f} h of machine time"
    if not rented:
        return f"{count}: {hours} on machines of one's own, which cost nothing"
    cost = money(round(sum(known), 4)) if known else UNKNOWN
    saved = [each.saved_usd for each in rented if each.saved_usd is not None]
    parts = [f"{count}: {cost}", hours]
    if sum(saved) > 0:
        parts.append(f"{money(round(sum(saved), 4))} saved against on demand")
    if 0 < len(known) < len(rented):
        parts.append(f"what {len(rented) - len(known)} cost is {UNKNOWN}")
    return ", ".join(parts)


def compare_lines(
    names: Sequence[str],
    recipe: Mapping[str, Sequence[str]],
    result: Mapping[str, Sequence[str]],
    width: int | None,
) -> list[str]:
    """What `xrun compare` says: a column for each run, a row for whatever differs."""
    rows = [(key, *values) for part in (recipe, result) for key, values in part.items()]
    if not rows:
        return ["These runs differ in nothing that is known of them."]
    columns = [Column("DIFFERS", cut=True), *(Column(name, cut=True, names=True) for name in names)]
    lines = lines_of(columns, rows, width)
    return lines if recipe else [*lines, "Their recipes are the same."]


def _committed(report: RunReport, status: str) -> str:
    if report.step is None:
        return "nothing committed"
    known = report.committed and status != "finished"
    age = f" {duration_words(time.time() - (report.committed or 0))} ago" if known else ""
    return f"step {report.step} committed{age}"


def cloud_words(cloud: OnCloud, status: str) -> Iterator[str]:
    """What only a cloud run has in `xrun status`."""
    how = (cloud.job_status or "").lower()
    if cloud.job:
        yield f"job {cloud.job}" + (f" {how}" if how not in ("", status) else "")
    if cloud.place:
        price = f" at ${cloud.usd_per_hour:.2f}/h" if cloud.usd_per_hour is not None else ""
        yield f"on {cloud.place}{price}"


def report_text(report: RunReport) -> str:
    """What `xrun report` says of a run."""
    lines = [f"{report.run}: {report.status}, {_committed(report, 'finished')}"]
    receipts = report.receipt.lines or [None] * len(report.attempts)
    for number, (each, line) in enumerate(zip(report.attempts, receipts, strict=True), 1):
        lines.append(_attempt(number, each, "killed" if report.status == "killed" else "running"))
        lines += [f"    {line.words}"] if line and line.words else []
    lines += [f"  {name} {value:.6g}" for name, value in sorted(report.metrics.items())]
    if report.step and not report.metrics:
        lines.append(f"  no metrics are in {report.folder}")
    if speed := ", ".join(speed_words(report.speed)):
        how = "" if report.status == "running" else ", the median"
        lines.append(
            f"  speed {report.speed.get('step_seconds', 0.0):.3g} s per step, {speed}{how}"
        )
    if report.no_room:
        lines.append(f"  {report.no_room}")
    if left := left_words(report.seconds_left):
        lines.append(f"  {left} left, without evaluations and saves")
    if drawn := list(plot(report.losses)):
        lines += ["  train/loss", *(f"  {line}" for line in drawn)]
    least = "" if report.knows_what_was_lost else "at least "
    lines.append(
        f"  recomputed {least}{report.steps_recomputed} steps, {least}{report.seconds_lost:.1f} s"
        " lost"
    )
    lines += _why_not_exact(report)
    lines += [f"  {each}" for each in (*report.receipt.sentences(), *report.receipt.notes())]
    if report.model:
        lines.append(f"  model {report.model} (SHA-256 {report.weights_sha256})")
    if report.export_failed:
        lines.append(f"  {report.lacks}: {report.export_failed}")
        lines.append(f"  `xrun export-model {as_typed(report.run, report.folder)}` tries again")
    elif report.lacks:
        lines.append(f"  {report.lacks} (SHA-256 {report.weights_sha256})")
        lines.append(f"  `xrun export-model {as_typed(report.run, report.folder)}` makes it again")
    return "\n".join(lines)


def receipt_text(receipt: Receipt) -> str:
    """What `xrun receipt` says of a run."""
    head, *rows = receipt.rows()
    table = lines_of([Column(head[0], right=True), *map(Column, head[1:])], rows)
    sentences, notes = [*receipt.sentences()], [*receipt.notes()]
    return "\n".join([f"{receipt.run}. {sentences[0]}", *table, *sentences[1:], *notes])


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


def _attempt(number: int, attempt: AttemptRecord, without_end: str) -> str:
    reason = f" ({attempt.reason})" if attempt.reason else ""
    processes = f"{attempt.processes} process{'' if attempt.processes == 1 else 'es'}"
    return (
        f"  attempt {number}: from step {attempt.first_step}, {processes},"
        f" {attempt.end or without_end}{reason}"
    )
