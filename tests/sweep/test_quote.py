"""What a whole sweep would take follows from one trial's quote and from how many go on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.running import Project
from xrun.launcher.quote import Quote, Range
from xrun.recipe.schema import Sweep
from xrun.sweep.quote import expected, sweep_quote
from xrun.sweep.standing import Result, Rules, Standing
from xrun.sweep.trials import Trials

pytestmark = pytest.mark.once

ONE = Quote(Range(2.0, 3.0, 5.0), Range(4.0, 6.0, 10.0), Range(0, 0, 0))


def trials(tmp_path: Path, stop: str) -> Trials:
    project = Project(tmp_path)
    text = "sweep:\n  parameters: {train.seed: {min: 1, max: 24, points: 24}}\n"
    path = project.write("recipes/swept.yaml", project.recipe.read_text() + text)
    overrides = ["train.steps=90", "train.evaluate.every=5 steps", f"sweep.stop={stop}"]
    return Trials.of(path, overrides)


def test_a_grid_takes_as_many_times_what_one_takes(tmp_path: Path) -> None:
    """Hours and dollars, at their best, as expected, and at their worst."""
    whole = sweep_quote(trials(tmp_path, "null"), ONE)
    assert (whole.trials, whole.lengths) == (24, 24)
    assert whole.hours == pytest.approx(tuple(24 * each for each in ONE.hours))
    assert whole.usd == pytest.approx(tuple(24 * each for each in ONE.usd))


def test_early_stops_cost_less_and_begin_more_often(tmp_path: Path) -> None:
    """24 trials to a ninth of the steps, eight to a third, three to the end: 24/9 + 8 * 2/9 +
    3 * 2/3 lengths, and 35 times what a machine's start takes."""
    stop = "{method: halving, rungs: 2, reduction: 3}"
    whole = sweep_quote(trials(tmp_path, stop), ONE)
    assert whole.lengths == pytest.approx(24 / 9 + 16 / 9 + 6 / 3)
    start = 600 / 3600
    assert whole.hours.likely == pytest.approx(whole.lengths * (3 - start) + 35 * start)
    assert whole.usd.likely == pytest.approx(whole.hours.likely * 2)


def test_asha_is_expected_as_it_decides() -> None:
    """The mean over sweeps whose results come in a random order."""
    told = {"method": "asha", "rungs": 2, "reduction": 3}
    sweep = Sweep.model_validate({"parameters": {"train.seed": [1, 2]}, "stop": told})
    source, plays, rules = random.Random(0), 400, Rules(24, 3, "max", "asha", 3)
    reached = [0, 0, 0]
    for _ in range(plays):
        standing = Standing(rules)
        for trial in range(1, 25):
            standing = standing.with_result(trial, 1, Result(1, source.random()))
        for trial in standing.at(2):
            standing = standing.with_result(trial, 2, Result(2, source.random()))
        for rung in (1, 2, 3):
            reached[rung - 1] += len(standing.at(rung))
    means = [each / plays for each in reached]
    assert list(expected(sweep, 24)) == pytest.approx(means, rel=0.05)
