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
    `random` gives fewer than `max_trials` where there are no more."""
    return list(_grid(sweep) if sweep.method == "grid" else _random(sweep, seed))


def _grid(sweep: Sweep) -> Iterator[Values]:
    """Every combination, the last key fastest."""
    choices = [each.choices or () for each in sweep.parameters.values()]
    for combination in itertools.product(*choices):
        yield dict(zip(sweep.parameters, combination, strict=True))


def _random(sweep: Sweep, seed: int) -> Iterator[Values]:
    """Draws without repetition. Only `random()` is asked, whose numbers Python keeps for ever."""
    source, wanted, seen = random.Random(f"xrun sweep {seed}"), sweep.max_trials or 0, set[str]()
    counts = [len(each.choices) if each.choices else math.inf for each in sweep.parameters.values()]
    wanted = int(min(wanted, math.prod(counts)))
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
