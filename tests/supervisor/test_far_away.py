"""A run that lives on the Hub and in W&B: kills, lost machines, servers that fail; nothing is lost,
nothing is doubled.

Covers `xrun.run.logs`, `xrun.run.stop_request` and `xrun.run.stores`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loopback.hub import Hub
from loopback.wandb import Wandb
from support.far_away import FAST, FarAway, environment, play, step_of
from support.paths import SOURCES
from support.running import (
    FAILING,
    PER_STEP,
    STEPS,
    Project,
    attempt,
    children,
    curve,
    ended,
    until,
    weights,
)
from xrun import environment as variables
from xrun.cli.texts import report_text
from xrun.clock import boot_seconds
from xrun.launcher.export import export_model
from xrun.launcher.job import choose_run
from xrun.run import stop_request
from xrun.run.record import RunRecord

# The library's own use of httpx and of hf_xet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning"),
]

SEEDS = range(*(int(number) for number in os.environ.get("SCHEDULES", "1000-1500").split("-")))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wandb]:
    with Wandb(tmp_path_factory.mktemp("wandb")) as server:
        yield server


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, dict[str, Any]]]:
    """Weights and losses of the undisturbed run, which has its state in a folder."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    assert project.attempt().code == 0
    return weights(project.run), curve(project.run)


def test_a_bare_machine_goes_on(
    tmp_path: Path, hub: Hub, wandb: Wandb, expected: tuple[str, dict[int, dict[str, Any]]]
) -> None:
    """Killed in mid-training, its folder and HOME deleted, started again: on from the last commit,
    the same final weights, one W&B run that has every step once; all points and what the lost
    machine has printed can be read on the new machine."""
    far = FarAway(tmp_path, hub, wandb, "bare")
    far.project.trap("SIGKILL", call=13 * PER_STEP, committed=10, paced=True)
    assert far.live().code == 75
    before = far.committed()
    assert step_of(before) >= 10
    far.lose_the_machine()
    done = far.live()
    assert done.code == 0, done.err
    record = far.committed()
    assert record is not None
    assert record["attempts"][1]["resumed_step"] == step_of(before)
    assert weights(far.run) == expected[0]
    assert curve(far.run) == expected[1]
    rows = [row for row in far.rows() if "train/loss" in row]
    assert [row["train/step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["train/loss"] for row in rows] == [
        expected[1][step]["train/loss"] for step in range(1, STEPS + 1)
    ]
    assert wandb.runs("alice", "bare") == [far.run.run]
    assert "steps_recomputed" not in record["attempts"][1], (
        "what the lost machine did after its last commit is not known"
    )
    with environment(far.environ):
        assert "Starting at step 0" in far.run.log_text(1, 0)
        assert "Going on from step" in far.run.log_text(2, 0)
    assert far.live().code == 0, "a finished run started again does nothing"


def family(pid: int) -> list[int]:
    """A process and all that have come from it."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def test_a_machine_that_sleeps_while_its_successor_finishes_changes_nothing(
    tmp_path: Path, hub: Hub, wandb: Wandb, expected: tuple[str, dict[int, dict[str, Any]]]
) -> None:
    """Every process of an attempt is stopped, another machine trains the run to its end, and the
    first wakes: W&B's rows, summary and state, and the Hub, are what the successor has left."""
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
    first, second = (FarAway(root, hub, wandb, "asleep") for root in roots)
    first.project.trap("hold", call=8 * PER_STEP, committed=5, paced=True)
    told = [word for each in first.overrides for word in ("-s", each)]
    environ = {**first.environ, variables.CONFIRMED.name: "2"}
    process = first.project.start("recipes/tiny.yaml", *told, environ=environ)
    until((roots[0] / "held").exists, "the step that holds")
    until(lambda: [row for row in first.rows() if row["train/step"] >= 5], "rows at W&B")
    asleep, since = family(process.pid), boot_seconds()
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)

    done = second.live()
    assert done.code == 0, done.err
    assert weights(second.run) == expected[0]
    own = ("alice", "asleep", second.run.run)
    rows, summary, state = second.rows(), wandb.summary(*own), wandb.state(*own)
    assert [row["train/step"] for row in rows] == list(range(1, STEPS + 1))
    assert (summary["xrun/commit_step"], state) == (STEPS, "finished")
    head = second.committed()

    until(lambda: boot_seconds() - since > 2, "the last confirmation is old")
    (roots[0] / "go").touch()
    for pid in reversed(asleep):
        os.kill(pid, signal.SIGCONT)
    woken = ended(process)
    assert woken.code == 4, woken.err
    assert (second.rows(), wandb.summary(*own), wandb.state(*own)) == (rows, summary, state)
    assert second.committed() == head

    refused = first.project.xrun("sync", second.run.run, environ=environ)
    assert refused.code == 3
    assert "Another machine has gone on with the run" in refused.err
    assert second.project.xrun("sync", second.run.run, environ=environ).code == 0
    assert (second.rows(), wandb.state(*own)) == (rows, "finished")


def test_a_run_that_is_asked_saves_and_stops(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`xrun cancel --save`: the step at hand is committed, the exit code says that nobody starts it
    again; then it goes on."""
    monkeypatch.setattr(stop_request, "LOOK_SECONDS", 0.05)
    far = FarAway(tmp_path, hub, None, "asked")
    far.project.trap("hold", call=7 * PER_STEP + 1, committed=5, paced=True)
    asked: list[str] = []

    def ask() -> None:
        until((tmp_path / "held").exists, "the hold")
        with environment(far.environ):
            asked.append(far.run.store().ask_to_stop())

    thread = threading.Thread(target=ask)
    thread.start()
    done = far.live()
    thread.join()
    assert done.code == 7, done.err
    assert "stopped by xrun cancel --save: saving, then stopping." in done.err
    record = far.committed()
    assert record is not None
    last = record["attempts"][-1]
    assert (last["id"], last["kind"], last["code"], last["committed"]) == (
        asked[0],
        "stopped",
        7,
        8,
    )
    assert step_of(record) == 8
    with environment(far.environ):
        assert far.run.report().status == "stopped"
    assert far.live().code == 0


def test_a_run_forks_from_a_run_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    """Its newest checkpoint is found where that run has its state, also on a machine that has
    nothing of it."""
    far = FarAway(tmp_path, hub, None, "trunk")
    assert far.live().code == 0
    with environment(far.environ):
        more = ("train.optimizer.lr=0.02", f"train.steps={STEPS + 4}")
        made = far.project.plan("checkpoint.store=hub://alice/branch", *more)
        plan = choose_run(replace(made, owner="alice"), fork=far.run.run)
        assert plan.fork_store == "hub://alice/trunk"
        assert (plan.run, plan.store) != (far.run.run, far.run.plan().store)
        shutil.rmtree(far.run.path)
        done = attempt(plan)
    assert done.code == 0, done.err
    assert f"Forked from {far.run.run} at step {STEPS}." in done.err


def test_the_finished_model_is_on_main(tmp_path: Path, hub: Hub) -> None:
    """Where people look: weights and a model card on `main`, tagged with the run; the state's
    history is one commit."""
    far = FarAway(tmp_path, hub, None, "finished")
    assert far.live().code == 0
    local = (far.run.model / "model.safetensors").read_bytes()
    assert hub.read(far.repo, "model.safetensors") == local
    assert hub.read(far.repo, "model.safetensors", far.run.run) == local
    card = hub.read(far.repo, "README.md").decode()
    assert far.run.run in card
    assert '"name": "tiny"' in card
    assert "Attempts: 1, 0 of them ended from outside." in card
    assert len(hub.history(far.repo, "state")) == 1
    record = far.committed()
    assert record is not None
    assert record["finished"]["model_revision"] == hub.history(far.repo)[0].id


def test_every_point_can_be_read_elsewhere(tmp_path: Path, hub: Hub) -> None:
    """Where the run has been planned and another machine has trained it: what `xrun sync` makes
    TensorBoard's files of. The log that lies here is another one, and stays."""
    far = FarAway(tmp_path, hub, None, "elsewhere")
    assert far.live().code == 0
    points = far.run.points()
    shutil.rmtree(far.run.path / "logs")
    far.run.metrics.write_bytes(b"")
    with environment(far.environ):
        assert far.run.newest_points() == points
    assert points[-1]["step"] == STEPS
    assert far.run.points() == []


def test_a_tracker_that_knows_more_stops_everything(tmp_path: Path, hub: Hub, wandb: Wandb) -> None:
    """Somebody has deleted the state: W&B knows of its commits, so nothing is started from step 0,
    and both are named."""
    far = FarAway(tmp_path, hub, wandb, "deleted")
    far.project.trap("SIGKILL", call=13 * PER_STEP, committed=10, paced=True)
    assert far.live().code == 75
    hub.forget(hub.repository(far.repo))
    far.lose_the_machine()
    done = far.live()
    assert done.code == 5, done.err
    assert "Weights & Biases knows of a commit of step" in done.err
    assert f"hub://{far.repo}" in done.err


def test_a_tracker_out_of_reach_stops_a_new_run_only(
    tmp_path: Path, hub: Hub, wandb: Wandb
) -> None:
    """With an empty store nobody could tell whether the run is new; with checkpoints the store's
    word is taken."""
    far = FarAway(tmp_path, hub, wandb, "unreachable")
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    known = far.environ
    far.environ = known | nobody
    done = far.live()
    assert done.code == 3, done.err
    assert "nobody can tell" in done.err
    far.environ = known
    far.project.trap("SIGKILL", call=13 * PER_STEP, committed=10, paced=True)
    assert far.live().code == 75
    far.environ = known | nobody
    done = far.live()
    assert done.code == 0, done.err
    assert "the run goes by its store alone" in done.err
    assert "xrun sync" in done.err


def test_no_secret_is_anywhere(tmp_path: Path, hub: Hub, wandb: Wandb) -> None:
    """Token values are in no file of the run, in nothing that was said, and in nothing that either
    server got but the headers that authenticate."""
    far = FarAway(tmp_path, hub, wandb, "secrets")
    values = [far.environ["HF_TOKEN"], far.environ["WANDB_API_KEY"], "the-third-secret-value"]
    far.environ |= {"MY_SECRET": values[2]}
    first = len(hub.requests), len(wandb.requests)
    done = far.live()
    assert done.code == 0, done.err
    sent = [*hub.requests[first[0] :], *wandb.requests[first[1] :]]
    assert len(sent) > 20
    for value in (value.encode() for value in values):
        assert value not in done.err.encode()
        assert not [
            path
            for path in far.project.root.rglob("*")
            if path.is_file() and value in path.read_bytes()
        ]
        assert not [
            request.line
            for request in sent
            if value in request.body or value in request.path.encode()
        ]


def test_a_run_that_was_deleted_in_wandb_asks_for_a_new_one(
    tmp_path: Path, hub: Hub, wandb: Wandb
) -> None:
    """Its id cannot be used again there: a run that starts anew is refused with the way out, before
    it has trained for long."""
    far = FarAway(tmp_path, hub, wandb, "deleted-there")
    assert far.live().code == 0
    wandb.delete("alice", "deleted-there", far.run.run)
    hub.forget(hub.repository(far.repo))
    far.lose_the_machine()
    far.project.trap("hold", call=2 * PER_STEP)
    done = far.live()
    assert done.code == 3, done.err
    assert "--again" in done.err


def test_an_old_answer_is_asked_for_again(tmp_path: Path, hub: Hub) -> None:
    """This machine knows of a commit that the Hub's answer does not show yet: that is no loss, and
    the run goes on."""
    far = FarAway(tmp_path, hub, None, "old-answer")
    far.project.trap("SIGKILL", call=13 * PER_STEP, committed=10, paced=True)
    assert far.live().code == 75
    hub.faults.add(r"GET .*/(revision|refs|commits|tree)", stale=True, times=3)
    done = far.live()
    assert done.code == 0, done.err


def test_a_store_out_of_reach_is_no_failure_of_the_run(tmp_path: Path, hub: Hub) -> None:
    """The Hub fails while the rank restores: the attempt comes back later, and it does not count as
    one of the three that end a run without progress."""
    far = FarAway(tmp_path, hub, None, "restoring")
    far.project.trap("SIGKILL", call=13 * PER_STEP, committed=10, paced=True)
    assert far.live().code == 75
    for _ in range(4):
        far.lose_the_machine()
        hub.faults.add(
            r"/resolve/.*/objects/", status=408, times=None
        )  # which the client does not repeat by itself
        assert far.live().code == 75
        hub.faults.clear()
    record = far.committed()
    assert record is not None
    assert [attempt["kind"] for attempt in record["attempts"]] == ["outside"] * 5
    assert far.live().code == 0


@pytest.mark.parametrize("seed", range(2))
def test_schedules_of_faults(
    tmp_path: Path,
    hub: Hub,
    wandb: Wandb,
    expected: tuple[str, dict[int, dict[str, Any]]],
    seed: int,
) -> None:
    """Kills, faults and lost machines in any order: the head always names whole checkpoints, and
    the end is the same."""
    result = play(FarAway(tmp_path, hub, wandb, f"schedule-{seed}"), seed, expected)
    assert not result.wrong, result


@pytest.mark.soak
def test_many_schedules_of_faults(
    tmp_path: Path, hub: Hub, wandb: Wandb, expected: tuple[str, dict[int, dict[str, Any]]]
) -> None:
    """Five hundred of them, every tenth with W&B, whose processes take most of the time;
    `SCHEDULES=100-200` chooses others.

    Each one's outcome is printed as a line of JSON.
    """
    wrong = []
    for seed in SEEDS:
        far = FarAway(
            tmp_path / str(seed), hub, wandb if seed % 10 == 0 else None, f"schedule-{seed}"
        )
        result = play(far, seed, expected)
        print(json.dumps({**vars(result), "faults": dict(result.faults)}), flush=True)
        wrong += [result] if result.wrong else []
    assert not wrong


def test_an_export_that_failed_is_published_later(tmp_path: Path, hub: Hub) -> None:
    """The run is finished on the Hub without a model; `export-model`, on a machine that has its
    plan, publishes it from the last commit, and no attempt was added."""
    far = FarAway(tmp_path, hub, None, "later")
    far.project.write("models/line.py", FAILING)
    far.project.write("broken", "no such key")
    assert far.live().code == 2
    finished = (far.committed() or {})["finished"]
    assert finished["export_failed"] == "models/line.py: RuntimeError: no such key."
    (tmp_path / "broken").unlink()
    for name in ("cache", "logs", "metrics.jsonl"):
        path = far.run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with environment(far.environ | {"PYTHONPATH": SOURCES}):
        assert export_model(far.run) == 0
    record = far.committed() or {}
    assert "export_failed" not in record["finished"]
    assert record["finished"]["model_revision"] == hub.history(far.repo)[0].id
    assert len(record["attempts"]) == 1
    published = hub.read(far.repo, "line.safetensors", "main")
    assert hashlib.sha256(published).hexdigest() == record["finished"]["weights_sha256"]


def test_a_model_is_published_where_no_state_is(tmp_path: Path, hub: Hub) -> None:
    """State here, the model on the Hub: while that refuses, the run is finished with its model made
    and a code of the Hub's; `export-model` publishes it later, and nothing was trained for it."""
    project = Project(tmp_path)
    plan = replace(project.plan("publish=hub://alice/model"), owner="alice")
    with environment(hub.environ("alice") | FAST | {"PYTHONPATH": SOURCES}):
        hub.faults.add(r"POST .*/preupload/", status=403, times=1000)
        done = attempt(plan)
        assert done.code in (3, 4), done.err
        assert "the model is made, and is not published at hub://alice/model:" in done.err
        assert f"type `xrun export-model {plan.run}`" in done.err
        report = project.run.report()
        assert (report.status, report.step, report.model) == (
            "finished",
            20,
            str(project.run.model),
        )
        assert report.weights_sha256 == weights(project.run)
        assert "  model not published: " in report_text(report)
        again = attempt(plan)
        assert again.code == done.code
        assert "its model is not published" in again.err
        hub.faults.clear()
        assert export_model(project.run) == 0
    finished = RunRecord.of(project.run.head()).finished
    assert finished is not None
    assert finished.export_failed is None
    assert finished.model_revision == hub.history("alice/model")[0].id
    published = hub.read("alice/model", "model.safetensors", "main")
    assert hashlib.sha256(published).hexdigest() == finished.weights_sha256
    assert len(project.run.report().attempts) == 1
