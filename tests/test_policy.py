"""The policy that says where a run goes next, on clocks and answers of the tests' own.

Covers `xrun_sky.policy`, `xrun_sky.outlook` and `xrun_sky.weather`, which travel without the rest
of xrun, and the replay that measures them, `benchmarks.deadline`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from support.paths import ROOT
from xrun_sky.outlook import Odds, Outlook
from xrun_sky.policy import Candidate, Launch, Policy, Terms, Wait
from xrun_sky.weather import Weather

_SPEC = importlib.util.spec_from_file_location("benchmarks", ROOT / "benchmarks" / "__init__.py")
assert _SPEC is not None  # by its path: with the root on sys.path `datasets` would mean ours
sys.modules.setdefault("benchmarks", importlib.util.module_from_spec(_SPEC))

from benchmarks.deadline import (  # noqa: E402
    DEAR,
    SPOT,
    START,
    WORK,
    Job,
    Ours,
    optimum,
    play,
    slots,
    uniform,
    worlds,
)

pytestmark = pytest.mark.once

HOUR = 3600.0
A, B = Candidate("aws/us-east-1", True, 3.0), Candidate("aws/us-west-2", True, 3.3)
DEMAND = Candidate("aws/us-east-1", False, 10.0)
LATER = Terms(600, deadline=100 * HOUR)


def after_a_loss() -> Policy:
    """A run that was in A for two hours."""
    policy = Policy(Weather())
    policy.granted(0.0, A)
    policy.lost(2 * HOUR)
    return policy


def asked(policy: Policy, now: float, left: float, terms: Terms, *there: Candidate) -> Candidate:
    """What is asked for until something refuses nothing."""
    while isinstance(step := policy.next(now, left, [A, B, DEMAND], terms), Launch):
        if step.candidate in there:
            return step.candidate
        policy.refused(now, step.candidate)
    raise AssertionError(step)


def test_the_zone_that_was_lost_is_not_asked_first() -> None:
    """Also where it is the cheapest; it comes after the others."""
    policy = after_a_loss()
    first = policy.next(2 * HOUR, 10 * HOUR, [A, B, DEMAND], LATER)
    assert first == Launch(B)
    policy.refused(2 * HOUR, B)
    assert policy.next(2 * HOUR, 10 * HOUR, [A, B, DEMAND], LATER) == Launch(A)


def test_prices_count_as_they_are_now() -> None:
    """A third place has become the cheapest since the launch."""
    cheap = Candidate("gcp/us-central1", True, 1.0)
    step = after_a_loss().next(2 * HOUR, 10 * HOUR, [A, B, cheap, DEMAND], LATER)
    assert step == Launch(cheap)


def test_a_place_that_loses_machines_often_comes_later() -> None:
    """Each start costs: three losses in six minutes outweigh two per cent of the price."""
    policy, near = Policy(Weather()), Candidate("aws/us-west-2", True, 3.06)
    for _ in range(3):
        policy.granted(0.0, A)
        policy.lost(120.0)
    policy.granted(200.0, near)
    policy.left(50 * HOUR)
    assert policy.next(50 * HOUR, 10 * HOUR, [A, near, DEMAND], LATER) == Launch(near)


def test_hours_on_demand_say_nothing_of_losses() -> None:
    """Nobody takes those machines away: a week on them is no week that spot machines lasted, and
    the run fears losses as before."""
    policy = after_a_loss()
    before = policy.weather.losses_per_second(), policy.weather.losses_per_second(name=A.name)
    policy.granted(2 * HOUR, DEMAND)
    policy.left(170 * HOUR)
    after = policy.weather.losses_per_second(), policy.weather.losses_per_second(name=A.name)
    assert after == before
    policy.granted(171 * HOUR, A)
    policy.left(175 * HOUR)
    assert policy.weather.losses_per_second() < before[0], "spot machines that lasted do say it"


def test_with_slack_it_waits_and_without_it_goes_on_demand() -> None:
    """Nothing is to be had; the same ten hours are left."""
    assert asked(after_a_loss(), 2 * HOUR, 10 * HOUR, Terms(600, 12.3 * HOUR), DEMAND) == DEMAND
    policy = after_a_loss()
    for place in (B, A):
        policy.refused(2 * HOUR, place)
    assert policy.next(2 * HOUR, 10 * HOUR, [A, B, DEMAND], LATER) == Wait(300.0)


def test_it_never_waits_past_the_last_responsible_moment() -> None:
    """The pause ends where the rest on demand, and its start, just fit."""
    policy, terms = after_a_loss(), Terms(600, deadline=2 * HOUR + HOUR + 600 + 100, grain=0.0)
    assert policy.next(2 * HOUR, HOUR, [A, B, DEMAND], terms) == Launch(DEMAND)


def test_from_on_demand_it_looks_for_spot_only_with_the_slack_for_it() -> None:
    """A look that finds nothing takes a start, one that finds something and loses it two. Where no
    place has refused, because there was no time to ask, it looks at once."""
    policy, never = after_a_loss(), after_a_loss()
    policy.weather.nowhere(2 * HOUR)
    for each in (policy, never):
        each.granted(2 * HOUR, DEMAND)
    assert never.leave_after(2 * HOUR, 10 * HOUR, [A, B, DEMAND], Terms(600, 16 * HOUR)) == 0
    seconds = policy.leave_after(2 * HOUR, 10 * HOUR, [A, B, DEMAND], Terms(600, 16 * HOUR))
    assert seconds is not None
    assert 600 <= seconds <= 4 * HOUR
    tight = Terms(600, 12 * HOUR + 1000)
    assert policy.leave_after(2 * HOUR, 10 * HOUR, [A, B, DEMAND], tight) is None


def test_without_a_deadline_on_demand_waits_for_max_wait_and_for_the_budget() -> None:
    """Ten hours at 10 dollars are 100 dollars and a start."""
    terms = Terms(600, max_wait=HOUR, budget_usd=102.0)
    policy = after_a_loss()
    for now in (2 * HOUR, 2.9 * HOUR):
        with pytest.raises(AssertionError):
            asked(policy, now, 10 * HOUR, terms)
    assert asked(policy, 3 * HOUR + 1, 10 * HOUR, terms, DEMAND) == DEMAND
    poor = Terms(600, max_wait=HOUR, budget_usd=101.0)
    policy = after_a_loss()
    with pytest.raises(AssertionError):
        asked(policy, 30 * HOUR, 10 * HOUR, poor, DEMAND)


def test_shapes_are_compared_by_the_whole_rest_of_the_run() -> None:
    """Twice the nodes at 1.8 times the price do the work for less; what could not be in time is
    left out, however cheap."""
    two = Candidate("aws/us-east-1", True, 5.4, speed=2.0, shape="2 nodes")
    slow = Candidate("aws/us-east-1", False, 4.0, speed=0.5, shape="1 node, small")
    policy = Policy(Weather())
    assert policy.next(0.0, 10 * HOUR, [A, two, DEMAND], LATER) == Launch(two)
    tight = Terms(600, deadline=10.3 * HOUR)
    assert policy.next(0.0, 10 * HOUR, [slow, DEMAND], tight) == Launch(DEMAND)
    assert policy.next(0.0, 10 * HOUR, [slow, DEMAND], LATER) == Launch(slow)


def test_spot_machines_that_are_too_slow_are_left_in_time() -> None:
    """At half the speed ten hours of slack last for twenty hours, less a start."""
    slow = Candidate("aws/us-east-1", True, 1.0, speed=0.5)
    policy, terms = Policy(Weather()), Terms(600, deadline=30 * HOUR, grain=0.0)
    policy.granted(0.0, slow)
    seconds = policy.leave_after(0.0, 20 * HOUR, [slow, DEMAND], terms)
    assert seconds == pytest.approx(2 * (10 * HOUR - 600))


def test_the_state_outlives_the_one_who_hosts_it() -> None:
    """One JSON document, between any two questions: the run goes the same way."""

    class Forgetful(Ours):
        def __call__(self, job: Job, end: int) -> None:
            self.policy = Policy.from_json(json.loads(json.dumps(self.policy.to_json())))
            super().__call__(job, end)

    world = worlds()[0]
    up = world.window(700, int(WORK * 1.5))
    kept, again = play(up, Ours(2, up.shape[1])), play(up, Forgetful(2, up.shape[1]))
    assert (again.now, again.cost) == (kept.now, kept.cost)


def test_no_run_is_late() -> None:
    """Machines that come and go by chance, in every rhythm, with hardly any slack or much."""
    generator = np.random.default_rng(0)
    for _ in range(6):
        end = WORK + START + int(generator.integers(0, 120))
        stays = generator.uniform(0.3, 0.99)
        turns = generator.random((2, end)) > stays
        up = np.cumsum(turns, axis=1) % 2 == 1
        assert play(up, Ours(2, end)).now <= end


def test_waiting_is_worth_less_the_longer_outages_last() -> None:
    """Outages of 5 units are waited for, and save much; of those of 1,000 little is hoped."""
    short = Outlook(Odds(lose=0.05, back=0.2, moves=0.3, price=0.3, change=1.0), 24, 12)
    long = Outlook(Odds(lose=0.05, back=0.001, moves=0.3, price=0.3, change=1.0), 24, 12)
    assert short.waiting(24, 12) < short.going(24, 12) - 1
    assert long.waiting(24, 12) > long.going(24, 12) - 0.2
    assert long.going(24, 12) <= 25.0


def test_the_optimum_is_what_one_reckons_by_hand() -> None:
    """All spot; none; and an hour of spot at the beginning alone, which is worth its start."""
    end = int(WORK * 1.15)
    assert optimum(np.ones((1, end), bool)) == pytest.approx((WORK + START) * SPOT)
    nothing = np.zeros((1, end), bool)
    assert optimum(nothing) == pytest.approx((WORK + START) * DEAR)
    nothing[0, :12] = True
    cost = 12 * SPOT + (WORK - 10 + START) * DEAR
    assert optimum(nothing) == pytest.approx(cost)
    assert play(nothing, uniform).cost >= cost


def test_a_slot_has_machines_that_stay_for_all_of_it(tmp_path: Path) -> None:
    """Ticks of 150 s: both have to have as many as are wanted."""
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 150}, "data": [2, 2, 2, 1, 3, 2]}))
    assert slots(path, 2).tolist() == [True, False, True]


def test_the_policy_travels_alone() -> None:
    """Python 3.9, nothing but the standard library, SkyPilot where it hosts the plugin, and what
    SkyPilot's environment may have: boto3, apprise. It may be another one than xrun's."""
    may = {
        "plugin": {"sky"},
        "strategy": {"sky"},
        "remains": {"boto3", "botocore"},
        "told": {"apprise"},
    }
    for path in sorted((ROOT / "runner" / "xrun_sky").glob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert others <= may.get(path.stem, set())


def test_random_answers_never_make_it_ask_for_ever() -> None:
    """Each answer is told at once, and a round of questions ends with a machine or a pause."""
    generator, policy, now = random.Random(1), Policy(Weather()), 0.0
    for _ in range(300):
        for _ in range(4):
            step = policy.next(now, 5 * HOUR, [A, B, DEMAND], LATER)
            if isinstance(step, Wait):
                break
            if generator.random() < 0.3:
                policy.granted(now, step.candidate)
                policy.lost(now + 60)
                break
            policy.refused(now, step.candidate)
        else:
            raise AssertionError("it asks for ever")
        now += step.seconds if isinstance(step, Wait) else 120
