"""What of a sweep matters: a number that can be checked by hand."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from xrun.sweep.importance import importance


def test_what_orders_the_trials_is_one_and_what_does_nothing_is_none() -> None:
    grid = [{"lr": lr, "width": width} for lr in (1, 2, 3) for width in (8, 16, 32, 64)]
    found = importance(grid, [float(each["lr"]) for each in grid])
    assert found["lr"] == pytest.approx(1.0)
    assert found["width"] == 0.0


def test_it_is_epsilon_squared_of_the_ranks() -> None:
    """Two groups with the ranks 1, 2, 4 and 3, 5, 6: 4.0833 * 2 - 7 is 1.1667 ... by hand."""
    values = [{"a": "x"}] * 3 + [{"a": "y"}] * 3
    found = importance(values, [0.1, 0.2, 0.4, 0.3, 0.5, 0.6])
    between = 3 * (7 / 3 - 3.5) ** 2 + 3 * (14 / 3 - 3.5) ** 2
    total = 17.5
    within = (total - between) / 4
    assert found["a"] == pytest.approx((between - within) / total)


def test_a_trial_that_diverged_does_not_drown_the_others() -> None:
    grid = [{"lr": lr, "width": width} for lr, width in itertools.product((1, 2, 3, 4), repeat=2)]
    results = [each["lr"] + 0.01 * each["width"] for each in grid]
    results[0] = math.inf
    found = importance(grid, results)
    assert found["lr"] > 0.3
    assert found["width"] == 0.0


def test_numbers_that_hardly_repeat_count_by_quarters() -> None:
    source = random.Random(1)
    drawn = [{"lr": source.random(), "other": source.random()} for _ in range(40)]
    found = importance(drawn, [(each["lr"] - 0.5) ** 2 for each in drawn])
    assert found["lr"] > 0.5
    assert found["other"] < 0.2


def test_numbers_of_few_trials_count_by_halves() -> None:
    """Four trials, each with a number of its own: two are low and two are high."""
    few = [{"lr": lr, "other": other} for lr, other in ((0.1, 3), (0.2, 1), (0.7, 4), (0.9, 2))]
    found = importance(few, [1.0, 2.0, 3.0, 4.0])
    assert found["lr"] == pytest.approx((4 - 0.5) / 5)  # of 5, 4 lie between halves, 1 within
    assert found["other"] == 0.0


def test_too_few_trials_say_nothing() -> None:
    """And it is said of which parameters."""
    assert importance([], []) == {}
    assert importance([{"lr": 1}, {"lr": 2}], [1.0, None]) == {"lr": None}
    assert importance([{"lr": 1}, {"lr": 2}], [1.0, 2.0]) == {"lr": None}
    assert importance([{"lr": x / 9} for x in range(3)], [1.0, 2.0, 3.0]) == {"lr": None}
    assert importance([{"a": "x", "lr": 1}] * 4, [1.0, 2.0, 3.0, 4.0]) == {"a": None, "lr": None}
