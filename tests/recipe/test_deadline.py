"""`hardware.deadline` and `hardware.max_wait`: how they are written, where they may stand, and that
they are no part of a run's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from xrun.errors import RecipeError
from xrun.recipe.deadline import Deadline
from xrun.recipe.load import load_recipe
from xrun.recipe.notes import notes
from xrun.recipe.schema import Hardware
from xrun.run.plan import make_plan

pytestmark = pytest.mark.once

RECIPE = ROOT / "recipes" / "digits.yaml"
BOTH = "hardware={any_of: [{clouds: [aws]}], deadline: 36h}"
STORE = "checkpoint.store=hub"


@pytest.mark.parametrize(
    ("text", "after"),
    [("90m", 5400), ("36h", 129_600), ("1.5 h", 5400), ("2d", 172_800)],
)
def test_a_span_counts_from_the_first_launch(text: str, after: float) -> None:
    deadline = Deadline.parse(text)
    assert (deadline.after(1000.0), str(deadline)) == (1000.0 + after, text)


def test_a_time_is_the_same_whenever_the_run_began() -> None:
    utc = Deadline.parse("2026-12-01T17:00Z")
    for text in ("2026-12-01T18:00+01:00", "2026-12-01 18:00:00+01:00"):
        assert Deadline.parse(text).after(5.0) == utc.after(0.0) == 1_796_144_400


@pytest.mark.parametrize("text", ["36", "0h", "36s", "2026-12-01T18:00", "tomorrow", "-1h"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RecipeError, match=r"hardware\.deadline: must be a time") as e:
        load_recipe(RECIPE, [STORE, BOTH, f"hardware.deadline='{text}'"])
    assert f"(got {text})" in str(e.value)


def problems(*overrides: str) -> list[tuple[str, str]]:
    with pytest.raises(RecipeError) as refused:
        load_recipe(RECIPE, [STORE, *overrides])
    return [(each.key, each.what) for each in refused.value.problems]


def test_only_machines_on_demand_can_keep_a_deadline() -> None:
    """One candidate is enough; this machine is none."""
    spot = "{clouds: [aws], spot: true}"
    assert problems(f"hardware={{any_of: [{spot}], deadline: 36h}}") == [
        ("hardware.deadline", "spot machines alone cannot keep it: there may be none")
    ]
    assert problems("hardware={local: {}, deadline: 36h}") == [
        ("hardware.deadline", "xrun cannot replace this machine by a faster one to keep it")
    ]
    two = f"hardware={{any_of: [{spot}, {{clouds: [gcp], spot: false}}], deadline: 36h}}"
    assert load_recipe(RECIPE, [STORE, two]).hardware.deadline is not None


def test_a_wait_is_a_time_and_two_hours_unless_said() -> None:
    recipe = load_recipe(RECIPE, [STORE, BOTH])
    assert recipe.hardware.max_wait.seconds == 7200
    assert load_recipe(RECIPE, [STORE, BOTH, "hardware.max_wait=10m"]).hardware.max_wait.seconds
    assert problems(BOTH, "hardware.max_wait=3 steps")[0][0] == "hardware.max_wait"


@pytest.mark.parametrize(
    ("spots", "choice"),
    [(["auto"], True), ([True], False), ([False], False), ([True, False], True)],
)
def test_there_is_a_choice_where_both_kinds_may_be_taken(spots: list[Any], choice: bool) -> None:
    assert Hardware(any_of=[{"spot": spot} for spot in spots]).may_wait == choice


def test_overrides_leave_the_rest_of_the_hardware() -> None:
    """A key of one candidate, and other candidates, leave the deadline; this machine has none."""
    for override in ("hardware.any_of.0.spot=false", "hardware.any_of=[{spot: false}]"):
        hardware = load_recipe(RECIPE, [STORE, BOTH, override]).hardware
        assert (str(hardware.deadline), hardware.any_of[0].spot) == ("36h", False)
    assert load_recipe(RECIPE, [STORE, BOTH, "hardware.local.processes=2"]).hardware.any_of == ()
    assert load_recipe(RECIPE, [STORE, BOTH, "hardware=local"]).hardware.deadline is None


def test_a_recipe_on_top_of_another_may_add_a_deadline(tmp_path: Path) -> None:
    """And one that names machines replaces all of the hardware, the deadline too."""
    (tmp_path / "base.yaml").write_text(RECIPE.read_text().replace("hardware: local", ""))
    for text, deadline, clouds in (
        ("deadline: 2h", "2h", ("aws",)),
        ("any_of: [{clouds: [gcp]}]", "None", ("gcp",)),
    ):
        (tmp_path / "middle.yaml").write_text(
            "extends: base.yaml\ncheckpoint: {store: hub}\n"
            "hardware: {any_of: [{clouds: [aws]}], deadline: 36h}\n"
        )
        path = tmp_path / "over.yaml"
        path.write_text(f"extends: middle.yaml\nhardware: {{{text}}}\n")
        hardware = load_recipe(path).hardware
        assert (str(hardware.deadline), hardware.any_of[0].clouds) == (deadline, clouds)


def test_when_a_run_has_to_finish_does_not_say_which_run_it_is() -> None:
    ids = {
        make_plan(load_recipe(RECIPE, [STORE, *more]), RECIPE).run
        for more in ([], [BOTH], [BOTH, "hardware.deadline=1h", "hardware.max_wait=1h"])
    }
    assert len(ids) == 1


def test_check_says_what_a_deadline_means() -> None:
    """And else what a wait for spot machines does, where there is a choice."""
    said = " ".join(notes(load_recipe(RECIPE, [STORE, BOTH]), RECIPE))
    assert "hardware.deadline: 36h from the first launch; the run takes spot machines while" in said
    assert "`xrun setup sky`" in said
    auto = "hardware={any_of: [{accelerators: T4}], max_wait: 30m}"
    (said,) = notes(load_recipe(RECIPE, [STORE, auto]), RECIPE)
    assert said.startswith("hardware.max_wait: without spot machines for 30m it goes on demand. ")
    assert "`xrun setup sky`" in said
    (said,) = notes(load_recipe(RECIPE, [STORE, auto, "budget.usd=3"]), RECIPE)
    assert "it goes on demand, if budget.usd covers the rest of the run. " in said
    only = "hardware={any_of: [{accelerators: T4, spot: true}]}"
    assert list(notes(load_recipe(RECIPE, [STORE, only]), RECIPE)) == []
