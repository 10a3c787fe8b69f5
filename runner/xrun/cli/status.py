"""Runs for people: a line each for `xrun status`, all of it for `xrun report`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ..launcher.sky.status import cloud_words


def status_line(report: Mapping[str, Any]) -> str:
    """What `xrun status` says of a run."""
    if "error" in report:
        return f"{report['run']:<40} unreadable  {report['error']}"
    attempts = report["attempts"]
    kills = sum(attempt.get("kind") == "outside" for attempt in attempts)
    age = (
        f" {_age(time.time() - report['committed'])} ago"
        if report["committed"] and report["status"] != "finished"
        else ""
    )
    committed = (
        "nothing committed" if report["step"] is None else f"step {report['step']} committed{age}"
    )
    parts = [
        committed,
        f"{len(attempts)} attempts",
        f"{kills} ended from outside",
        *cloud_words(report),
    ]
    return f"{report['run']:<40} {report['status']:<9} {', '.join(parts)}"


def _age(seconds: float) -> str:
    """In the unit that says most: 80 s, 12 min, 5 h, 3 days."""
    for limit, unit, name in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(0.0, seconds) / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def report_text(facts: Mapping[str, Any]) -> str:
    """What `xrun report` says of a run."""
    lines = [f"{facts['run']}: {facts['status']}, step {facts['step']} committed"]
    for number, attempt in enumerate(facts["attempts"], 1):
        ended = attempt.get("kind", "running")
        lines.append(
            f"  attempt {number}: from step"
            f" {max(0, attempt.get('resumed_step', attempt['from_step']))}, {attempt['processes']}"
            f" processes, {ended}{' (' + attempt['reason'] + ')' if attempt.get('reason') else ''}"
        )
    lines += [f"  {name} {value:.6g}" for name, value in sorted(facts["metrics"].items())]
    lost = [
        "steps_recomputed" not in after
        for before, after in pairwise(facts["attempts"])
        if before.get("kind") == "outside"
    ]
    least = "at least " if any(lost) else ""  # on a machine that has gone
    lines.append(
        f"  recomputed {least}{facts['steps_recomputed']} steps, {least}{facts['seconds_lost']:.1f}"
        " s lost"
    )
    if not facts["exact"]:
        lines.append(
            "  not exact: micro-batches that did not fit into memory were computed in parts"
        )
    if facts["model"]:
        lines.append(f"  model {facts['model']} (SHA-256 {facts['weights_sha256']})")
    return "\n".join(lines)
