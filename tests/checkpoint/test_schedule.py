"""When to save: the specification, with a clock in hand."""

from __future__ import annotations

import pytest

from xrun.checkpoint.schedule import LastSave, SaveSchedule
from xrun.recipe.interval import Every
from xrun.run.saving import MINIMUM_SECONDS

HOUR = 3600.0


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def schedule(every: str, clock: Clock | None = None, uptime: float = 2 * HOUR) -> SaveSchedule:
    return SaveSchedule(Every.parse(every), 7, lambda: uptime, clock or Clock())


def seconds_between_saves(stall: float, write: float, uptime: float) -> float:
    own = schedule("auto", uptime=uptime)
    own.measured(stall, write)
    return own.seconds()


def test_auto_is_young_s_interval_between_its_bounds() -> None:
    """Every sqrt(2 C M) seconds, never closer than writing takes, never closer than the minimum."""
    assert {
        "C = 1 s, M = 2 h": seconds_between_saves(stall=1, write=5, uptime=2 * HOUR),
        "C = 4 s, M = 2 h": seconds_between_saves(stall=4, write=5, uptime=2 * HOUR),
        "C = 1 s, M = 8 h": seconds_between_saves(stall=1, write=5, uptime=8 * HOUR),
        "writing takes 10 min": seconds_between_saves(stall=1, write=600, uptime=2 * HOUR),
        "C is nothing": seconds_between_saves(stall=0, write=0, uptime=2 * HOUR),
    } == {
        "C = 1 s, M = 2 h": 120.0,
        "C = 4 s, M = 2 h": 240.0,
        "C = 1 s, M = 8 h": 240.0,
        "writing takes 10 min": 600.0,
        "C is nothing": MINIMUM_SECONDS,
    }


@pytest.mark.parametrize(
    ("every", "saves"),
    [
        ("3 steps", [0, 3, 6, 9, 12]),
        ("1 epochs", [0, 7, 14]),
        ("2 epochs", [0, 14]),
        ("1 step", list(range(15))),
    ],
)
def test_steps_and_epochs_are_counted_not_timed(every: str, saves: list[int]) -> None:
    """Policies by steps and epochs are functions of the step, so that every attempt saves at the
    same ones."""
    own = schedule(every)
    assert [step for step in range(15) if own.due(step)] == [step for step in saves if step < 15]


def test_a_time_counts_from_the_last_save_s_start() -> None:
    """`90s` is due 90 s after a save began, the schedule's own start counting as one."""
    clock = Clock()
    own = schedule("90s", clock)
    seen = []
    for clock.now in (1000.0, 1089.9, 1090.0, 1100.0):
        seen.append(own.due(1))
    own.started()
    for clock.now in (1189.9, 1190.0):
        seen.append(own.due(1))
    assert seen == [False, False, True, True, False, True]


def test_auto_follows_what_is_measured_and_seen() -> None:
    """The interval moves half-way to each newly measured cost, and with the uptime as it is when it
    is asked."""
    uptime = [2 * HOUR]
    own = SaveSchedule(Every.parse("auto"), 7, lambda: uptime[0], Clock())
    own.measured(1.0, 1.0)
    own.measured(7.0, 3.0)
    assert (own.stall, own.write) == (4.0, 2.0)
    assert own.seconds() == 240.0
    uptime[0] = HOUR / 2
    assert own.seconds() == 120.0


def test_what_a_save_sends_counts_as_what_it_costs() -> None:
    """2 GB at a second of the machine for 10 MB are 200 seconds beside a stall of one."""
    own = SaveSchedule(Every.parse("auto"), 7, lambda: 2 * HOUR, Clock(), worth=lambda: 1e-7)
    own.measured(1.0, 1.0, 2e9)
    assert own.seconds() == pytest.approx((2 * 201 * 2 * HOUR) ** 0.5)
    own.measured(1.0, 1.0, 1e9)
    assert own.sent == 1.5e9
    steps = SaveSchedule(Every.parse("10m"), 7, lambda: HOUR, Clock(), worth=lambda: 1.0)
    steps.measured(1.0, 1.0, 2e9)
    assert steps.seconds() == 600


def test_the_last_save_begins_as_late_as_it_can() -> None:
    """As long before the deadline as last saves take, with a quarter more for long ones; at once
    while nothing is known."""
    assert LastSave().lead == float("inf")
    assert LastSave(beside=30).lead == 35
    assert LastSave(alone=10, beside=30).lead == 10
    assert LastSave(alone=40, beside=120).lead == 47.5
    assert LastSave(alone=10, ahead=0.5).lead == 15
    assert LastSave(alone=10, delay=60).lead == 60


def test_a_last_save_is_tried_where_it_may_fit() -> None:
    """One that was never alone may be three times as fast as beside training; what nobody knows is
    tried."""
    assert LastSave().least == 0
    assert LastSave(beside=30).least == 10
    assert LastSave(alone=10, beside=15).least == 10
    assert LastSave(alone=10, delay=60).least == 60


def test_a_save_on_its_way_comes_before_the_last_one() -> None:
    """As much of it as is still to be written, by the time that saves have taken."""
    clock = Clock()
    own = schedule("auto", clock)
    own.measured(0.1, 30)
    own.started()
    assert own.last_save(busy=True).ahead == 1
    clock.now += 20
    assert own.last_save(busy=True).ahead == pytest.approx(1 / 3)
    clock.now += 20
    assert own.last_save(busy=True).ahead == own.last_save().ahead == 0


def test_near_a_deadline_no_save_begins_that_the_last_one_would_wait_for() -> None:
    """With 100 s left there is room for another one; with less than it and the last one need there
    is not."""
    clock = Clock()
    own = schedule("60s", clock)
    own.alone = 10.0
    own.measured(0.1, 30)
    clock.now += 60
    assert [own.due(1, left) for left in (float("inf"), 100, 41, 40, 5)] == [
        True,
        True,
        True,
        False,
        False,
    ]
