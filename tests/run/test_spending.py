"""What a run has cost over all of its attempts, and when its budget ends it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support.running import STEPS, Project, curve, record, steps_of
from xrun import environment
from xrun.run.plan import Limits
from xrun.run.record import AttemptRecord
from xrun.run.spending import allowance, dollars, hours, unknown

NOW = 1_800_000_000.0
HOUR = 3600.0


def attempts(*lives: dict[str, float]) -> list[AttemptRecord]:
    """Attempts that lived so long."""
    return [AttemptRecord(str(number), **life) for number, life in enumerate(lives)]


def test_a_budget_in_dollars_is_warned_about_where_nobody_knows_the_price() -> None:
    """With hours as well they still count."""
    free, paid = AttemptRecord("a"), AttemptRecord("b", usd_per_hour=1.0)
    assert "Set budget.hours" in unknown(Limits(usd=5.0), free)
    assert "budget.hours still counts" in unknown(Limits(usd=5.0, hours=1.0), free)
    assert unknown(Limits(), free) == unknown(Limits(usd=5.0), paid) == ""


def test_every_attempt_counts_with_its_own_price() -> None:
    """Hours and dollars are sums over the attempts; the one that runs counts until now."""
    lives = attempts(
        {"started": NOW - 9 * HOUR, "ended": NOW - 7 * HOUR, "usd_per_hour": 2.0},
        {
            "started": NOW - 4 * HOUR,
            "billed_from": NOW - 5 * HOUR,
            "ended": NOW - 4 * HOUR,
            "usd_per_hour": 3.0,
        },
        {"started": NOW - 1 * HOUR, "usd_per_hour": 0.5},
    )
    assert hours(lives, NOW) == pytest.approx(4.0)
    assert dollars(lives, NOW) == pytest.approx(4.0 + 3.0 + 0.5)


def test_an_end_that_nobody_recorded_is_the_next_beginning() -> None:
    """A budget is never overdrawn because a machine vanished without a word."""
    lives = attempts(
        {"started": NOW - 5 * HOUR, "usd_per_hour": 1.0},
        {"started": NOW - 2 * HOUR, "usd_per_hour": 1.0},
    )
    assert hours(lives, NOW) == pytest.approx(5.0)


def test_an_unknown_price_counts_as_the_dearest() -> None:
    """Also as the rate at which the rest of the budget goes."""
    lives = attempts(
        {"started": NOW - 2 * HOUR, "ended": NOW - HOUR, "usd_per_hour": 4.0},
        {"started": NOW - HOUR},
    )
    assert dollars(lives, NOW) == pytest.approx(8.0)
    assert allowance(Limits(usd=12.0), lives, NOW).until == pytest.approx(NOW + HOUR)


def test_the_budget_ends_before_it_is_exceeded() -> None:
    """What comes first counts, dollars or hours, less what the end itself takes."""
    lives = attempts({"started": NOW - 3 * HOUR, "usd_per_hour": 2.0})
    left = allowance(Limits(usd=10.0, hours=24.0), lives, NOW)
    assert left.until == pytest.approx(NOW + 2 * HOUR)
    assert left.spent(NOW + 2 * HOUR - 61, ending=60.0) == ""
    assert (
        left.spent(NOW + 2 * HOUR - 36, ending=60.0) == "budget.usd: 9.98 of 10 dollars are spent."
    )
    assert (
        allowance(Limits(usd=10.0, hours=4.0), lives, NOW).spent(NOW + HOUR)
        == "budget.hours: 4 of 4 hours are used."
    )
    assert allowance(Limits(usd=None, hours=None), lives, NOW).spent(NOW * 2) == ""


def test_a_budget_in_dollars_ends_a_run_with_its_state_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is exceeded: exit 7 with the way on; the next attempt is refused before it starts;
    more money goes on."""
    price = {"cloud": "slurm", "usd_per_hour": 36.0, "date": "2026-11-01"}
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", json.dumps({"cluster": "c", "cloud": "Slurm"}))
    monkeypatch.setenv(environment.PRICES.name, json.dumps([price]))
    project = Project(tmp_path)
    done = project.attempt("budget.usd=0.29")  # less than the attempt's end may take
    assert done.code == 7, done.err
    assert "dollars are spent. Raise the budget" in done.err
    at = max(steps_of(project.run))
    assert 0 < at == max(curve(project.run)) < STEPS
    entry = record(project.run)["attempts"][-1]
    assert (entry["cloud"], entry["usd_per_hour"], entry["price_date"]) == (
        "slurm",
        36.0,
        "2026-11-01",
    )
    assert (entry["code"], entry["kind"]) == (7, "stopped")
    again = project.attempt("budget.usd=0.0001")
    assert again.code == 7
    assert len(record(project.run)["attempts"]) == 1, "nothing was started"
    assert project.attempt("budget.usd=100.0").code == 0
    card = (project.run.model / "README.md").read_text()
    assert re.search(r"Attempts: 2, 0 of them ended from outside\. They cost \$\d\.\d\d\.", card)


def test_a_budget_in_dollars_without_prices_is_warned_about(tmp_path: Path) -> None:
    """The run goes on, and says that its dollars are not counted."""
    done = Project(tmp_path).attempt("budget.usd=1.0", "train.steps=2")
    assert done.code == 0, done.err
    assert "nobody has said what this machine costs" in done.err
