"""The values of a sweep's trials, made from the recipe alone: the same on every machine, and at
every start of the command."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from ..recipe.schema import Parameter, Sweep

_TRIES = 100
"""Draws for each trial: where a space has few combinations, most have been drawn before."""
Values = Mapping[str, Any]
"""Dotted key -> its value in one trial."""


def values_of(sweep: Sweep, seed: int) -> list[Values]:
    """What each trial changes of the recipe, in the order of their numbers; no two are the same.
    `random` gives fewer than `max_trials` where there are no more; `bayes` none, for they follow
    from results."""
    if sweep.method == "bayes":
        return []
    return list(_grid(sweep) if sweep.method == "grid" else _random(sweep, seed))


def size_of(sweep: Sweep) -> int | float:
    """How many combinations there are; infinity where a range has any value."""
    return math.prod(map(_count, sweep.parameters.values()))


def every_value(sweep: Sweep) -> Iterator[Values]:
    """Few combinations in which each value of a list, and both ends of each range, stand once at
    least."""
    values = {key: each.values or (each.min, each.max) for key, each in sweep.parameters.items()}
    for place in range(max(map(len, values.values()))):
        yield {key: each[place % len(each)] for key, each in values.items()}


def combinations(sweep: Sweep) -> Iterator[Values]:
    """All of a space that has so many; whole numbers are counted through."""
    choices = [
        each.choices or range(int(each.min or 0), int(each.max or 0) + 1)
        for each in sweep.parameters.values()
    ]
    for combination in itertools.product(*choices):
        yield dict(zip(sweep.parameters, combination, strict=True))


def _count(parameter: Parameter) -> int | float:
    low, high, choices = parameter.min, parameter.max, parameter.choices
    if choices is not None:
        return len(choices)
    return high - low + 1 if isinstance(low, int) and isinstance(high, int) else math.inf


def _grid(sweep: Sweep) -> Iterator[Values]:
    """Every combination, the last key fastest."""
    choices = [each.choices or () for each in sweep.parameters.values()]
    for combination in itertools.product(*choices):
        yield dict(zip(sweep.parameters, combination, strict=True))


def _random(sweep: Sweep, seed: int) -> Iterator[Values]:
    """Draws without repetition. Only `random()` is asked, whose numbers Python keeps for ever."""
    source, wanted, seen = random.Random(f"xrun sweep {seed}"), sweep.max_trials or 0, set[str]()
    wanted = int(min(wanted, size_of(sweep)))
    for _ in range(wanted * _TRIES):
        if len(seen) == wanted:
            return
        drawn = {key: _drawn(each, source.random()) for key, each in sweep.parameters.items()}
        if (written := json.dumps(drawn, sort_keys=True)) not in seen:
            seen.add(written)
            yield drawn


def _drawn(parameter: Parameter, share: float) -> Any:
    """The value at a random number from 0 to 1, 1 excluded."""
    if (choices := parameter.choices) is not None:
        return choices[int(share * len(choices))]
    low, high = parameter.min, parameter.max
    if isinstance(low, int) and isinstance(high, int) and not parameter.log:
        return low + int(share * (high - low + 1))  # each whole number as often as any other
    return parameter.at(share)
