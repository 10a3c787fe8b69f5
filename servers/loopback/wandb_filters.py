"""Which runs a query wants and in which order: the filters of the public API, in the language of
MongoDB."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, other: value == other,
    "$ne": lambda value, other: value != other,
    "$in": lambda value, other: value in other,
    "$nin": lambda value, other: value not in other,
    "$gt": lambda value, other: value is not None and value > other,
    "$gte": lambda value, other: value is not None and value >= other,
    "$lt": lambda value, other: value is not None and value < other,
    "$lte": lambda value, other: value is not None and value <= other,
    "$exists": lambda value, other: (value is not None) == other,
    "$regex": lambda value, other: re.search(other, str(value)) is not None,
}

NAMES = {
    "created_at": "createdAt",
    "heartbeat_at": "heartbeatAt",
    "display_name": "displayName",
    "job_type": "jobType",
}
"""Keys of filters and orders -> fields of a run."""


def wanted(run: dict[str, Any], condition: dict[str, Any]) -> bool:
    """True if a run, as GraphQL shows it, meets the condition."""
    return all(meets(run, key, wish) for key, wish in condition.items())


def meets(run: dict[str, Any], key: str, wish: Any) -> bool:
    """One entry of a condition."""
    if key == "$and":
        return all(wanted(run, each) for each in wish)
    if key == "$or":
        return any(wanted(run, each) for each in wish)
    value = lookup(run, key)
    if isinstance(wish, dict) and any(name.startswith("$") for name in wish):
        return all(COMPARISONS[name](value, other) for name, other in wish.items())
    return wish in value if isinstance(value, list) else value == wish


def lookup(run: dict[str, Any], key: str) -> Any:
    """The value at `config.NAME`, `summary_metrics.NAME` or a field of the run; names may have
    dots, None if there is none."""
    top, _, rest = key.partition(".")
    if top == "config":
        entry = json.loads(run["config"]).get(rest.removesuffix(".value"))
        return entry["value"] if entry else None
    if top in ("summary", "summary_metrics"):
        return json.loads(run["summaryMetrics"]).get(rest)
    return run.get(NAMES.get(key, key))


def ordered(runs: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """The runs by a key with `+` or `-` before it; those without a value come first."""
    key = order.lstrip("+-")
    return sorted(runs, key=lambda run: ordinal(lookup(run, key)), reverse=order.startswith("-"))


def ordinal(value: Any) -> tuple[int, float, str]:
    """Something that values of any kind can be sorted by."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))
