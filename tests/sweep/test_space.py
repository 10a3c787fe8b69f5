"""The values of trials follow from the recipe alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from xrun.recipe.schema import Sweep
from xrun.sweep.space import values_of

pytestmark = pytest.mark.once


def sweep(parameters: Mapping[str, object], **more: object) -> Sweep:
    return Sweep.model_validate({"parameters": parameters, **more})


def test_a_grid_is_every_combination() -> None:
    """The last key is the fastest; ranges have both of their ends, and whole numbers where both
    ends are."""
    made = values_of(
        sweep(
            {
                "train.optimizer.lr": {"min": 1e-4, "max": 1e-2, "log": True, "points": 3},
                "model.args.width": {"min": 8, "max": 32, "log": True, "points": 3},
                "model.args.kind": ["a", None],
            }
        ),
        seed=0,
    )
    assert len(made) == 18
    assert [dict(each) for each in made[:3]] == [
        {"train.optimizer.lr": 1e-4, "model.args.width": 8, "model.args.kind": "a"},
        {"train.optimizer.lr": 1e-4, "model.args.width": 8, "model.args.kind": None},
        {"train.optimizer.lr": 1e-4, "model.args.width": 16, "model.args.kind": "a"},
    ]
    assert [each["train.optimizer.lr"] for each in made[::6]] == [1e-4, 1e-3, 1e-2]


def test_random_trials_are_the_same_everywhere() -> None:
    """These very numbers: a run's id follows from them, on every machine and with every Python."""
    parameters = {"a": {"min": 1e-4, "max": 1e-1, "log": True}, "b": {"min": 0, "max": 9}}
    made = values_of(sweep(parameters, method="random", max_trials=3), seed=7)
    assert [dict(each) for each in made] == [
        {"a": 0.000525872, "b": 5},
        {"a": 0.0763216, "b": 6},
        {"a": 0.0244805, "b": 3},
    ]
    longer = values_of(sweep(parameters, method="random", max_trials=5), seed=7)
    assert longer[:3] == made
    assert values_of(sweep(parameters, method="random", max_trials=3), seed=8) != made


def test_random_trials_differ() -> None:
    """No two are the same, and where the space has fewer than were asked for, all of it is
    drawn."""
    parameters = {"a": [1, 2, 3], "b": {"min": 1, "max": 2}}
    made = values_of(sweep(parameters, method="random", max_trials=50), seed=0)
    assert len({tuple(each.items()) for each in made}) == len(made) == 6
    whole = {"a": {"min": 0, "max": 1}}
    assert len(values_of(sweep(whole, method="random", max_trials=9), seed=0)) == 2


def test_random_numbers_stay_in_their_range() -> None:
    """Evenly in factors with `log`: about as many below the middle as above it."""
    parameters = {"a": {"min": 1e-4, "max": 1e-2, "log": True}, "b": {"min": 2, "max": 5}}
    made = values_of(sweep(parameters, method="random", max_trials=400), seed=0)
    rates = [each["a"] for each in made]
    assert 1e-4 <= min(rates) < max(rates) <= 1e-2
    assert 150 < sum(rate < 1e-3 for rate in rates) < 250
    assert {each["b"] for each in made} == {2, 3, 4, 5}
