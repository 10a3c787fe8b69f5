"""A trial goes from rung to rung: a pause changes no bit, a failure is a result, nothing is done
twice.

Covers `xrun.sweep.result` and `xrun.sweep.spent`, and how `xrun.launcher.sky.cloud` follows a job
of an earlier rung.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from loopback.wandb import Wandb
from support.receivers import Webhook
from support.running import Project, attempt, curve, record, steps_of, weights
from xrun.errors import Stopped, StoppedOnPurpose
from xrun.launcher.sky.cloud import SkyCloud
from xrun.launcher.sky.jobs import Job
from xrun.machine.stop import StopFlag
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.sweep.board import Board
from xrun.sweep.spent import Spent, spent
from xrun.sweep.standing import Result
from xrun.sweep.trial import Course
from xrun.sweep.trials import Trials
from xrun.tracker.wandb.processes import send_all

SWEEP = """\
sweep:
  parameters: {train.optimizer.lr: [0.001, 0.01, 0.1, 0.3]}
  stop: {method: halving, rungs: 2, reduction: 2}
"""
EVALUATED = "train.evaluate.every=5 steps"


@dataclass
class Sweep:
    """A sweep of the small project, whose attempts are warm."""

    project: Project
    overrides: tuple[str, ...] = (EVALUATED,)
    said: list[str] = field(default_factory=list)
    launched: list[int] = field(default_factory=list)
    stop: StopFlag | None = None

    @property
    def trials(self) -> Trials:
        text = self.project.recipe.read_text() + SWEEP
        path = self.project.write("recipes/swept.yaml", text)
        return Trials.of(path, self.overrides)

    def launch(self, plan: Plan) -> int:
        self.launched.append(plan.pause)
        try:
            return attempt(plan, self.stop).code
        except Stopped as stopped:  # as `xrun.supervisor.entrypoint` says it
            return stopped.exit_code

    def board(self) -> Board:
        return Board(self.trials, self.trials.own_plan)

    def go(self, number: int) -> int:
        trials = self.trials
        plan = trials.trial(number).plan
        return Course(trials, number, plan, self.board(), self.launch, self.said.append).go()

    def run(self, number: int) -> RunFolder:
        return RunFolder(self.trials.trial(number).plan.folder)

    def post(self, rung: int, **values: float) -> None:
        """Results of other trials."""
        for name, value in values.items():
            self.board().post(int(name[1:]), rung, Result(5 * rung, value))


def test_a_survivor_is_the_run_without_a_sweep(tmp_path: Path) -> None:
    """It waits at each rung, goes on once that is full, and ends with the bits of the run that
    never paused, under the same id."""
    sweep = Sweep(Project(tmp_path / "swept"))
    assert sweep.go(3) == 0
    assert (steps_of(sweep.run(3))[-1], max(curve(sweep.run(3)))) == (5, 5)
    assert record(sweep.run(3))["attempts"][-1]["reason"].startswith("paused after step 5 of 20")
    assert sweep.board().standing().state_of(3) == "parked"
    assert sweep.go(3) == 0  # it still waits
    assert sweep.launched == [4]
    sweep.post(1, t1=0.9, t2=1.1, t4=5.0)
    assert sweep.board().standing().at(2) == (1, 3)
    assert sweep.go(3) == 0
    assert steps_of(sweep.run(3))[-1] == 10
    sweep.post(2, t1=0.9)
    assert sweep.go(3) == 0
    assert sweep.launched == [4, 2, 0]
    assert sweep.board().standing().best == 3
    alone = Project(tmp_path / "alone")
    assert alone.attempt(EVALUATED, "train.optimizer.lr=0.1").code == 0
    assert alone.run.run == sweep.run(3).run
    assert curve(alone.run) == curve(sweep.run(3))
    assert weights(alone.run) == weights(sweep.run(3))


def test_a_pause_is_no_failure_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases shows a trial at a rung as one that will go on, with every row until there,
    and as the same run when it has; whoever is told of failures hears nothing."""
    with Wandb(tmp_path / "wandb") as wandb, Webhook() as hook:
        for name, value in {**wandb.environ("alice"), "HOOK": hook.address}.items():
            monkeypatch.setenv(name, value)
        told = ("tracking.wandb={project: swept, entity: alice}", "alerts.to=[HOOK]")
        sweep = Sweep(Project(tmp_path / "project"), (EVALUATED, "sweep.stop.rungs=1", *told))
        assert sweep.go(3) == 0
        own = ("alice", "swept", sweep.run(3).run)
        assert wandb.state(*own) == "preempted"
        assert [row["train/step"] for row in wandb.history(*own)] == list(range(1, 11))
        assert "val/loss" in wandb.history(*own)[-1]
        assert send_all(sweep.run(3).path) == 0  # a person's `xrun sync` changes nothing of it
        assert wandb.state(*own) == "preempted"
        sweep.post(1, t1=0.9, t2=1.1, t4=5.0)
        assert sweep.go(3) == 0
        assert wandb.state(*own) == "finished"
        assert [row["train/step"] for row in wandb.history(*own)] == list(range(1, 21))
        assert not [title for title in hook.titles if "fail" in title], hook.titles


def test_what_is_trained_is_not_trained_again(tmp_path: Path) -> None:
    """A run that has gone further than its rung, by hand, gives its result of that step; so does a
    trial whose command was killed before it could put it on the board."""
    project = Project(tmp_path)
    assert project.attempt(EVALUATED, "train.optimizer.lr=0.1").code == 0
    sweep = Sweep(project)
    sweep.post(1, t1=0.9, t2=1.1, t4=5.0)
    assert sweep.go(3) == 0
    assert sweep.launched == []
    standing = sweep.board().standing()
    points = {p["step"]: p["val/loss"] for p in project.run.points() if "val/loss" in p}
    assert standing.results[1][3] == Result(5, points[5])
    assert standing.results[2][3] == Result(10, points[10])


@dataclass
class JobsHere(SkyCloud):
    """A cloud whose jobs are attempts on this machine. The first that is asked for is there
    already: a launcher that was killed has launched it as `earlier`, its machine was taken after
    the pause, and it ends as `status`."""

    earlier: Plan
    status: str
    launched: list[Plan] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(say=lambda text: None)

    def launch(self, plan: Plan) -> tuple[int, bool]:
        found = not self.launched
        self.launched.append(self.earlier if found else plan)
        return len(self.launched), found

    def follow(self, run: str, job: int) -> Job:
        attempt(self.launched[job - 1])
        status = self.status if job == 1 else "FAILED"  # so SkyPilot names a pause
        return Job(job, run, status, False, 0, "", "", "", None, None, None, "")


def test_a_job_of_an_earlier_rung_is_followed_by_another_one(tmp_path: Path) -> None:
    """The trial's result is on the board while its job still ends, so whoever goes on finds that
    job. One that somebody has cancelled is not followed by any."""
    sweep = Sweep(Project(tmp_path))
    assert sweep.go(3) == 0
    sweep.post(1, t1=0.9, t2=1.1, t4=5.0)
    at_rung = replace(sweep.trials.trial(3).plan, pause=4)
    for status, launched, code in (("CANCELLED", [4], 7), ("FAILED", [4, 2], 0)):
        cloud = JobsHere(at_rung, status)
        trials = sweep.trials
        plan = trials.trial(3).plan
        assert Course(trials, 3, plan, sweep.board(), cloud.run, sweep.said.append).go() == code
        assert [each.pause for each in cloud.launched] == launched
    assert sweep.board().standing().results[2][3].step == 10


def test_a_failed_trial_is_a_result(tmp_path: Path) -> None:
    """The rung gets full without it; until then whoever mends it may try again."""
    project = Project(tmp_path)
    sweep = Sweep(project)
    project.trap("nan", call=9)
    assert sweep.go(2) == 6
    standing = sweep.board().standing()
    assert standing.state_of(2) == "failed"
    assert "The loss of step 3 is nan" in standing.results[1][2].failed
    assert sweep.said[-1].startswith("Trial 2 has failed: The loss of step 3 is nan")
    assert sweep.go(2) == 0
    assert sweep.board().standing().state_of(2) == "parked"


def test_asha_waits_for_nobody(tmp_path: Path) -> None:
    """The first trial is the best so far at each rung, and goes to its end by one command."""
    sweep = Sweep(Project(tmp_path), (EVALUATED, "sweep.stop.method=asha"))
    assert sweep.go(1) == 0
    assert sweep.launched == [4, 2, 0]
    standing = sweep.board().standing()
    assert standing.state_of(1) == "finished"
    assert standing.decisions == {1: {1: True}, 2: {1: True}}


def test_what_somebody_stops_is_no_result(tmp_path: Path) -> None:
    """The code is the run's, the board says nothing, and the same command goes on."""
    sweep = Sweep(Project(tmp_path))
    sweep.stop = StopFlag()
    sweep.stop.set(signal.Signals.SIGTERM.name)
    assert sweep.go(1) == 75
    assert sweep.board().standing().results == {}
    sweep.stop = None
    assert sweep.go(1) == 0
    assert sweep.board().standing().state_of(1) == "parked"


def test_one_budget_for_all(tmp_path: Path) -> None:
    """A trial has what is left of it and of its own, and none begins once it is spent; that of the
    recipe is each trial's own, and ends that trial alone."""
    sweep = Sweep(Project(tmp_path), (EVALUATED, "budget.hours=1e-9"))
    assert sweep.go(1) == 7
    assert sweep.board().standing().state_of(1) == "failed"
    assert "budget.hours" in sweep.board().standing().results[1][1].failed
    sweep.overrides = (EVALUATED, "sweep.budget.hours=1")
    assert sweep.go(2) == 0
    cost = spent(sweep.trials.trial(2).plan)
    assert cost.hours > 0
    given = sweep.run(2).plan().limits.hours
    assert given is not None
    assert 0.9 < given <= 1
    sweep.overrides = (EVALUATED, f"sweep.budget.hours={cost.hours / 2}")
    with pytest.raises(StoppedOnPurpose, match=r"sweep.budget.hours: .* hours are used"):
        sweep.go(3)
    assert sweep.launched == [4, 4]


def test_costs_add_up() -> None:
    """Hours always, dollars as far as anybody knows them."""
    assert Spent(1, None) + Spent(2, 3.0) == Spent(3, 3.0)
    assert Spent(1, None) + Spent(1, None) == Spent(2, None)
