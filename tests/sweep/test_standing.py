"""Which trials go on: by `halving` the same in every order, by `asha` each once and for good."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xrun.recipe.schema import EarlyStop
from xrun.sweep.standing import Result, Rules, Standing

pytestmark = pytest.mark.once

HALVING = Rules(trials=7, rungs=3, mode="max", method="halving", reduction=2)


def result(trial: int, rung: int, values: list[float | None]) -> Result:
    """What a trial has at a rung; None is a trial that fails there."""
    value = values[(trial * 31 + rung * 7) % len(values)]
    return Result(rung * 10, value, "" if value is not None else "broken")


def played(rules: Rules, values: list[float | None], seed: int) -> Standing:
    """All trials to their ends, in a random order, with results that come twice and a standing that
    is written down and read again now and then."""
    source, standing = random.Random(seed), Standing(rules)
    while ready := [n for n in range(1, rules.trials + 1) if standing.state_of(n) == "waits"]:
        trial = source.choice(ready)
        rung = standing.rung_of(trial)
        for _ in range(source.choice([1, 2])):
            standing = standing.with_result(trial, rung, result(trial, rung, values))
        if source.random() < 0.3:
            standing = Standing.from_json(rules, json.loads(json.dumps(standing.to_json())))
    return standing


@given(
    values=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=9),
    seeds=st.tuples(st.integers(), st.integers()),
)
def test_halving_does_not_depend_on_the_order(values: Any, seeds: tuple[int, int]) -> None:
    """The same survivors, whatever came first, twice or after a failure; nobody waits for ever."""
    one, other = (played(HALVING, values, seed) for seed in seeds)
    assert one == other
    assert one.is_complete
    assert len(one.at(2)) <= 4
    assert len(one.at(3)) <= max(1, -(-len(one.at(2)) // 2))


def test_halving_keeps_the_best() -> None:
    """A full rung is decided from its results: the best half goes on, of equal ones the smaller
    number, a failed one never."""
    standing = Standing(Rules(4, 2, "max", "halving", 2))
    for trial, value in ((4, 0.5), (2, 0.5), (3, None)):
        standing = standing.with_result(trial, 1, Result(5, value, "" if value else "broken"))
        assert standing.state_of(trial) == ("parked" if value else "failed")
        assert not standing.decisions
    standing = standing.with_result(1, 1, Result(5, 0.9))
    assert standing.decisions == {1: {1: True, 2: True, 3: False, 4: False}}
    assert [standing.state_of(n) for n in range(1, 5)] == ["waits", "waits", "failed", "out"]
    standing = standing.with_result(2, 2, Result(9, 0.7)).with_result(1, 2, Result(9, 0.6))
    assert (standing.best, standing.is_complete) == (2, True)


@pytest.mark.parametrize(
    ("reduction", "kept"), [(2, [12, 6, 3, 2]), (3, [8, 3, 1, 1]), (1.5, [16, 11, 8, 6, 4])]
)
def test_a_fraction_is_one_more_rather_than_one_less(reduction: float, kept: list[int]) -> None:
    """From rung to rung of 24 trials, whatever the division leaves in its last bits."""
    here, found = 24, []
    for _ in kept:
        here = Rules(24, method="halving", reduction=reduction).kept(here)
        found.append(here)
    assert found == kept
    assert Rules(21, method="halving", reduction=1.4).kept(21) == 15


@pytest.mark.parametrize("reduction", [0, 1, 1.05, -2, 1001, float("nan"), "x"])
def test_a_rung_that_takes_nobody_or_everybody_is_refused(reduction: Any) -> None:
    """And a whole number stays one, as which the sweep's id has it."""
    told = {"method": "halving", "rungs": 2}
    with pytest.raises(ValidationError):
        EarlyStop.model_validate({**told, "reduction": reduction})
    assert repr(EarlyStop.model_validate({**told, "reduction": 3}).reduction) == "3"


def test_a_board_that_has_begun_keeps_its_rules() -> None:
    """What an older xrun has begun goes on with fractions that are rounded down, and says so."""
    told: dict[str, Any] = {"format": 1, "results": {}, "decisions": {}}
    for count, standing in ((3, Standing.from_json(HALVING, told)), (4, Standing(HALVING))):
        for trial in range(1, 8):
            standing = standing.with_result(trial, 1, Result(5, trial / 10))
            standing = Standing.from_json(HALVING, json.loads(json.dumps(standing.to_json())))
        assert len(standing.at(2)) == count


def test_less_is_better_with_min() -> None:
    """And a loss that is not finite is a failure."""
    standing = Standing(Rules(3, 2, "min", "halving", 3))
    for trial, value in ((1, float("nan")), (2, 0.2), (3, 0.1)):
        standing = standing.with_result(trial, 1, Result(5, value))
    assert standing.at(2) == (3,)
    assert standing.results[1][1].failed == "its metric is nan"


def test_what_is_decided_stays() -> None:
    """A result that something was decided from is never replaced; a failure that nothing follows
    from may be mended."""
    standing = Standing(Rules(2, 2, "max", "halving", 2)).with_result(1, 1, Result(5, failed="x"))
    assert standing.with_result(1, 1, Result(5, 0.3)).state_of(1) == "parked"
    assert standing.may_run(1)
    decided = standing.with_result(2, 1, Result(5, 0.2))
    assert (decided.state_of(1), decided.may_run(1)) == ("failed", False)
    assert decided.with_result(1, 1, Result(5, 0.9)) == decided
    assert decided.with_result(2, 1, Result(5, 0.1)) == decided


@given(values=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=9), seed=st.integers())
def test_asha_never_waits_and_never_takes_back(values: Any, seed: int) -> None:
    """Each decision is made with the trial's own result and is the same ever after; nobody is
    parked."""
    rules = Rules(trials=9, rungs=3, mode="max", method="asha", reduction=3)
    source, standing = random.Random(seed), Standing(rules)
    while ready := [n for n in range(1, 10) if standing.state_of(n) == "waits"]:
        trial = source.choice(ready)
        rung = standing.rung_of(trial)
        before, found = standing.decisions, result(trial, rung, values)
        standing = standing.with_result(trial, rung, found)
        assert (trial in standing.decisions.get(rung, {})) == (rung < 3 and not found.failed)
        for each, made in before.items():
            assert made.items() <= standing.decisions[each].items()
    assert standing.is_complete


def test_asha_keeps_who_is_among_the_best_so_far() -> None:
    """The first always goes on; later ones if they are in the best third of those that came."""
    standing = Standing(Rules(4, 2, "max", "asha", 3))
    for trial, value in ((1, 0.5), (2, 0.4), (3, 0.6), (4, 0.55)):
        standing = standing.with_result(trial, 1, Result(5, value))
    assert standing.decisions == {1: {1: True, 2: False, 3: True, 4: False}}


def test_without_early_stops_every_trial_goes_to_its_end() -> None:
    """One rung, the end, and the best of those that have a value there."""
    standing = Standing(Rules(3, mode="min"))
    for trial, value in ((3, 0.5), (1, 0.5), (2, None)):
        standing = standing.with_result(trial, 1, Result(5, value, "" if value else "broken"))
    assert (standing.is_complete, standing.best) == (True, 1)
