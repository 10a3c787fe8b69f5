"""A run's lines on a page: what is left out is never a peak."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from xrun.pages.series import clock_of, series_of, thinned

VALUES = st.lists(
    st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=400
)


@given(VALUES, st.integers(2, 40))
def test_thinning_keeps_every_peak(values: list[float], most: int) -> None:
    """Whatever the values: what stays are points of the line in their order, the least and the
    greatest among them, and where a value was no number there is a gap."""
    steps = [3 * n for n in range(len(values))]
    line = thinned(steps, values, most)
    assert line.logged == len(values)
    assert len(line.steps) <= max(3 * (most // 2), most)
    assert list(line.steps) == sorted(set(line.steps))
    known = {
        step: float(f"{v:.7g}") if math.isfinite(v) else None
        for step, v in zip(steps, values, strict=True)
    }
    assert all(known[step] == value for step, value in zip(line.steps, line.values, strict=True))
    if finite := [each for each in known.values() if each is not None]:
        shown = [each for each in line.values if each is not None]
        assert (min(shown), max(shown)) == (min(finite), max(finite))
    assert (None in line.values) == (None in known.values())


def test_a_spike_of_one_step_in_a_million_is_seen() -> None:
    values = [1.0] * 1_000_000
    values[654_321] = 9.0
    line = thinned(range(len(values)), values, 2_000)
    assert line.values[line.steps.index(654_321)] == 9.0
    assert len(line.steps) < 2_001
    assert line.to_json()["of"] == 1_000_000


def test_each_metric_has_its_own_line() -> None:
    """Texts, what is no metric, and the first of two values at one step are not in it."""
    points = [
        {"step": 1, "time": 5.0, "attempt": "a", "train/loss": 2.0, "train/samples": "0f"},
        {"step": 2, "train/loss": math.nan, "val/loss": 1},
        {"step": 2, "val/loss": 3},
    ]
    lines = series_of(points, 1000)
    assert {name: (each.steps, each.values) for name, each in lines.items()} == {
        "train/loss": ((1, 2), (2.0, None)),
        "val/loss": ((2,), (3,)),
    }


def test_the_clock_knows_where_attempts_began_and_ended() -> None:
    """However few times it keeps; and it never goes back, whatever the machines' clocks said."""
    points = [{"step": n, "time": 100.0 + n, "attempt": "a"} for n in range(1, 500)]
    points += [{"step": n, "time": 90.0 + 2 * n, "attempt": "b"} for n in range(500, 1000)]
    points += [{"step": 1000, "time": 3.0, "attempt": "c"}]
    clock = clock_of(points, 10)
    assert {1, 499, 500, 999, 1000} <= set(clock.steps)
    assert len(clock.steps) <= 16
    assert list(clock.times) == sorted(clock.times)
    assert clock.times[clock.steps.index(500)] == 1090.0
