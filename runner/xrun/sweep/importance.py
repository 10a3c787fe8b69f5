"""How much each parameter of a sweep matters: the share of the differences between trials that goes
along with it alone.

It is epsilon squared of a one-way analysis of variance over the ranks of the results (Kruskal and
Wallis): 0 where its values make no difference beyond chance, 1 where they order the trials by
themselves. Ranks, because losses of diverged trials would drown the rest. Parameters that only
matter together show up as little alone; so do those with few trials for each value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_GROUPS = 4
"""A parameter that has another number in nearly each trial is looked at in so many parts, or in as
many as have two trials each: what one trial alone has says nothing of chance."""


def importance(
    values: Sequence[Mapping[str, Any]], results: Sequence[float | None]
) -> dict[str, float | None]:
    """For each parameter a number from 0 to 1, by the trials that have a result; None where these
    are too few to tell, or all have the same value."""
    known = [(each, y) for each, y in zip(values, results, strict=True) if y is not None]
    ranks = _ranks([y for _, y in known])
    found: dict[str, float | None] = {}
    for key in values[0] if values else ():
        groups = _groups([each[key] for each, _ in known])
        told = 1 < len(set(groups)) < len(known)
        found[key] = _share(groups, ranks) if told else None
    return found


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1 on; equal values have the mean of theirs."""
    return [
        sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values
    ]


def _groups(values: Sequence[Any]) -> list[str | int]:
    """Which values count as one: equal ones, or neighbours, where numbers hardly ever repeat."""
    numbers = all(isinstance(each, int | float) for each in values)
    parts = min(_GROUPS, len(values) // 2)
    if not numbers or parts < 2 or len(set(values)) <= len(values) / 2:
        return [json.dumps(each, sort_keys=True) for each in values]
    ordered = sorted(values)
    return [ordered.index(each) * parts // len(values) for each in values]


def _share(groups: Sequence[str | int], ranks: Sequence[float]) -> float:
    """Epsilon squared: what lies between the groups, less what chance puts there."""
    mean = sum(ranks) / len(ranks)
    total = sum((rank - mean) ** 2 for rank in ranks)
    if not total:
        return 0.0
    between = 0.0
    for name in set(groups):
        own = [rank for group, rank in zip(groups, ranks, strict=True) if group == name]
        between += len(own) * (sum(own) / len(own) - mean) ** 2
    count, kinds = len(ranks), len(set(groups))
    within = (total - between) / (count - kinds)
    return max(0.0, (between - (kinds - 1) * within) / total)
