"""`alerts` of a recipe: names of variables and nothing else, and no part of what a run is."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipes import SMALL, write
from xrun.errors import RecipeError
from xrun.launcher.secrets import secret_names
from xrun.recipe.load import load_recipe
from xrun.recipe.notes import unheard
from xrun.run.plan import make_plan

ADDRESS = "mailtos://me:pa55word@smtp.example.org"
CLOUD = "hardware={any_of: [{accelerators: T4}]}"


def said(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        f"alerts: {{to: [{ADDRESS}]}}",
        f"alerts: {{to: {ADDRESS}}}",
        f"alerts: {ADDRESS}",
        f"alerts: {{to: [A, '{ADDRESS}']}}",
        f"alerts: {{to: {{url: '{ADDRESS}'}}}}",
        f"alerts: {{url: '{ADDRESS}'}}",
        "alerts: {to: [pa55word]}",
    ],
)
def test_an_address_in_a_recipe_is_refused_and_not_shown(tmp_path: Path, given: str) -> None:
    """Wherever it stands, in the file or on the command line."""
    told = said(write(tmp_path, f"{SMALL}{given}\n"))
    assert "alerts" in told
    assert "pa55word" not in told
    assert "example.org" not in told
    override = given.replace(": ", "=", 1)
    told = said(write(tmp_path, SMALL), override)
    assert "alerts" in told
    assert "smtp" not in told


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("alerts={to: []}", "alerts.to: must be a list that is not empty"),
        ("alerts={on: [failed]}", "alerts.to: it is missing"),
        ("alerts={to: [A, A]}", "alerts.to.1: it is listed twice"),
        ("alerts={to: [A], on: [failed, failed]}", "alerts.on.1: it is listed twice"),
        ("alerts={to: [A], on: [finish]}", "Did you mean `finished`?"),
        ("alerts={to: [A], on: []}", "alerts.on: must be a list that is not empty"),
    ],
)
def test_what_is_wrong_is_said_at_its_key(tmp_path: Path, given: str, what: str) -> None:
    assert what in said(write(tmp_path, SMALL), given)


def test_an_address_is_not_written_into_env(tmp_path: Path) -> None:
    told = said(write(tmp_path, SMALL), "alerts={to: [HOOK]}", "env={HOOK: x}")
    assert "env.HOOK: it is also one of `alerts.to`" in told


def test_names_are_secrets_and_all_events_are_told(tmp_path: Path) -> None:
    """A run is the same with alerts and without."""
    path = write(tmp_path, SMALL)
    plain, told = load_recipe(path), load_recipe(path, ["alerts={to: [HOOK]}"])
    assert secret_names(told) == ["HOOK"]
    plans = [make_plan(each, path, environ={}) for each in (plain, told)]
    assert plans[0].run == plans[1].run
    assert plans[0].digest == plans[1].digest
    assert plans[0].alerts.to == ()
    assert plans[1].alerts.to == ("HOOK",)
    assert len(plans[1].alerts.on) == 7


def test_a_launch_says_what_nobody_is_told_of(tmp_path: Path) -> None:
    """Here somebody is always there to tell."""
    path, alerts = write(tmp_path, SMALL), "alerts={to: [HOOK]}"
    assert list(unheard(load_recipe(path, [alerts]))) == []
    [note] = unheard(load_recipe(path, [alerts, CLOUD, "checkpoint.store=hub"]))
    assert "while the run has no machine" in note
