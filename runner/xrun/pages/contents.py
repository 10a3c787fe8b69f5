"""Runs and sweeps -> what a page lists: a row for each run, as `xrun status` has it, and for each
sweep its trials, as `xrun sweep table` has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from ..run import compared
from ..run.receipt import Receipt, money
from ..run.report import RunReport, duration_words, speed_words
from ..sweep.told import ToldSweep
from . import hidden

_LOSSES = ("train/loss", "val/loss")


@dataclass(frozen=True)
class Shown:
    """What a page is about: runs with their reports, whose `status` is what people read, and the
    sweeps among them. `own` are the sweeps of runs whose plans name one; `opens` is the sweep that
    the page is about, where that is one."""

    title: str
    reports: Sequence[RunReport]
    sweeps: Sequence[ToldSweep] = ()
    own: Mapping[str, str] | None = None
    opens: str = ""


Look = Callable[[], Shown]
"""Asks anew what there is to show."""


def index_of(shown: Shown, now: float) -> dict[str, Any]:
    """As a page has it; times are seconds since 1970."""
    differs = compared.differing(shown.reports)
    pairs = zip(shown.reports, differs, strict=True)
    rows = [_row(report, differ) for report, differ in pairs]
    return {
        "title": hidden.printed(shown.title),
        "made": round(now),
        "made_text": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        "runs": rows,
        "sweeps": [_sweep(each, shown) for each in shown.sweeps],
        "opens": hidden.printed(shown.opens),
    }


def version_of(report: RunReport) -> str:
    """Another text whenever there may be something new on the run's page."""
    last = report.attempts[-1:]
    ends = [(each.end, each.reason) for each in last]
    seen = (report.status, report.step, report.logged_step, len(report.attempts), ends)
    known = repr((*seen, report.committed, report.error, report.weights_sha256))
    return blake3(known.encode()).hexdigest(16)


def _row(report: RunReport, differs: str) -> dict[str, Any]:
    receipt = report.receipt
    lost = sum(attempt.was_lost for attempt in report.attempts)
    best = report.best
    secrets = hidden.known_secrets(report.recipe)

    def tell(text: str) -> str:
        return hidden.printed(text, secrets)

    return {
        "run": tell(report.run),
        "recipe": tell(str((report.recipe or {}).get("name", ""))),
        "status": report.status,
        "step": report.step if report.logged_step is None else report.logged_step,
        "steps": report.steps,
        "best": None if best is None else _number(best["value"]),
        "best_text": compared.best(report) if best else "",
        "losses": {n: _number(report.metrics[n]) for n in _LOSSES if n in report.metrics},
        "attempts": len(report.attempts),
        "lost": lost,
        "again": report.steps_recomputed,
        "hours": receipt.hours,
        "usd": receipt.usd,
        "price": "" if receipt.is_own else receipt.price,
        "own": receipt.is_own,
        "seen": report.last_seen or None,
        "speed": ", ".join(speed_words(report.speed)),
        "differs": tell(differs),
        "facts": [(name, tell(text)) for name, text in _facts(report) if text],
        "error": tell(report.error),
    }


def _facts(report: RunReport) -> list[tuple[str, str]]:
    """What a run has come to, for people."""
    least = "" if report.knows_what_was_lost else "at least "
    lost = f"{least}{report.steps_recomputed} steps, {duration_words(report.seconds_lost)}"
    return [
        ("step", compared.progress(report)),
        ("best", compared.best(report) if report.best else ""),
        ("cost", _cost(report.receipt)),
        ("computed again", lost if len(report.attempts) > 1 else ""),
        ("speed", ", ".join(speed_words(report.speed))),
        ("bits", "" if report.exact else "not those of an undisturbed run: `xrun report` says why"),
        ("weights", report.weights_sha256 or ""),
        ("model", report.model or ""),
        ("no model", report.export_failed or ""),
        ("where", report.folder),
    ]


def _cost(receipt: Receipt) -> str:
    if not receipt.lines:
        return ""
    took = f"{duration_words(3600 * receipt.hours)} of machine time"
    if receipt.is_own:
        return f"nothing, {took} on machines of one's own"
    saved = receipt.saved_usd
    less = f", {money(saved)} saved against on demand" if saved and saved > 0 else ""
    return f"{receipt.price} for {took}{less}"


def _sweep(sweep: ToldSweep, shown: Shown) -> dict[str, Any]:
    rows = [row.to_json() for row in sweep.rows(shown.reports, shown.own or {})]
    best = sweep.standing.best
    return {
        "id": hidden.printed(sweep.id),
        "metric": hidden.printed(sweep.metric),
        "mode": sweep.mode,
        "keys": list(sweep.values[0]) if sweep.values else [],
        "rows": [{**row, "failed": hidden.printed(row["failed"])} for row in rows],
        "best": best,
        "importance": [
            [name, None if each is None else round(each, 4)]
            for name, each in sweep.importance().items()
        ],
    }


def _number(value: Any) -> float | None:
    """What JSON has a number for."""
    number = isinstance(value, int | float) and abs(value) < float("inf")
    return float(f"{value:.6g}") if number else None
