"""What xrun's plugin remembers of a run, and what it learns from the run's head.

Covers `xrun_sky.pilot`, `xrun_sky.assignment` and `xrun_sky.remains`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from loopback.hub import Hub
from support.buckets import moto
from support.hub_store import HUB_WARNINGS
from support.kept_runs import keep
from support.running import Project
from xrun.run.plan import Plan
from xrun_sky.assignment import Assignment, Place
from xrun_sky.pilot import Pilot
from xrun_sky.policy import Candidate, Launch, Wait
from xrun_sky.remains import Head, read_head
from xrun_sky.stay import LEFT

pytestmark = [pytest.mark.once, *HUB_WARNINGS]

HOUR = 3600.0
START = 1_800_000_000.0
NORTH = Place("slurm/local/north", spot=True, usd_per_hour=1.0, instance="small")
SOUTH = replace(NORTH, infra="slurm/local/south", usd_per_hour=1.2, nodes=2, speed=2.0)
SURE = replace(NORTH, infra="slurm/local/sure", usd_per_hour=5.0, spot=False)
RUN = Assignment(
    run="digits-1",
    launched=START,
    places=(NORTH, SOUTH, SURE),
    state="/nowhere",
    steps=1000,
    left=1000,
    rate=0.1,
    deadline=START + 10 * HOUR,
)
"""Ten thousand seconds of work, and ten hours."""


def pilot(folder: Path, told: Assignment = RUN, job: int = 1) -> Pilot:
    return Pilot(told, job, folder)


def asked(one: Pilot, now: float, head: Head | None = None) -> Candidate:
    """What is asked for now."""
    step = one.next(now, head, one.candidates([None] * 3))
    assert isinstance(step, Launch)
    return step.candidate


def on(one: Pilot, place: Place, now: float) -> float:
    """Ask until this place is asked for, which has machines; no other has. When that is."""
    while True:
        step = one.next(now, None, one.candidates([None] * 3))
        if isinstance(step, Wait):
            now += step.seconds
        elif step.candidate.place == place.infra:
            one.granted(now, step.candidate)
            return now
        else:
            one.refused(now, step.candidate)


def test_a_place_that_was_lost_is_not_the_first_to_be_asked(tmp_path: Path) -> None:
    """Though it is the cheapest for the work that it does; of the others, two nodes of twice the
    speed."""
    one = pilot(tmp_path, replace(RUN, places=(replace(NORTH, usd_per_hour=0.1), SOUTH, SURE)))
    assert asked(one, START).place == NORTH.infra
    on(one, NORTH, START)
    assert "is gone after 120 min" not in one.gone(START + HOUR, None)
    there = asked(one, START + HOUR)
    assert (there.place, one.place_of(there).nodes) == (SOUTH.infra, 2)


def test_a_pilot_that_was_killed_goes_on_with_what_it_knew(tmp_path: Path) -> None:
    """At every moment: the next one with the job's file decides as this one would have."""
    one = pilot(tmp_path)
    on(one, NORTH, START)
    one.gone(START + HOUR, None)
    asked(one, START + HOUR)
    assert pilot(tmp_path).to_json() == one.to_json()
    assert asked(pilot(tmp_path), START + HOUR + 1).place == SOUTH.infra


def test_another_job_of_the_run_knows_what_the_first_has_seen(tmp_path: Path) -> None:
    """Of places; not its money, its machines or its time."""
    one = pilot(tmp_path)
    on(one, NORTH, START)
    one.gone(START + HOUR, None)
    other = pilot(tmp_path, job=2)
    assert other.policy.weather.places == one.policy.weather.places
    assert (other.spent, other.done, other.policy.on) == (0.0, 0.0, None)
    stranger = pilot(tmp_path, replace(RUN, run="digits"), job=3)
    assert stranger.policy.weather.places == {}


def test_a_long_wait_is_news_once(tmp_path: Path) -> None:
    """Longer than the recipe's `max_wait`; the next controller does not tell it again, and the next
    wait is another one. A file of an older plugin says nothing of it."""
    told = replace(RUN, max_wait=2 * HOUR)
    one = pilot(tmp_path, told)
    asked(one, START)
    assert one.news(START + HOUR) == ""
    assert one.news(START + 3 * HOUR).startswith("No machine has been available for 3.0 h")
    assert one.news(START + 4 * HOUR) == ""
    assert pilot(tmp_path, told).news(START + 4 * HOUR) == ""
    there = on(one, NORTH, START + 4 * HOUR)
    assert one.news(there + 9 * HOUR) == "", "it has machines"
    one.gone(there + 9 * HOUR, None)
    asked(one, there + 9 * HOUR)
    assert one.news(there + 12 * HOUR) != ""
    kept = json.loads(one.path.read_text())
    del kept["told"], kept["alone_since"]
    one.path.write_text(json.dumps(kept))
    older = pilot(tmp_path, told)
    assert (older.told, older.alone_since, older.spent) == (False, None, one.spent)


def barren(one: Pilot, now: float, place: Place = NORTH) -> tuple[float, str]:
    """Machines come there and no attempt begins on them in ten minutes; when they are gone, and
    what the job hears. A controller that is killed meanwhile asks a second time."""
    now = on(one, place, now) + 600
    why = one.ends(now, [76, 137])
    again = Pilot(one.assignment, 1, one.path.parent)
    assert again.ends(now + 60, [76, 137]) == why
    assert again.barren == one.barren
    assert one.gone(now, None, [76, 137]).startswith("No attempt has begun on 1 x small")
    return now, why


def test_a_job_on_whose_machines_nothing_begins_ends(tmp_path: Path) -> None:
    """After five in a row, between which it waits as long as what fails for a while may take;
    nothing is paid for meanwhile. It is no time in which there were no machines, and no work."""
    one, now = pilot(tmp_path, replace(RUN, deadline=None, max_wait=HOUR)), START
    for rest in (300, 900, 2700, 8100):
        now, why = barren(one, now)
        assert why == ""
        step = one.next(now, None, one.candidates([None] * 3))
        assert step == Wait(rest)
        assert f"waiting {rest // 60} min before others" in one.why(now, None, step) or rest > 7200
        assert one.news(now + rest) == ""
        now += rest
        assert asked(pilot(tmp_path, one.assignment), now).spot, "it has waited by its own wish"
    _, why = barren(one, now)
    assert why.startswith("5 times in a row machines have come on which no attempt could begin, so")
    assert "`xrun logs digits-1` says what has failed" in why
    assert (one.done, one.policy.weather.losses_per_second()) == (0.0, 1 / (4 * HOUR))


def test_what_has_begun_ends_the_row(tmp_path: Path) -> None:
    """Also where it was lost without a word; and the place that failed comes after the others."""
    one = pilot(tmp_path, replace(RUN, deadline=None))
    for codes in ([75], []):
        for _ in range(3):
            now, why = barren(one, START)
            assert why == ""
        now = on(one, NORTH, now)
        assert one.ends(now + HOUR, codes) == ""
        one.gone(now + HOUR, None, codes)
        assert (one.barren, one.rests_until) == ([], 0.0)
    now, _ = barren(one, now + HOUR)
    assert asked(one, now + 300).place == SOUTH.infra


def test_a_rest_never_costs_the_deadline(tmp_path: Path) -> None:
    """It ends while two starts and the work on demand just fit."""
    one = pilot(tmp_path, replace(RUN, deadline=START + 3 * HOUR + 1200))
    now, _ = barren(one, START)
    step = one.next(now, None, one.candidates([None] * 3))
    assert step == Wait(1200 + 3 * HOUR - 600 - 10_000 - 60 - 2 * 600)
    assert asked(one, now + step.seconds).place == SOUTH.infra


def test_the_next_attempt_is_told_what_came_to_nothing(tmp_path: Path) -> None:
    """For its receipt: also of machines that were lost before an attempt began, where the head says
    so. One that begins has heard it."""
    one = pilot(tmp_path, replace(RUN, deadline=None))
    now, _ = barren(one, START)
    now, _ = barren(one, now)
    now = on(one, NORTH, now) + 1800
    one.gone(now, Head(0, began=START - 1))
    there = (round(one.barren_hours, 6), round(one.barren_usd, 6))
    assert there == (round(5 / 6, 6), round(5 / 6, 6))
    assert pilot(tmp_path, one.assignment).barren_usd == one.barren_usd
    now = on(one, NORTH, now)
    one.gone(now + HOUR, Head(10, began=now + 300))
    assert (one.barren_hours, one.barren_usd) == (0.0, 0.0)


def test_machines_that_come_to_nothing_are_paid_for(tmp_path: Path) -> None:
    """Ten minutes at a dollar an hour, twice: the budget has no third time."""
    one, now = pilot(tmp_path, replace(RUN, deadline=None, budget_usd=0.3)), START
    now, why = barren(one, now)
    assert why == ""
    _, why = barren(one, now + 300)
    assert "2 times in a row" in why
    assert ", and budget.usd is used up, so the job ends here" in why


def test_a_damaged_file_is_no_file(tmp_path: Path) -> None:
    one = pilot(tmp_path)
    on(one, NORTH, START)
    one.path.write_text('{"policy": [')
    assert pilot(tmp_path).policy.on is None


def test_what_is_left_comes_from_the_head_else_from_the_time(tmp_path: Path) -> None:
    """The head's own speed counts, for machines of speed 1; without a head the machines' time less
    a start; without either half of the time that there is."""
    one = pilot(tmp_path)
    assert one.left(START, None) == 10_000
    assert one.left(START, Head(400, 0.0)) == 6000
    on(one, SOUTH, START)
    one.gone(START + 2000, Head(400, began=START + 300, rate=0.4))
    assert one.rate == 0.2
    assert one.left(START, Head(400, 0.0)) == 3000
    assert one.left(START, None) == 1000 / 0.2 - (2000 - 600) * 2
    unknown = replace(RUN, rate=None, left=None)
    assert pilot(tmp_path, unknown, job=2).left(START, None) == 5 * HOUR
    endless = replace(unknown, deadline=None)
    assert pilot(tmp_path, endless, job=3).left(START, None) == float("inf")
    epochs = replace(RUN, steps=None, epochs=10)
    counted = Head(400, 0.0, steps_per_epoch=50)
    assert pilot(tmp_path, epochs, job=4).left(START, counted) == 1000


def test_a_head_of_an_attempt_before_says_nothing_of_these_machines(tmp_path: Path) -> None:
    one = pilot(tmp_path)
    on(one, SOUTH, START)
    one.gone(START + 2000, Head(400, began=START - 1, rate=9.0))
    assert one.rate == 0.1


def test_machines_on_demand_are_left_when_they_were_told_to_be(tmp_path: Path) -> None:
    """An exit with 75 after that moment is no loss; one before it is."""
    one = pilot(tmp_path, replace(RUN, deadline=None, max_wait=HOUR))
    now = on(one, SURE, START)
    assert now >= START + HOUR
    assert one.leave_at == now + 600 + HOUR
    same = pilot(tmp_path, one.assignment)
    assert "was given back" in same.gone(one.leave_at + 20, None, [75])
    assert "is gone" in one.gone(one.leave_at - 20, None, [75])


def test_an_attempt_may_leave_before_anybody_has_told_it_to(tmp_path: Path) -> None:
    """It knows its speed, and the record has the reason: its machines were given back, and the run
    that was believed to fill its time goes to the spot machines that do its work for least. The
    same code without the reason is a machine that failed; so is the reason of an attempt before."""
    one = pilot(tmp_path, replace(RUN, deadline=START + 11_000))
    there = asked(one, START)
    assert (there.spot, one.leave_at) == (False, None)
    one.granted(START + 300, there)
    fast = Head(200, began=START + 400, rate=1.0, reason=LEFT)
    for head, job in ((replace(fast, reason=""), 2), (replace(fast, began=START - 1), 3)):
        other = pilot(tmp_path, one.assignment, job)
        other.granted(START + 300, asked(other, START))
        assert "is gone" in other.gone(START + 600, head, [75])
    assert "was given back after 5 min" in one.gone(START + 600, fast, [75])
    assert asked(one, START + 600, fast).place == SOUTH.infra


def test_a_deadline_that_is_near_leaves_no_choice(tmp_path: Path) -> None:
    """And machines on demand are kept then."""
    one = pilot(tmp_path, replace(RUN, deadline=START + 11_000))
    there = asked(one, START)
    assert (there.spot, one.leave_at) == (False, None)


def test_without_a_deadline_it_waits_and_then_the_budget_decides(tmp_path: Path) -> None:
    """$5 an hour for ten thousand seconds and a start is $14.72."""
    told = replace(RUN, deadline=None, max_wait=HOUR, places=(NORTH, SURE))
    for job, (budget, went) in enumerate([(14.0, False), (15.0, True), (None, True)]):
        one = pilot(tmp_path / str(job), replace(told, budget_usd=budget))
        for now in (START, START + HOUR):
            one.refused(now, asked(one, now))
            step = one.next(now, None, one.candidates([None] * 2))
            late = now > START
            assert isinstance(step, Launch) == (went and late)


def test_money_that_is_spent_is_gone_from_the_budget(tmp_path: Path) -> None:
    """From the moment at which the machines were asked for."""
    one = pilot(tmp_path, replace(RUN, budget_usd=20.0))
    there = asked(one, START)
    while there.place != NORTH.infra:
        one.refused(START, there)
        there = asked(one, START)
    one.granted(START + 600, there)
    one.gone(START + 2 * HOUR, None)
    assert one.terms().budget_usd == 18.0


def test_prices_of_now_count(tmp_path: Path) -> None:
    """And those of the launch where nobody knows them any more."""
    one = pilot(tmp_path)
    found = one.candidates([3.0, None, 0.0])
    assert [each.usd_per_hour for each in found] == [3.0, 1.2, 5.0]


def test_an_assignment_travels_as_json() -> None:
    told = json.loads(json.dumps(RUN.to_json()))
    assert Assignment.from_json(told) == RUN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "is of version 2, and this plugin knows 1: install"),
        ({"places": []}, "names no places"),
        ({"places": [{"infra": "aws"}]}, "is no assignment of xrun's"),
        ({"run": None}, "is no assignment of xrun's"),
    ],
)
def test_an_assignment_of_another_kind_is_refused(change: dict[str, object], says: str) -> None:
    told = {**RUN.to_json(), **change}
    told = {name: value for name, value in told.items() if value is not None}
    with pytest.raises(ValueError, match=says):
        Assignment.from_json(told)


@pytest.fixture(params=["folder", "hub", "s3"])
def kept(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Plan, dict[str, str]]]:
    """A run with 20 committed steps and what leads to its store, wherever that is."""
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    with ExitStack() as stack:
        environ, store = dict[str, str](), str(tmp_path / "runs")
        if request.param == "hub":
            environ = stack.enter_context(Hub(tmp_path / "hub")).environ()
            store = "hub://alice/kept"
        elif request.param == "s3":
            server = stack.enter_context(moto())
            environ, store = server.environ, server.make("state") + "/of"
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        plan = Project(tmp_path).plan(f"checkpoint.store={store}")
        keep(plan, plan.folder, finished=False)
        yield plan, environ


def test_a_head_is_read_where_the_run_has_it(kept: tuple[Plan, dict[str, str]]) -> None:
    """Ten steps in the fifty seconds of its last attempt; without the keys there is no head."""
    plan, environ = kept
    assert read_head(plan.where, environ) == Head(20, 1_800_001_000.0, 0.2)
    if "HF_TOKEN" in environ:
        assert read_head(plan.where, {**environ, "HF_TOKEN": "hf_wrong"}) is None
        assert read_head("hub://alice/nothing", environ) is None


def test_what_cannot_be_read_is_no_head(tmp_path: Path) -> None:
    for state in ("", "gs://bucket/run", str(tmp_path), "hub", "hub://owner/name"):
        assert read_head(state, {"HF_ENDPOINT": "http://127.0.0.1:9"}) is None
    commits = tmp_path / "commits"
    commits.mkdir()
    (commits / "00000001.json").write_text("[]\n")
    assert read_head(str(tmp_path), os.environ) is None
