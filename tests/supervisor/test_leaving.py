"""When an attempt leaves its machines: by what was known as they were asked for, and by its own
speed as soon as it knows that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from xrun.run.folder import RunFolder
from xrun.supervisor.leaving import Leaving
from xrun.tracker.jsonl import JsonlTracker
from xrun_sky.policy import Candidate, Policy, Terms
from xrun_sky.stay import Stay
from xrun_sky.weather import Weather

HOUR, START = 3600.0, 1_800_000_000.0
SPOT = Candidate("aws/us-east-1/a", True, 1.0)
SURE = Candidate("aws/us-east-1", False, 4.0)
STEPS = 36_000
STAY = Stay(Policy(Weather()), SURE, [SPOT, SURE], Terms(600, deadline=START + 12 * HOUR))
"""Ten hours of work at a step a second, and twelve until the deadline."""


class World:
    """An attempt that trains by a clock of its own, whatever its plugin has told it."""

    def __init__(self, folder: Path, stay: Stay | None, leave_at: float | None = None) -> None:
        self.time, self.step = START, 0
        run = RunFolder(folder)
        self.tracker = JsonlTracker(folder, lambda: self.time)
        environ = {
            "XRUN_STAY": stay.to_text() if stay else "",
            "XRUN_LEAVE_AT": "" if leave_at is None else str(leave_at),
        }
        self.leaving = Leaving(environ, run, "own", lambda: self.time)

    def begin(self, attempt: str = "own") -> None:
        self.tracker.start({"attempt": attempt, "steps": STEPS}, 0)
        self.train(1, 1.0)

    def train(self, seconds: int, rate: float) -> list[float]:
        """At so many steps a second; the times after START at which it was due to leave."""
        due = []
        for _ in range(seconds):
            self.time += 1
            self.step += rate
            self.tracker.log(int(self.step), {"train/loss": 1.0})
            if self.leaving.is_due():
                due.append(self.time - START)
        return due


def test_a_run_that_is_faster_than_was_believed_leaves_the_dear_machines(tmp_path: Path) -> None:
    """No spot machine was asked for, for want of time, and no time to leave was told. At a step a
    second there is an hour and more to spare, which is known after the time of a start."""
    world = World(tmp_path, STAY)
    world.begin()
    assert world.train(590, 1.0) == []
    assert 600 <= world.train(60, 1.0)[0] <= 620


def test_one_that_is_as_slow_as_was_believed_stays(tmp_path: Path) -> None:
    """Nothing is to spare at eleven hours and three quarters of work."""
    world = World(tmp_path, STAY)
    world.begin()
    assert world.train(3000, 10 / 11.75) == []


def test_the_last_steps_are_not_worth_a_start(tmp_path: Path) -> None:
    world = World(tmp_path, STAY)
    world.begin()
    world.step = STEPS - 1200
    world.train(1, 1.0)
    assert world.train(1150, 1.0) == []


def test_after_an_outage_it_gives_spot_machines_the_time_to_come_back(tmp_path: Path) -> None:
    """Every place had refused when it went on demand: so soon none is hoped for. The moment does
    not move on while it is asked for."""
    weather = Weather()
    weather.refused(START - 60, SPOT.name)
    weather.nowhere(START - 60)
    stay = replace(
        STAY, policy=Policy(weather), terms=replace(STAY.terms, deadline=START + 20 * HOUR)
    )
    at = stay.until(START, STEPS)
    assert 900 < at - START < 4 * HOUR
    world = World(tmp_path, stay)
    world.begin()
    assert at - START - 30 < world.train(4 * 3600, 1.0)[0] < at - START + 30


def test_what_was_told_counts_until_the_attempt_knows_better(tmp_path: Path) -> None:
    """Its own speed, not that of an attempt before it, and more than a start's time of it."""
    world = World(tmp_path, STAY, leave_at=START + 100)
    world.begin("before")
    assert world.train(120, 1.0)[0] == 100
    tight = replace(STAY, terms=replace(STAY.terms, deadline=START + 10.1 * HOUR))
    world = World(tmp_path / "tight", tight, leave_at=START + 700)
    world.begin()
    assert world.train(1200, 1.0) == []


@pytest.mark.parametrize("told", ["", "{}", "[]", "soon", '{"policy": 1}'])
def test_what_no_plugin_has_said_is_not_heard(tmp_path: Path, told: str) -> None:
    """And an older plugin says only a time."""
    environ = {"XRUN_STAY": told, "XRUN_LEAVE_AT": f"{START}"}
    assert Leaving(environ, RunFolder(tmp_path), "own", lambda: START).is_due()
    soon = {"XRUN_STAY": told, "XRUN_LEAVE_AT": "soon"}
    assert not Leaving(soon, RunFolder(tmp_path), "own", lambda: START).is_due()


def test_a_stay_travels_as_text() -> None:
    again = Stay.from_text(STAY.to_text())
    assert (again.policy, again.candidate, list(again.candidates), again.terms) == (
        STAY.policy,
        SURE,
        [SPOT, SURE],
        STAY.terms,
    )
