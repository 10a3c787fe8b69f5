"""What a run has cost over all of its attempts, and when its budget ends it."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.running import PER_STEP, STEPS, Project, curve, ended, record, steps_of, until
from xrun import environment
from xrun.run.plan import Limits
from xrun.run.record import AttemptRecord
from xrun.run.spending import (
    QUIET_SECONDS,
    TIDY_SECONDS,
    Watch,
    allowance,
    dollars,
    hours,
    lives,
    unknown,
)

NOW = 1_800_000_000.0
HOUR = 3600.0


def attempts(*machines: dict[str, float]) -> list[AttemptRecord]:
    """Attempts that lived so long."""
    return [AttemptRecord(str(number), **life) for number, life in enumerate(machines)]


def test_a_budget_in_dollars_is_warned_about_where_nobody_knows_the_price() -> None:
    """With hours as well they still count; a machine of one's own costs nothing."""
    rented, paid = AttemptRecord("a", cloud="aws"), AttemptRecord("b", usd_per_hour=1.0)
    assert "is not known" in unknown(Limits(usd=5.0), rented)
    assert "Set budget.hours" in unknown(Limits(usd=5.0), rented)
    assert "budget.hours still counts" in unknown(Limits(usd=5.0, hours=1.0), rented)
    for free in (AttemptRecord("c"), AttemptRecord("d", cloud="slurm", usd_per_hour=0.0)):
        assert "a machine of one's own costs nothing" in unknown(Limits(usd=5.0), free)
    assert unknown(Limits(), rented) == unknown(Limits(usd=5.0), paid) == ""


def test_every_attempt_counts_with_its_own_price() -> None:
    """Hours and dollars are sums over the attempts; the one that runs counts until now."""
    machines = attempts(
        {"started": NOW - 9 * HOUR, "ended": NOW - 7 * HOUR, "usd_per_hour": 2.0},
        {
            "started": NOW - 4 * HOUR,
            "billed_from": NOW - 5 * HOUR,
            "ended": NOW - 4 * HOUR,
            "usd_per_hour": 3.0,
        },
        {"started": NOW - 1 * HOUR, "usd_per_hour": 0.5},
    )
    assert hours(machines, NOW) == pytest.approx(4.0)
    assert dollars(machines, NOW) == pytest.approx(4.0 + 3.0 + 0.5)


def test_a_machine_that_died_costs_until_its_last_sign_and_not_while_nothing_ran() -> None:
    """Eight hours of waiting for capacity at 20 dollars an hour cost nothing; the machine is paid
    for the longest time that it may have lived unseen."""
    machines = attempts(
        {"started": NOW - 9 * HOUR, "last_seen": NOW - 8.5 * HOUR, "usd_per_hour": 20.0},
        {"started": NOW - HOUR, "usd_per_hour": 20.0},
    )
    quiet = QUIET_SECONDS / HOUR
    assert hours(machines, NOW) == pytest.approx(0.5 + quiet + 1.0)
    assert dollars(machines, NOW) == pytest.approx(20.0 * (1.5 + quiet))
    assert allowance(Limits(usd=100.0), machines, NOW).until == pytest.approx(
        NOW + (100.0 / 20.0 - 1.5 - quiet) * HOUR
    )


def test_the_silence_of_a_machine_is_as_long_as_between_its_commits() -> None:
    """Who commits every two hours may have lived for two hours after the last one, but never into
    the time of the attempt that came next."""
    life = {"started": NOW - 9 * HOUR, "last_seen": NOW - 8 * HOUR, "silence": 2 * HOUR}
    later, sooner = {"started": NOW - HOUR}, {"started": NOW - 7.5 * HOUR, "ended": NOW - 7 * HOUR}
    assert hours(attempts(life, later), NOW) == pytest.approx(3.0 + 1.0)
    assert hours(attempts(life, sooner), NOW) == pytest.approx(1.5 + 0.5)


def test_an_attempt_that_committed_nothing_costs_from_its_lease() -> None:
    """The lease is its first sign; its machine had been there before that."""
    life = {"billed_from": NOW - 9.1 * HOUR, "started": NOW - 9 * HOUR, "last_seen": NOW - 9 * HOUR}
    machines = attempts(life, {"started": NOW})
    assert hours(machines, NOW) == pytest.approx(0.1 + QUIET_SECONDS / HOUR)


def test_a_machine_that_was_seen_after_the_next_had_begun_costs_until_then() -> None:
    """A machine that was believed dead, and was not: both cost, each from its start to its end."""
    machines = attempts(
        {"started": NOW - 5 * HOUR, "last_seen": NOW - HOUR},
        {"started": NOW - 2 * HOUR},
    )
    assert hours(machines, NOW) == pytest.approx(4.0 + 2.0)


def test_the_last_attempt_counts_until_now_only_while_it_runs() -> None:
    """While SkyPilot looks for another machine there is none."""
    machines = attempts(
        {"started": NOW - 9 * HOUR, "last_seen": NOW - 8 * HOUR, "usd_per_hour": 1.0}
    )
    assert hours(machines, NOW) == pytest.approx(9.0)
    assert dollars(machines, NOW, running=False) == pytest.approx(1.0 + QUIET_SECONDS / HOUR)


def test_an_old_record_that_does_not_say_when_counts_until_the_next_began() -> None:
    """Where it had committed, nobody knows how long it lived; where it had not, its start is the
    last that is known."""
    life = {"started": NOW - 5 * HOUR, "from_step": 0, "committed": 7}
    assert hours(attempts(life, {"started": NOW - 2 * HOUR}), NOW) == pytest.approx(5.0)
    life["committed"] = 0
    assert hours(attempts(life, {"started": NOW}), NOW) == pytest.approx(QUIET_SECONDS / HOUR)


def test_an_attempt_that_ended_by_a_clock_that_was_ahead_is_counted() -> None:
    """Its own clock has measured it; setting it back a day makes nothing free."""
    then = NOW + 24 * HOUR
    machines = attempts({"started": then, "ended": then + 2 * HOUR}, {"started": NOW - HOUR})
    assert hours(machines, NOW) == pytest.approx(3.0)


def test_clocks_that_are_ahead_cost_nothing_that_has_not_been() -> None:
    """What a record says of the future is not counted."""
    machines = attempts({"started": NOW - HOUR, "last_seen": NOW + 72 * HOUR}, {"started": NOW})
    assert hours(machines, NOW) == pytest.approx(1.0)


@pytest.mark.parametrize("every", ["1 steps", "2h"])
def test_a_killed_attempt_leaves_its_last_sign_in_the_record(tmp_path: Path, every: str) -> None:
    """Every commit notes one; the next attempt adds the last point in the log, and after eight
    hours without a machine the record still says what the first one ran."""
    project, tell = Project(tmp_path), f"checkpoint.every={every}"
    project.trap("hold", call=12 * PER_STEP, committed=0)
    process = project.start("recipes/tiny.yaml", "-s", tell)
    until((tmp_path / "held").exists, "the step that holds")
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    (before,) = project.run.record().attempts
    logged = project.run.last_point()["time"]
    assert before.last_seen is not None
    assert before.started <= before.last_seen <= logged + 1.0
    assert before.silence == (7200.0 if every == "2h" else pytest.approx(0.0, abs=5.0))
    assert project.attempt(tell).code == 0
    first, second = project.run.record().attempts
    assert first.ended is None
    assert first.last_seen == max(before.last_seen, logged)
    later = replace(second, started=second.started + 8 * HOUR, ended=(second.ended or 0) + 8 * HOUR)
    ran, _ = lives([first, later], later.ended or 0.0)
    assert (ran.end, ran.seen) == ("bound", first.last_seen)
    assert ran.seconds == pytest.approx(first.last_seen - first.started + QUIET_SECONDS, abs=0.01)


def test_an_unknown_price_counts_as_the_dearest() -> None:
    """Also as the rate at which the rest of the budget goes."""
    machines = attempts(
        {"started": NOW - 2 * HOUR, "ended": NOW - HOUR, "usd_per_hour": 4.0},
        {"started": NOW - HOUR},
    )
    rented = [machines[0], replace(machines[1], cloud="aws")]
    assert dollars(rented, NOW) == pytest.approx(8.0)
    assert allowance(Limits(usd=12.0), rented, NOW).until == pytest.approx(NOW + HOUR)
    assert dollars(machines, NOW) == pytest.approx(4.0), "nobody has rented the second one"
    assert allowance(Limits(usd=12.0), machines, NOW).until == float("inf")
    assert dollars(machines[1:], NOW) == 0.0
    assert dollars(rented[1:], NOW) is None


def test_the_budget_ends_before_it_is_exceeded() -> None:
    """What comes first counts, dollars or hours, less what the end itself takes."""
    machines = attempts({"started": NOW - 3 * HOUR, "usd_per_hour": 2.0})
    left = allowance(Limits(usd=10.0, hours=24.0), machines, NOW)
    assert left.until == pytest.approx(NOW + 2 * HOUR)
    assert left.spent(NOW + 2 * HOUR - 61, ending=60.0) == ""
    assert (
        left.spent(NOW + 2 * HOUR - 36, ending=60.0) == "budget.usd: 9.98 of 10 dollars are spent."
    )
    assert (
        allowance(Limits(usd=10.0, hours=4.0), machines, NOW).spent(NOW + HOUR)
        == "budget.hours: 4 of 4 hours are used."
    )
    assert allowance(Limits(usd=None, hours=None), machines, NOW).spent(NOW * 2) == ""


@given(
    price=st.floats(0.1, 100.0),
    step=st.floats(0.01, 600.0),
    save=st.floats(0.0, 600.0),
    setup=st.floats(0.0, 3600.0),
    steps=st.floats(0.1, 200.0),
)
def test_a_budget_is_met_within_one_save(
    price: float, step: float, save: float, setup: float, steps: float
) -> None:
    """By a clock that each step moves on: with its last save the run has cost no more than the
    limit, and less by one step and what an end may take at most. A setup that costs more is the
    only thing that is not seen before."""
    now, limit = NOW + setup, price / HOUR * (setup + steps * step)
    attempt = AttemptRecord("a", started=NOW, usd_per_hour=price)
    left = allowance(Limits(usd=limit), [attempt], now)
    watch = Watch(left, lambda: now, lambda: save)
    first = now + step
    while not watch():
        now += step
    assert watch() == watch(), "who asks again at once is told the same"
    spent = dollars([replace(attempt, ended=now + save + TIDY_SECONDS)], now) or 0.0
    most = price / HOUR * (2 * step + save + TIDY_SECONDS)
    assert spent > limit - most
    if now > first:
        assert spent <= limit + 1e-6


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
    told = r"0 of them ended from outside\.\n\n\* Cost: \$\d\.\d+ for 0\.\d+ h of machine time"
    assert re.search(rf"Attempts: 2, {told}", card)


def test_a_budget_in_dollars_without_prices_is_warned_about(tmp_path: Path) -> None:
    """The run goes on, and says that its dollars are not counted."""
    done = Project(tmp_path).attempt("budget.usd=1.0", "train.steps=2")
    assert done.code == 0, done.err
    assert "a machine of one's own costs nothing, so this limit never ends the run" in done.err
