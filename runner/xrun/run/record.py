"""A run's record (the JSON that a store's head holds), read and extended: attempts, how they ended,
progress."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StoppedOnPurpose
from .plan import Plan

OWN_FAILURES = 3
"""So many attempts in a row that failed by themselves and committed nothing end the run."""
OUTSIDE_ENDS = 20
"""The same for attempts that were ended from outside: real spot machines have runs of short
lives."""


def new_id(now: float) -> str:
    """An attempt's name: ids sort in the order of their starts, also two within one second."""
    second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    return f"{second}{int(now % 1 * 1000):03}-{uuid.uuid4().hex[:6]}"


def steps_committed(record: Mapping[str, Any]) -> int:
    """The newest step that a record names, rejected ones included; -1 if nothing was ever
    committed."""
    steps = [manifest["step"] for manifest in record.get("checkpoints", [])]
    return max([*steps, *record.get("rejected", [])], default=-1)


def without_progress(
    attempts: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The newest attempts in a row that committed no new step: those that failed by themselves,
    those ended from outside."""
    own: list[dict[str, Any]] = []
    outside: list[dict[str, Any]] = []
    for attempt in reversed(attempts):
        if (
            attempt.get("committed", -1) > attempt["from_step"]
            or attempt.get("code") == StoppedOnPurpose.exit_code
        ):
            break
        if attempt.get("kind") in ("own", "outside"):
            (own if attempt["kind"] == "own" else outside).append(attempt)
    return own, outside


def no_progress(
    own: list[dict[str, Any]], outside: list[dict[str, Any]], logs: Path
) -> tuple[str, str]:
    """The sentence that ends a run without progress, and the way on."""
    reasons = (own or outside)[0].get("reason", "")
    count = len(own) if len(own) >= OWN_FAILURES else len(outside)
    return (
        f"{count} attempts in a row committed no step; the last one: {reasons}",
        f"Mend the cause (logs: {logs}) and start the same command again.",
    )


def given_up(attempts: list[dict[str, Any]]) -> bool:
    """Whether so many attempts in a row made no progress that the next one would not either."""
    own, outside = without_progress(attempts)
    return len(own) >= OWN_FAILURES or len(outside) >= OUTSIDE_ENDS


def rule_of(record: Mapping[str, Any]) -> int:
    """The number of the rule that made the run's digest; the first rule had none."""
    return int(record.get("rule", 1))


def leased(record: Mapping[str, Any], plan: Plan, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The record with one more attempt; the one before that said nothing of its end was ended from
    outside."""
    attempts = [dict(attempt) for attempt in record.get("attempts", [])]
    if attempts and "ended" not in attempts[-1]:
        attempts[-1] |= {
            "kind": "outside",
            "reason": "ended from outside",
            "committed": steps_committed(record),
        }
    attempts.append({**entry, "from_step": steps_committed(record)})
    begun = {"format": 1, "digest": plan.digest, "checkpoints": []}
    return {**begun, **record, "rule": plan.rule, "attempts": attempts}
