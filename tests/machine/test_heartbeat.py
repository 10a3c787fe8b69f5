"""Signs of life through a real file; the clocks are given."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.running import PER_STEP, Project, record
from xrun import environment
from xrun.machine.heartbeat import (
    LONG_SECONDS,
    STEPS,
    Heartbeat,
    Limits,
    Watch,
    evaluated,
)

SECONDS = float(environment.HANG_SECONDS.default)


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ranks:
    """Two ranks, and who watches them, on one clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.paths = [folder / f"heartbeat-{rank}" for rank in range(2)]
        self.watch = Watch(self.paths, Limits(), self.clock)
        self.hearts = [Heartbeat(path, self.clock) for path in self.paths]

    def beat(self) -> None:
        """Both have done a step."""
        for heart in self.hearts:
            heart.beat()

    def pass_time(self, seconds: float) -> str:
        """Look twice a second for so long."""
        said = ""
        for _ in range(int(seconds * 2)):
            self.clock.now += 0.5
            said = said or self.watch.hang()
        return said


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path)


def test_a_rank_that_moves_does_not_hang(ranks: Ranks) -> None:
    """One of several is enough: the others wait for it."""
    ranks.beat()
    for _ in range(10):
        assert ranks.pass_time(SECONDS - 1) == ""
        ranks.hearts[1].beat()


def test_no_step_for_ten_minutes_is_a_hang(ranks: Ranks) -> None:
    """And the sentence says for how long and while what."""
    ranks.beat()
    assert ranks.pass_time(SECONDS - 1) == ""
    assert ranks.pass_time(3) == "The ranks hang: no sign of life for 600 s while training."


def test_slow_steps_are_no_hang(ranks: Ranks) -> None:
    """Where a step takes minutes, a hang is twenty of the slowest."""
    for _ in range(3):
        ranks.beat()
        ranks.pass_time(SECONDS / 10)
    assert ranks.pass_time(SECONDS / 10 * (STEPS - 1) - 2) == ""
    assert "no sign of life" in ranks.pass_time(4)


@pytest.mark.parametrize("doing", ["starting", "saving"])
def test_what_has_no_steps_has_an_hour(ranks: Ranks, doing: str) -> None:
    """The start and a save; their length says nothing of how long steps take."""
    if doing == "saving":
        ranks.beat()
        ranks.pass_time(2)
        for heart in ranks.hearts:
            heart.saving()
    assert ranks.pass_time(LONG_SECONDS - 2) == ""
    assert f"while {doing}" in ranks.pass_time(4)
    ranks.beat()
    assert ranks.pass_time(SECONDS - 1) == ""
    assert "while training" in ranks.pass_time(3)


def test_a_suspended_machine_has_not_hung(ranks: Ranks) -> None:
    """A night between two looks counts as a second."""
    ranks.beat()
    ranks.pass_time(5)
    ranks.clock.now += 8 * 3600
    assert ranks.watch.hang() == ""


def test_the_environment_sets_the_limit() -> None:
    """What has no steps gets longer with it, never shorter."""
    assert Limits.of({}) == Limits(SECONDS, LONG_SECONDS)
    assert Limits.of({environment.HANG_SECONDS.name: "2"}) == Limits(2.0, LONG_SECONDS)
    assert Limits.of({environment.HANG_SECONDS.name: "1800"}) == Limits(1800.0, 6 * 1800.0)


def test_a_heartbeat_without_a_file_does_nothing(tmp_path: Path) -> None:
    """Nobody watches, or the file cannot be made: training goes on, and who watches sees nobody
    move."""
    for heart in (Heartbeat(), Heartbeat(tmp_path / "no" / "such" / "folder")):
        heart.beat()
        heart.saving()
    assert not list(tmp_path.iterdir())


def test_a_beat_costs_nothing(tmp_path: Path) -> None:
    """Microseconds, also the first one: no system call."""
    heart = Heartbeat(tmp_path / "heartbeat-0")
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            heart.beat()
        best = min(best, (time.perf_counter() - began) / 100)
    assert best < 20e-6


@pytest.mark.once
def test_a_hang_that_passes_costs_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that stop moving are ended and started again in the same attempt; each rank's log says
    where it was."""
    monkeypatch.setenv(environment.HANG_SECONDS.name, "2")
    project = Project(tmp_path)
    project.trap("hold", call=7 * PER_STEP // 2 + 1, rank=1)
    done = project.attempt(processes=2)
    assert done.code == 0, done.err
    assert "The ranks hang: no sign of life for" in done.err
    assert len(record(project.run)["attempts"]) == 1
    assert "in spring" in project.run.log_text(None, 1), (
        "the stack of the rank that holds the others up"
    )
    assert "in _train" in project.run.log_text(None, 0), "and of one that waits for it"


@pytest.mark.once
def test_a_hang_that_stays_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two more tries here the attempt ends with 75, a failure of the run's own."""
    monkeypatch.setenv(environment.HANG_SECONDS.name, "2")
    project = Project(tmp_path)
    project.trap("hold", call=3 * PER_STEP // 2 + 1, rank=1, stays=True)
    done = project.attempt("checkpoint.every=100 steps", processes=2)
    assert done.code == 75, done.err
    assert done.err.count("The ranks hang: no sign of life for") == 3
    last = record(project.run)["attempts"][-1]
    assert (last["kind"], last["code"]) == ("own", 75)
    assert "The ranks hang" in last["reason"]


def test_an_evaluation_says_how_far_it_is(ranks: Ranks) -> None:
    """Its batches can be read beside the training, until the next step or save; a page that is not
    there tells of none."""
    assert evaluated(ranks.paths[0].with_name("nobody's")) == (0, 0)
    ranks.hearts[0].beat(3, 20)
    assert evaluated(ranks.paths[0]) == (3, 20)
    ranks.hearts[0].beat()
    assert evaluated(ranks.paths[0]) == (0, 0)
    ranks.hearts[0].beat(20, 20)
    ranks.hearts[0].saving()
    assert evaluated(ranks.paths[0]) == (0, 0)
