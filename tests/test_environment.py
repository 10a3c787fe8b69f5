"""The variables of xrun's own: each with a name, a meaning and what holds without it."""

from __future__ import annotations

import sys

import pytest

from support.paths import ROOT
from xrun import environment
from xrun.environment import ALL, PREFIX, Variable


def test_all_of_them_are_known_and_say_what_they_mean() -> None:
    names = [variable.name for variable in ALL]
    assert len(names) == len(set(names)) > 10
    assert all(name.startswith(PREFIX) for name in names)
    assert all(variable.meaning.endswith(".") for variable in ALL)


def test_what_is_set_counts_and_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Variable("XRUN_OWN", "A test's.", "7")
    assert own.of({}) == own.of({"XRUN_OWN": ""}) == own.of() == "7"
    assert own.of({"XRUN_OWN": "8"}) == "8"
    monkeypatch.setenv("XRUN_OWN", "9")
    assert own.of() == "9"


def test_every_python_is_started_in_one_way() -> None:
    """No module looks for an interpreter itself: `PYTHON` keeps the working directory off the
    path."""
    assert environment.PYTHON == (sys.executable, "-P")
    package = ROOT / "runner" / "xrun"
    own = [path.name for path in package.rglob("*.py") if "sys.executable" in path.read_text()]
    # wandb/sending.py replaces its own process, whose first argument is a path.
    assert sorted(own) == ["environment.py", "sending.py"]


def test_a_person_may_set_the_first_part() -> None:
    """docs/reference/environment.md lists these, and none that processes tell each other."""
    assert environment.HOME.name in environment.FOR_PEOPLE
    assert environment.CONFIRMED.name in environment.FOR_PEOPLE
    assert environment.ALERTS.name not in environment.FOR_PEOPLE
    assert environment.STOP.name not in environment.FOR_PEOPLE
