"""Weights & Biases: the real client, a loopback server, and every step once, whatever happens to
sender, server or machine.

Covers `xrun.tracker.wandb.api`, `xrun.tracker.wandb.library`, `xrun.tracker.wandb.orders`,
`xrun.tracker.wandb.processes`, `xrun.tracker.wandb.rows`, `xrun.tracker.wandb.sender` and
`xrun.tracker.wandb.witness`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopback.wandb import Wandb
from support.running import children, until
from xrun import environment
from xrun.clock import boot_seconds
from xrun.files import write_json
from xrun.run.confirmation import Confirmation
from xrun.run.plan import Plan
from xrun.run.points import read_points
from xrun.tracker.jsonl import JsonlTracker
from xrun.tracker.wandb.processes import DELETED, Answer, Sender, answer_of, send_all, start_witness

RUN, PROJECT = "tiny-00000000", "p"
STEPS = 40


@pytest.fixture(scope="module")
def wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wandb]:
    with Wandb(tmp_path_factory.mktemp("wandb"), teams={"team": {"alice"}}) as server:
        yield server


@pytest.fixture(autouse=True)
def account(wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine is alice's; the sender looks after its rows quickly."""
    for name, value in (wandb.environ("alice") | {environment.WANDB_CHECK.name: "1"}).items():
        monkeypatch.setenv(name, value)
    yield
    wandb.faults.clear()
    if wandb.thread is None:
        wandb.start()


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "task": "classification",
    "model": {"name": "line"},
    "dataset": {"name": "points"},
    "hardware": {"any_of": []},
    "checkpoint": {"store": "hub"},
    "env": {"A": "b"},
    "budget": {"usd": 1.0},
    "train": {"steps": 40, "global_batch": 8, "reduction": "fast", "deterministic": True},
}


class Run:
    """A run's folder as attempts leave it, and the sender of the attempt that lives."""

    def __init__(self, home: Path, wandb: Wandb, run: str = RUN, **tracking: Any) -> None:
        self.folder, self.wandb, self.run = home / run, wandb, run
        told = {
            "project": PROJECT,
            "entity": "alice",
            "tags": ["a", "b"],
            "mode": "online",
            **tracking,
        }
        self.plan = Plan(
            run=run,
            digest="d",
            mathematics={"sources": {"models/line.py": "ab"}},
            recipe={**RECIPE, "tracking": {"wandb": told}},
            recipe_path="tiny.yaml",
            project=str(home),
            home=str(home),
            owner="alice",
            store="hub://alice/tiny",
            sweep="tiny-s12345678",
        )
        self.folder.mkdir()
        (self.folder / "plan.json").write_text(self.plan.to_json())
        self.attempts: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.stops: list[bool] = []
        self.tracker = JsonlTracker(self.folder)
        self.sender: Any = None

    def begin(self, step: int = 0, *, sender: bool = True) -> None:
        """A new attempt that goes on at `step`."""
        self.tracker.finish()
        name = f"attempt{len(self.attempts)}"
        if self.attempts:
            self.attempts[-1].setdefault("kind", "outside")
        price = {"cloud": "aws", "spot": True, "usd_per_hour": 3600.0}
        price |= {"on_demand_usd_per_hour": 7200.0}
        self.attempts.append({"id": name, "started": time.time(), "from_step": step, **price})
        write_json(self.folder / "attempts.json", self.attempts)
        self.confirmation = Confirmation(self.folder / "logs" / name)
        self.confirmation.note(boot_seconds() + 3600)  # as often as a supervisor does
        if sender:
            self.close()
            self.start()
        self.tracker = JsonlTracker(self.folder)
        self.tracker.start(
            {"run": self.run, "attempt": name, "recipe": self.plan.recipe, "steps": STEPS}, step
        )

    def start(self) -> None:
        self.sender = Sender(
            self.folder, self.attempts[-1]["id"], self.said.append, lambda: self.stops.append(True)
        )

    def close(self) -> None:
        """The sender is gone, and so are its pipes."""
        if self.sender is not None:
            self.sender.process.kill()
            self.sender.process.wait()
            self.sender.process.stdin.close()
            self.sender.process.stdout.close()

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            for point in points(step):
                self.tracker.log(step, point)

    def end(self, code: int, seconds: float = 120.0) -> int:
        self.tracker.finish()
        self.sender.finish(code, seconds)
        return int(self.sender.process.returncode)

    def rows(self) -> list[dict[str, Any]]:
        try:
            return self.wandb.history("alice", PROJECT, self.run)
        except KeyError:
            return []

    def arrive(self, step: int) -> None:
        """Wait until W&B has this step."""
        until(
            lambda: any(row["train/step"] >= step for row in self.rows()),
            f"step {step} at W&B",
            40.0,
        )

    def summary(self) -> dict[str, Any]:
        return self.wandb.summary("alice", PROJECT, self.run)

    def standing(self) -> dict[str, Any]:
        return json.loads((self.folder / "wandb.json").read_text())

    def check(self, last: int) -> None:
        """Every step up to `last` is there once, in order, with the values of an undisturbed
        run."""
        rows = self.rows()
        assert [row["train/step"] for row in rows] == list(range(1, last + 1))
        for row in rows:
            expected = {
                name: value for point in points(row["train/step"]) for name, value in point.items()
            }
            assert {name: row[name] for name in expected} == expected


def points(step: int) -> list[dict[str, Any]]:
    """What an undisturbed run logs at a step: always training, sometimes evaluation."""
    training = {"train/loss": 1 / step, "train/samples": f"{step:04x}"}
    return [training, {"val/loss": math.sqrt(step)}] if step % 5 == 0 else [training]


@pytest.fixture
def run(tmp_path: Path, wandb: Wandb, request: pytest.FixtureRequest) -> Iterator[Run]:
    made = Run(tmp_path, wandb, run=f"r{abs(hash(request.node.name)) % 10**12}")
    yield made
    made.tracker.finish()
    made.close()


def test_points_arrive_while_the_run_trains(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows come live, each with the axis, the attempt and the point's time; the configuration is
    the whole recipe.

    Nobody else on this machine sends meanwhile.
    """
    run.begin()
    run.train(1, 9)
    run.arrive(8)
    assert send_all(run.folder) == 0
    assert "on their way" in capfd.readouterr().out
    assert run.wandb.state("alice", PROJECT, run.run) == "running"
    run.train(10, STEPS)
    assert run.end(0) == 0
    run.check(STEPS)
    assert run.wandb.state("alice", PROJECT, run.run) == "finished"
    logged = {
        point["step"]: point["time"]
        for point in map(json.loads, run.tracker.path.read_text().splitlines())
    }
    assert {row["_timestamp"] for row in run.rows()} == set(logged.values())
    assert {(row["xrun/attempt"], row["xrun/preemptions"]) for row in run.rows()} == {(1, 0)}
    config = run.wandb.config("alice", PROJECT, run.run)
    assert config["recipe"] == run.plan.recipe
    assert config["plan"]["sources"] == {"models/line.py": "ab"}
    assert config["plan"]["store"] == run.plan.store
    own = run.wandb.run("alice", PROJECT, run.run)
    assert (own.attributes["tags"], own.attributes["groupName"]) == (["a", "b"], run.plan.sweep)
    defined = own.config["_wandb"]["value"]["m"]  # "1": a name, "2": a pattern, "5": has an axis
    assert {"*", "train/loss"} & {
        metric.get("2") or metric["1"] for metric in defined if "5" in metric
    }
    assert run.standing()["state"] == "sent"
    assert run.standing()["sent"] == [STEPS, "val"]
    assert run.said == [f"Weights & Biases: {run.wandb.url}/alice/{PROJECT}/runs/{run.run}"]
    assert not run.wandb.unknown


@pytest.mark.parametrize("seed", range(2))
def test_every_step_once_after_kills(run: Run, seed: int) -> None:
    """Senders and attempts that are killed at any moment, and attempts that go back: nothing is
    lost and nothing is doubled."""
    rng = random.Random(seed)
    done = 0
    for _ in range(3):
        run.begin(done)
        ends = min(STEPS, done + rng.randint(5, 15))
        run.train(done + 1, ends)
        if rng.random() < 0.5:
            run.arrive(rng.randint(done + 1, ends - 1))
        if rng.random() < 0.7:
            run.sender.process.kill()
        run.end(75)
        done = rng.randint(max(0, ends - 8), ends)
    run.begin(done)
    run.train(done + 1, STEPS)
    assert run.end(0) == 0
    run.check(STEPS)
    assert run.summary()["xrun/preemptions"] == 3
    assert len(run.summary()["xrun/attempts"]) == 4
    told = run.summary()
    assert told["xrun/usd"] == pytest.approx(3600 * told["xrun/hours"], abs=1.0)
    assert told["xrun/on_demand_usd"] > 0
    assert [each["usd_per_hour"] for each in told["xrun/receipt"]] == [3600.0] * 4
    marks = [row["xrun/attempt"] for row in run.rows()]
    assert marks == sorted(marks)
    assert len(set(marks)) > 1


def test_evaluation_of_a_step_that_an_attempt_ended_at(run: Run) -> None:
    """An attempt that comes back may still evaluate its last step: the row waits for that."""
    run.begin()
    run.tracker.log(1, {"train/loss": 1.0})
    assert run.end(75) == 0
    assert run.rows() == []
    run.begin(1)
    run.tracker.log(1, {"val/loss": 2.0})
    assert run.end(0) == 0
    assert [(row["train/step"], row["train/loss"], row["val/loss"]) for row in run.rows()] == [
        (1, 1.0, 2.0)
    ]


def test_sent_by_hand_and_evaluated_later(run: Run) -> None:
    """A row that was sent early is completed by another one. What is not finite is a value like
    another one."""
    run.begin(sender=False)
    run.tracker.log(1, {"train/loss": math.nan})
    assert send_all(run.folder) == 0
    run.begin(1)
    run.tracker.log(1, {"val/loss": math.inf})
    assert run.end(6) == 0
    rows = [(row["train/step"], row.get("train/loss"), row.get("val/loss")) for row in run.rows()]
    assert rows == [(1, "NaN", None), (1, None, "Infinity")]
    assert run.wandb.state("alice", PROJECT, run.run) == "failed"


def test_out_of_reach_at_the_start(run: Run) -> None:
    """The sender waits for W&B and then sends everything."""
    run.wandb.stop()
    run.begin()
    run.train(1, 10)
    until(lambda: run.said, "a sentence")
    assert "does not answer" in run.said[0]
    assert run.standing()["state"] == "waiting"
    run.wandb.start()
    run.arrive(9)
    run.train(11, STEPS)
    assert run.end(0) == 0
    run.check(STEPS)
    assert len(run.said) == 2


def test_down_in_the_middle(run: Run) -> None:
    """What was logged while W&B was down arrives when it is back; people are told of both."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.wandb.stop()
    run.train(11, 20)
    until(lambda: run.standing()["state"] == "waiting", "waiting")
    run.wandb.start()
    run.train(21, 30)
    run.arrive(29)
    assert run.end(0) == 0
    run.check(30)
    assert [("does not answer" in line) for line in run.said] == [False, True, False]


def test_nothing_is_sent_while_nobody_confirms_whose_the_run_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one write, not even that the run begins; then everything. What is not confirmed at the
    end stays here, and with it how the attempt ended."""
    monkeypatch.setenv(environment.CONFIRMED.name, "2")
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.confirmation.note(boot_seconds() - 1000)
    run.train(11, 20)
    until(lambda: run.standing()["state"] == "waiting", "waiting")
    assert "has not confirmed that this attempt still has the run" in run.standing()["why"]
    assert run.rows()[-1]["train/step"] <= 10
    run.confirmation.note(boot_seconds() + 3600)
    run.arrive(19)
    run.train(21, 30)
    run.confirmation.note(boot_seconds() - 1000)
    assert run.end(0, seconds=15.0) == 1
    assert run.rows()[-1]["train/step"] <= 30
    assert run.wandb.state("alice", PROJECT, run.run) == "running"
    assert "xrun sync" in run.said[-1]
    assert send_all(run.folder) == 0
    run.check(30)


def test_an_attempt_begins_nothing_before_the_run_is_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a confirmation W&B never hears of it."""
    monkeypatch.setenv(environment.CONFIRMED.name, "2")
    run.begin(sender=False)
    run.confirmation.note(boot_seconds() - 1000)
    run.start()
    run.train(1, 10)
    until(lambda: (run.folder / "wandb.json").exists(), "a word of how it stands", 40.0)
    assert run.end(0, seconds=15.0) == 1
    assert run.wandb.runs("alice", PROJECT).count(run.run) == 0


def test_a_sender_that_wakes_after_its_successor_has_finished(
    run: Run, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, and wandb-core with it, with rows that were on their way. The run's rows,
    summary and state stay as the successor has left them."""
    monkeypatch.setenv(environment.CONFIRMED.name, "2")
    run.begin()
    run.train(1, 10)
    run.tracker.committed(10, "first")
    run.arrive(9)
    wandb.faults.add(match="file_stream", status=503, times=math.inf)
    run.train(11, 20)
    until(lambda: wandb.faults.armed[0].hits, "rows on their way")
    asleep = [run.sender.process.pid, *children(run.sender.process.pid)]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    wandb.faults.clear()
    run.confirmation.note(boot_seconds() - 1000)

    (tmp_path / "elsewhere").mkdir()
    successor = Run(tmp_path / "elsewhere", wandb, run=run.run)
    successor.begin()
    successor.train(1, STEPS)
    successor.tracker.committed(STEPS, "last")
    assert successor.end(0) == 0
    successor.check(STEPS)
    left = run.rows(), run.summary(), run.wandb.state("alice", PROJECT, run.run)
    assert left[1]["xrun/commit_step"] == STEPS
    assert left[2] == "finished"

    before = sum("file_stream" in request.line for request in wandb.requests)
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    run.train(21, 25)
    assert run.end(1, seconds=15.0) == 1
    assert (run.rows(), run.summary(), run.wandb.state("alice", PROJECT, run.run)) == left
    assert sum("file_stream" in request.line for request in wandb.requests) == before


def test_a_stopped_sender_of_the_same_folder_does_not_hold_up_its_successor(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock for as long as it is there; after the time in which it may send, the next
    one does. Awake again, it sends nothing."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    zombie, run.sender = run.sender, None
    asleep = [zombie.process.pid, *children(zombie.process.pid)]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    run.confirmation.note(boot_seconds() - 1000)
    monkeypatch.setenv(environment.CONFIRMED.name, "1")
    run.begin(5)
    run.train(6, STEPS)
    run.tracker.committed(STEPS, "last")
    assert run.end(0) == 0
    run.check(STEPS)
    left = run.rows(), run.summary(), run.wandb.state("alice", PROJECT, run.run)
    assert (left[1]["xrun/commit_step"], left[2]) == (STEPS, "finished")
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    zombie.finish(1, 15.0)
    assert (run.rows(), run.summary(), run.wandb.state("alice", PROJECT, run.run)) == left


def test_rows_that_the_library_gives_up(run: Run) -> None:
    """The library drops rows without a word after one such answer: the sender notices it and sends
    them again."""
    run.begin()
    run.train(1, 5)
    run.arrive(4)
    fault = run.wandb.faults.add("file_stream", status=404)
    run.train(6, 20)
    run.arrive(19)
    assert fault.hits == 1
    run.train(21, STEPS)
    assert run.end(0) == 0
    run.check(STEPS)


def test_rows_that_the_library_gives_up_at_the_end(run: Run) -> None:
    """The same, when the training is over: there is still time to send them again."""
    run.begin()
    run.train(1, 5)
    run.arrive(4)
    run.wandb.faults.add("file_stream", status=401)
    run.train(6, STEPS)
    assert run.end(0) == 0
    run.check(STEPS)
    assert run.wandb.state("alice", PROJECT, run.run) == "finished"


def test_down_at_the_end_and_sent_by_hand(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """The end does not wait long for W&B; `xrun sync` sends the rest, and twice is like once."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.wandb.stop()
    run.train(11, STEPS)
    began = time.monotonic()
    assert run.end(0) == 1
    assert time.monotonic() - began < 20
    assert "xrun sync" in run.said[-1]
    run.wandb.start()
    for _ in range(2):
        assert send_all(run.folder) == 0
        run.check(STEPS)
        assert run.wandb.state("alice", PROJECT, run.run) == "finished"
    assert "Everything is at" in capfd.readouterr().out


def test_slow_at_the_end(run: Run) -> None:
    """Whoever ends the attempt says how long the sender may take."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.wandb.faults.add("file_stream", stall=60.0, times=None)
    run.train(11, STEPS)
    began = time.monotonic()
    assert run.end(0, seconds=1.0) != 0
    assert time.monotonic() - began < 5
    run.wandb.faults.clear()
    assert send_all(run.folder) == 0
    run.check(STEPS)


def test_a_wrong_key(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said once, training is not disturbed, and the points wait for a right one."""
    right = os.environ["WANDB_API_KEY"]
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run.begin()
    run.train(1, STEPS)
    until(lambda: run.said, "a sentence")
    assert run.end(0) == 1
    assert "the API key is not valid" in run.said[0]
    assert len(run.said) == 2
    assert run.standing()["state"] == "refused"
    assert send_all(run.folder) == 3
    assert "the API key is not valid" in capfd.readouterr().out
    monkeypatch.setenv("WANDB_API_KEY", right)
    assert send_all(run.folder) == 0
    run.check(STEPS)


def test_offline(tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that sent nothing: everything is sent by hand afterwards, once, and so is what comes
    after that.

    The key is the one that `wandb login` has kept.
    """
    run = Run(tmp_path, wandb, run="offline", mode="offline")
    netrc = Path.home() / ".netrc"
    netrc.write_text(
        f"machine 127.0.0.1:{wandb.port}\n  login user\n  password {os.environ['WANDB_API_KEY']}\n"
    )
    netrc.chmod(0o600)
    monkeypatch.delenv("WANDB_API_KEY")
    run.begin(sender=False)
    run.train(1, 12)
    run.begin(8, sender=False)
    run.train(9, 20)
    assert send_all(run.folder) == 0
    run.check(20)
    assert wandb.state("alice", PROJECT, run.run) == "failed"
    run.begin(20, sender=False)
    run.train(21, STEPS)
    run.tracker.finish()
    for _ in range(2):
        assert send_all(run.folder) == 0
        run.check(STEPS)
    assert wandb.state("alice", PROJECT, run.run) == "finished"


def test_a_deleted_run(run: Run) -> None:
    """Its id cannot be used again, and the sender says so and ends: in the middle, and when
    somebody starts it anew."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.wandb.delete("alice", PROJECT, run.run)
    until(lambda: run.sender.is_deleted(), "the end of the sender", 30.0)
    assert "was deleted in Weights & Biases" in run.said[-1]
    assert run.end(0) == DELETED
    run.begin()
    until(lambda: run.sender.is_deleted(), "the end of the sender", 30.0)
    assert run.end(0) == DELETED
    assert run.standing()["state"] == "deleted"


def test_the_last_commit(run: Run) -> None:
    """W&B knows of it soon, without a row after it; an older commit on this machine does not
    replace a newer one."""
    run.begin()
    run.train(1, 10)
    run.tracker.committed(10, "abc")
    until(lambda: run.rows() and run.summary().get("xrun/commit_step") == 10, "the commit", 30.0)
    assert run.summary()["xrun/commit_head"] == "abc"
    assert run.summary()["xrun/commit_store"] == run.plan.store
    assert witness(run) == Answer(10, "abc")
    run.end(75)
    write_json(run.folder / "committed.json", {"step": 5, "head": "old"})
    run.begin(10)
    run.train(11, 12)
    assert run.end(75) == 0
    assert witness(run) == Answer(10, "abc")
    run.begin(12)
    run.tracker.committed(12, "new")
    assert run.end(0) == 0
    assert witness(run) == Answer(12, "new")
    told = answer_of(start_witness(run.folder / "plan.json"))
    assert told.seen == run.rows()[-1]["_timestamp"] == read_points(run.tracker.path)[-1]["time"]


def test_a_machine_that_is_about_to_go(run: Run) -> None:
    """W&B shows the run as preempted."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.sender.preempting()
    assert run.end(75) == 0
    assert run.wandb.state("alice", PROJECT, run.run) == "preempted"


def test_stopped_over_there(run: Run) -> None:
    """The stop button is reported once; a Ctrl-C that reaches the sender too means nothing to
    it."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    run.sender.process.send_signal(signal.SIGINT)
    run.train(11, 20)
    run.arrive(19)
    assert run.stops == []
    run.wandb.stop("alice", PROJECT, run.run)
    until(lambda: run.stops, "stop")
    run.train(21, 25)
    assert run.end(7) == 0
    assert run.stops == [True]
    run.check(25)


def test_the_library_dies_and_then_the_attempt(run: Run) -> None:
    """Its process may be ended by whoever has too little memory: another one goes on. Nobody tells
    the sender to finish, and SIGTERM means others: it ends when whoever started it is gone."""
    run.begin()
    run.train(1, 10)
    run.arrive(9)
    for core in children(run.sender.process.pid):
        os.kill(core, signal.SIGKILL)
    run.train(11, 20)
    run.arrive(19)
    run.sender.process.terminate()
    run.train(21, STEPS)
    run.sender.process.stdin.close()
    assert run.sender.process.wait(30) == 0
    run.check(STEPS - 1)  # the last one may still be evaluated


def witness(run: Run) -> Answer:
    """What the witness says of the last commit."""
    return dataclasses.replace(answer_of(start_witness(run.folder / "plan.json")), seen=0.0)


def account_of(run: Run) -> dict[str, Any]:
    """What the witness says of the account."""
    plan = str(run.folder / "plan.json")
    command = [sys.executable, "-m", "xrun.tracker.wandb.witness", plan, "--account"]
    done = subprocess.run(command, capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_witness_of_a_new_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Nothing was committed" and "cannot tell" are different answers."""
    assert witness(run) == Answer()
    run.begin()
    run.train(1, 5)
    assert run.end(75) == 0
    assert witness(run) == Answer()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert witness(run) == Answer(why="the API key is not valid")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert witness(run).why


@pytest.mark.parametrize(
    ("tracking", "environ", "what"),
    [
        ({}, {}, ""),
        ({"entity": None}, {}, ""),
        ({"entity": "team"}, {}, ""),
        (
            {"entity": "strangers"},
            {},
            "your key has no access to the entity strangers",
        ),
        ({"project": "closed"}, {}, "the W&B project alice/closed is read-only for you"),
        ({}, {"WANDB_API_KEY": "0" * 40}, "Weights & Biases refuses: the API key is not valid"),
        ({}, {"WANDB_API_KEY": "short"}, "it has 5 characters"),
        ({}, {"WANDB_API_KEY": ""}, "there is no API key here"),
    ],
)
def test_the_account(
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
    tracking: dict[str, Any],
    environ: dict[str, str],
    what: str,
) -> None:
    """Everything that would keep a run from being written, before any money is spent."""
    run = Run(tmp_path, wandb, **tracking)
    wandb.read_only.add("alice/closed")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    answer = account_of(run)
    assert bool(answer["problems"]) == bool(what), answer
    assert all(what in problem["what"] and problem["hint"] for problem in answer["problems"])
    if not environ:
        assert (
            answer["url"] == f"{wandb.url}/{tracking.get('entity') or 'alice'}/"
            f"{tracking.get('project', PROJECT)}/runs/{RUN}"
        )


def test_an_account_that_nobody_can_ask_about_is_silent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever launches decides what that means."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    answer = account_of(run)
    assert answer["problems"] == []
    assert "http://127.0.0.1:9 does not answer" in answer["silent"]


def test_no_secret_leaves_or_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in no file and in no request but its Authorization header; neither are this
    machine's name and commands.

    What the environment says about other runs does not matter.
    """
    first = len(run.wandb.requests)
    other = {
        "WANDB_MODE": "offline",
        "WANDB_RUN_ID": "other",
        "WANDB_RESUME": "must",
        "WANDB_PROJECT": "other",
        "WANDB_DIR": "x",
    }
    other["WANDB_FORK_FROM"] = "other?_step=3"
    for name, value in other.items():
        monkeypatch.setenv(name, value)
    run.begin()
    run.train(1, STEPS)
    assert run.end(0) == 0
    key = os.environ["WANDB_API_KEY"].encode()
    sent = run.wandb.requests[first:]
    assert len(sent) > 5
    for request in sent:
        headers = " ".join(
            f"{name}: {value}" for name, value in request.headers.items() if name != "authorization"
        )
        for word in (key, str(run.folder).encode(), os.uname().nodename.encode(), b"wandb_sender"):
            assert word not in request.body + headers.encode() + request.path.encode(), request.line
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if key in path.read_bytes()]
    assert all(key.decode() not in line for line in run.said)


def test_asking_imports_nothing_heavy() -> None:
    """The witness is there at once: wandb is for sending."""
    code = (
        "import sys, xrun.tracker.wandb.witness; print([n for n in ('wandb', 'torch', 'requests')"
        " if n in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
