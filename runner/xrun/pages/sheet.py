"""A run -> all that its page shows besides the row in the list: lines, attempts, receipt, recipe,
lock, logs. What it says is what `xrun report`, `xrun receipt` and `xrun logs` say."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from ..errors import XrunError
from ..run.folder import RunFolder
from ..run.locked import Lock
from ..run.opened import OpenedRun, open_run
from ..run.points import Seen
from ..run.receipt import Line, money
from ..run.record import AttemptRecord
from ..run.report import RunReport, with_metrics
from . import hidden
from .series import Clock, Series, clock_of, series_of

_LOGS = 5
"""So many of the newest attempts have a piece of their log on a page."""


class _HasLogs(Protocol):
    """A run, wherever it is."""

    def log_text(self, attempt: int | None, rank: int) -> str: ...


@dataclass(frozen=True)
class Room:
    """What one run may take on a page: `points` in all of its lines, `characters` of its logs."""

    points: int
    characters: int

    @classmethod
    def on_a_page(cls, runs: int) -> Room:
        """An equal part of the page for each of so many runs."""
        runs = max(1, runs)
        return cls(max(1_000, 400_000 // runs), max(1_000, min(100_000, 2_000_000 // runs)))


@dataclass(frozen=True)
class Sheet:
    """A run's page. `report` has the newest metrics; `problem` says what of the run cannot be
    shown."""

    report: RunReport
    series: Mapping[str, Series]
    clock: Clock
    lock: Lock
    logs: Sequence[tuple[int, str]]
    secrets: tuple[str, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a page has it. Times are seconds since 1970."""
        report = self.report
        head, *rows = report.receipt.rows()
        recipe = hidden.told(report.recipe, self.secrets) if report.recipe else None
        return {
            "series": {name: each.to_json() for name, each in self.series.items()},
            "clock": {"x": self.clock.steps, "t": self.clock.times},
            "attempts": list(_attempts(report, self.secrets)),
            "receipt": {
                "head": head,
                "rows": rows,
                "texts": [*report.receipt.sentences(), *report.receipt.notes()],
            },
            "recipe": _yaml(recipe),
            "lock": _yaml(hidden.told(self.lock.to_json(), self.secrets)),
            "logs": [{"attempt": number, "text": text} for number, text in self.logs],
            "problem": self.problem,
        }


def sheet_of(report: RunReport, room: Room) -> Sheet:
    """The page of the run that a report is of; what cannot be read of it is its `problem`."""
    secrets = hidden.known_secrets(report.recipe)
    empty = Sheet(report, {}, Clock((), ()), Lock(), (), secrets)
    if report.error:
        return replace(empty, problem=hidden.printed(report.error, secrets))
    folder = RunFolder(Path(report.folder))
    try:
        if folder.plan_file.exists():
            points, lock = folder.newest_points(), folder.record().lock
            lock = lock or Lock.from_json(folder.plan().lock)
            whole: RunFolder | OpenedRun = folder
        else:
            whole = open_run(report.folder, by_page=False)
            points, lock = whole.points(), whole.record.lock
    except (XrunError, ValueError) as error:
        return replace(empty, problem=hidden.printed(str(error), secrets))
    if not report.metrics and points:
        report = with_metrics(report, points[-1]["step"], Seen(_newest(points), points))
    return Sheet(
        report,
        series_of(points, room.points),
        clock_of(points, room.points // 8),
        lock,
        tuple(_logs(whole, len(report.attempts), room.characters, secrets)),
        secrets,
    )


def _newest(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    newest: dict[str, float] = {}
    for point in points:
        numbers = (item for item in point.items() if isinstance(item[1], int | float))
        newest |= {name: value for name, value in numbers if "/" in name}
    return newest


def _logs(
    run: _HasLogs, attempts: int, characters: int, secrets: tuple[str, ...]
) -> list[tuple[int, str]]:
    """The ends of what the first process of the newest attempts has printed."""
    found = []
    numbers = range(max(1, attempts - _LOGS + 1), attempts + 1)
    for number in numbers:
        try:
            text = run.log_text(number, 0)
        except XrunError:
            continue  # it has left nothing, or nobody can read it now
        text = hidden.printed(text, secrets)
        most = characters // len(numbers)
        if len(text) > most:
            text = f"... (the end of {len(text)} characters)\n{text[-most:].partition(chr(10))[2]}"
        found.append((number, text))
    return found


def _attempts(report: RunReport, secrets: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each with where it was in steps, time and dollars, and what people read of it."""
    found, paid = [], 0.0
    pairs = list(zip(report.attempts, report.receipt.lines, strict=False))
    for place, (attempt, line) in enumerate(pairs):
        after = report.attempts[place + 1] if place + 1 < len(report.attempts) else None
        usd = line.usd or 0.0
        found.append(
            {
                "number": line.attempt,
                "from": attempt.first_step,
                "to": _reached(report, attempt, after),
                "again": attempt.steps_recomputed or 0,
                "began": round(line.began, 3),
                "ended": round(max(line.began, line.ended), 3),
                "paid": round(paid, 4),
                "usd": usd,
                "kind": _kind(attempt, line),
                "place": line.place,
                "texts": [
                    (name, hidden.printed(text, secrets)) for name, text in _texts(attempt, line)
                ],
            }
        )
        paid += usd
    return found


def _reached(report: RunReport, attempt: AttemptRecord, after: AttemptRecord | None) -> int:
    """The last step that it has computed, as far as anybody knows."""
    if after is not None:
        return max(attempt.first_step, after.first_step + (after.steps_recomputed or 0))
    return max(attempt.first_step, report.step or 0, report.logged_step or 0)


def _kind(attempt: AttemptRecord, line: Line) -> str:
    """How it has ended, in the few words that have a colour."""
    if line.end == "running":
        return "running"
    if attempt.was_preempted:
        return "preempted"
    if attempt.code == 0:
        return "finished"
    return "stopped" if attempt.may_be_followed else "failed"


def _texts(attempt: AttemptRecord, line: Line) -> list[tuple[str, str]]:
    """What people read of an attempt."""
    again = attempt.steps_recomputed
    lost = (
        ""
        if again is None
        else f"{again} steps" + (f", {attempt.seconds_lost:.1f} s" if attempt.seconds_lost else "")
    )
    machine = line.machine or attempt.host
    processes = f"{attempt.processes} process{'' if attempt.processes == 1 else 'es'}"
    if line.nodes > 1:
        machine = f"{line.nodes}x {machine}" if machine else f"{line.nodes} machines"
    price = "" if line.price == "own" else f"{money(line.usd_per_hour)} an hour"
    if line.price == "seen" and line.price_date:
        price += f" on {line.price_date}"
    end = str(attempt.end or line.end) + (f": {attempt.reason}" if attempt.reason else "")
    return [
        ("place", " ".join(filter(None, (line.place, line.zone)))),
        ("machine", ", ".join(filter(None, (machine, processes)))),
        ("price", price or "a machine of one's own"),
        ("hours", f"{line.hours:.4g}"),
        ("dollars", "" if line.price == "own" else money(line.usd)),
        ("began", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(line.began))),
        ("from step", str(attempt.first_step)),
        ("computed again", lost or ("nothing" if line.attempt == 1 else "not known")),
        ("end", end),
    ]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100) if value else ""
