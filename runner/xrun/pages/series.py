"""A run's points -> a line for each metric, thinned where it has more points than a page has room
for.

What is thinned keeps its peaks: of each of so many equal stretches the least and the greatest value
stay, each at its own step, and with them the first value that is no number. Nothing is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DIGITS = 7
"""Of a value; more than anybody sees."""


@dataclass(frozen=True)
class Series:
    """One metric: `values` at `steps`, which ascend; None is a value that was no finite number.
    `logged` points there were."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    logged: int

    def to_json(self) -> dict[str, Any]:
        """As a page has it; `of` where points were left out."""
        told = {"x": self.steps, "y": self.values}
        return told if self.logged == len(self.steps) else {**told, "of": self.logged}


@dataclass(frozen=True)
class Clock:
    """When steps were logged: `times` in seconds since 1970, which never go back, at `steps`. What
    lies between two of them is evenly spread."""

    steps: tuple[int, ...]
    times: tuple[float, ...]


def series_of(points: Iterable[Mapping[str, Any]], most: int) -> dict[str, Series]:
    """Every metric by its name, of at most `most` values together, each metric an equal part of
    them, but some in any case."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for point in points:
        step = point["step"]
        for name, value in point.items():
            if "/" in name and isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = columns.setdefault(name, ([], []))
                if steps and steps[-1] == step:  # of two values at one step the later counts
                    values[-1] = value
                else:
                    steps.append(step)
                    values.append(value)
    each = max(200, most // max(1, len(columns)))
    return {name: thinned(*columns[name], each) for name in sorted(columns)}


def thinned(steps: Sequence[int], values: Sequence[float], most: int) -> Series:
    """At most `most` of these values, and of those that are no numbers one in each stretch."""
    kept: Iterable[int] = range(len(steps))
    if len(steps) > most:
        kept = _peaks(values, max(1, most // 2))
    places = tuple(kept)
    shown = tuple(_short(values[place]) for place in places)
    return Series(tuple(steps[place] for place in places), shown, len(steps))


def _peaks(values: Sequence[float], stretches: int) -> Iterable[int]:
    """The places that stay, in their order."""
    count = len(values)
    for stretch in range(stretches):
        places = range(stretch * count // stretches, (stretch + 1) * count // stretches)
        finite = [place for place in places if math.isfinite(values[place])]
        kept = {next((place for place in places if not math.isfinite(values[place])), -1)}
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        yield from sorted(kept - {-1})


def clock_of(points: Sequence[Mapping[str, Any]], most: int) -> Clock:
    """When steps were logged, by at most `most` of them besides the first and the last of each
    attempt."""
    told = [point for point in points if isinstance(point.get("time"), int | float)]
    every = max(1, -(-len(told) // most))
    steps: list[int] = []
    times: list[float] = []
    whose = [None, *(point.get("attempt", "") for point in told), None]
    for place, point in enumerate(told):
        turn = len(set(whose[place : place + 3])) > 1  # the first or the last of its attempt
        if (place % every == 0 or turn) and math.isfinite(point["time"]):
            if steps and steps[-1] == point["step"]:
                continue
            steps.append(point["step"])
            times.append(round(max([*times[-1:], float(point["time"])]), 3))
    return Clock(tuple(steps), tuple(times))


def _short(value: float) -> float | None:
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
