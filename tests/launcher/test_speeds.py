"""How fast a run will be, by what attempts have measured: its own, and others wherever their
records and model pages can be read. Covers `xrun.launcher.throughput`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.buckets import moto
from support.hub_store import HUB_WARNINGS
from support.running import PER_STEP, Project, steps_of
from support.worlds import HubWorld, hub_world
from xrun.launcher.speeds import hours_left, known_throughput
from xrun.launcher.throughput import Machines
from xrun.recipe.accelerators import Accelerators
from xrun.run.checkpoint import Checkpoint
from xrun.run.cost import Cost, Trial
from xrun.run.folder import RunFolder
from xrun.run.locked import Lock
from xrun.run.plan import Plan
from xrun.run.receipt import receipt_of
from xrun.run.record import AttemptRecord, RunRecord
from xrun.run.stores import open_store
from xrun.training.page import write_page

pytestmark = HUB_WARNINGS

A100, H100 = Machines(Accelerators("A100", 8)), Machines(Accelerators("H100", 8), 2)
PATIENT = 60.0
"""Seconds that no answer here takes."""


def train(plan: Plan, sample_flops: float | None = None) -> RunRecord:
    """What a run of 20 steps would have committed: its first attempt 5 steps in 10 s on eight A100,
    the second, on two machines of eight H100, the steps 8 and 12 two seconds apart."""
    one = AttemptRecord("one", 900.0, cloud="aws", accelerators="A100:8")
    two = AttemptRecord("two", 990.0, cloud="aws", accelerators="H100:8", nodes=2)
    begun = RunRecord().begun(plan, one).with_last(ended=910.0, committed=5)
    begun = begun.begun(plan, replace(two, sample_flops=sample_flops))
    kept = tuple(Checkpoint(step, "two", plan.digest, 1000 + step / 2) for step in (8, 12))
    record = replace(begun, checkpoints=kept)
    open_store(plan, "two").commit(record.to_json(), None)
    return record


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def trained(project: Project) -> Project:
    """A project with a run that was trained so, on this machine."""
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    train(plan)
    return project


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubWorld]:
    with hub_world(tmp_path, "hub", monkeypatch) as made:
        monkeypatch.setenv("HF_TOKEN", made.hub.token("alice"))
        yield made


def far(project: Project, *overrides: str, run: str = "") -> Plan:
    """A plan whose state goes to Alice's account."""
    return project.plan("checkpoint.store=hub", *overrides, run=run).placed("alice")


def cost(flops: float) -> Cost:
    """Of a step that computes so much for each sample."""
    trials = (Trial(1, 1, 1, flops, 1),)
    return Cost(1, 1, 1, 1, 1, 0, 1, 1, 1, trials)


def test_what_attempts_have_measured_is_known_to_the_next_plan(trained: Project) -> None:
    """From their checkpoints, else from their whole life; also for another run of the same step."""
    known = known_throughput(trained.plan("train.seed=1"))
    assert known.measured[H100].steps_per_second == pytest.approx(2.0)
    assert known.measured[A100].steps_per_second == pytest.approx(0.5)
    assert known.measured[A100].source.startswith("measured in attempt 1 of tiny-")
    assert known.measured[A100].measured
    assert known.steps_left == 20
    assert known_throughput(trained.plan()).steps_left == 8
    assert known_throughput(trained.plan("model.args={width: 9}")).measured == {}


def test_another_batch_of_the_same_model_takes_as_much_longer(trained: Project) -> None:
    """Which is an estimate, and says so; in another precision machines have another peak."""
    twice = trained.plan("train.global_batch=16")
    found = known_throughput(twice).on(H100)
    assert found is not None
    assert found.steps_per_second == pytest.approx(1.0)
    assert not found.measured
    assert "in attempt 2 of tiny-" in found.source
    assert found.source.endswith("by 8 samples a step there and 16 here")
    for other in ("train.precision=bf16", "train.tf32=true"):
        assert known_throughput(trained.plan("train.seed=1", other)).measured == {}


def test_another_size_of_model_is_scaled_by_flops(project: Project) -> None:
    """The record says what a sample has taken, and a plan what one takes; where either is not known
    nobody guesses."""
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    train(plan, sample_flops=2e12)
    wider = project.plan("model.args={width: 9}")
    found = known_throughput(wider, cost(8e12)).measured
    assert found[H100].steps_per_second == pytest.approx(0.5)
    assert found[H100].source.endswith("16 TFLOP a step there and 64 TFLOP here")
    assert A100 not in found
    assert known_throughput(wider).measured == {}


def test_runs_of_the_account_that_were_never_here_are_known(
    project: Project, tmp_path: Path, world: HubWorld
) -> None:
    """Their records lie beside the new run's, on the Hub; among repositories that are no runs."""
    elsewhere = Project(tmp_path / "elsewhere")
    train(far(elsewhere, run="other-1"), sample_flops=2e12)
    world.hub.create_repo("alice/a-model")
    found = known_throughput(far(project), seconds=PATIENT).measured
    assert found[H100].steps_per_second == pytest.approx(2.0)
    assert found[H100].source == "measured in attempt 2 of other-1 (hub://alice/other-1)"
    wider = far(project, "model.args={width: 9}")
    assert known_throughput(wider, cost(4e12), seconds=PATIENT).measured[
        H100
    ].steps_per_second == pytest.approx(1.0)
    assert known_throughput(project.plan(), seconds=PATIENT).measured == {}


def test_runs_below_the_prefix_of_a_bucket_are_known(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto() as s3:
        for name, value in s3.environ.items():
            monkeypatch.setenv(name, value)
        store = f"checkpoint.store={s3.make('speeds')}/runs"
        train(Project(tmp_path / "elsewhere").plan(store, run="other-1"))
        found = known_throughput(project.plan(store), seconds=PATIENT).measured
    assert found[H100].steps_per_second == pytest.approx(2.0)
    assert found[H100].source.endswith("/runs/other-1)")


def test_of_two_attempts_on_the_same_machines_the_newest_counts(project: Project) -> None:
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    begun = RunRecord()
    for started, committed in ((1000.0, 5), (2000.0, 15)):
        told = AttemptRecord(f"{started}", started, cloud="aws", accelerators="A100:8")
        begun = begun.begun(plan, told).with_last(ended=started + 5, committed=committed)
    open_store(plan, "2000.0").commit(begun.to_json(), None)
    assert known_throughput(plan).measured[A100].steps_per_second == pytest.approx(3.0)


def test_a_page_that_the_recipe_begins_with_has_a_receipt(
    project: Project, tmp_path: Path, world: HubWorld
) -> None:
    """21 steps, one of them twice, in 60 s less 18 s of setup, on one kind of machine. So has the
    page beside which a recipe lies, as one does that is fetched by its URL."""
    plan = project.plan(run="first-1")
    attempt = AttemptRecord(
        "one",
        1000.0,
        cloud="aws",
        spot=True,
        accelerators="A100:8",
        usd_per_hour=3.6,
        billed_from=1000.0,
        trained_from=1018.0,
        steps_recomputed=1,
        seconds_lost=1.0,
        resumed_step=4,
        ended=1060.0,
        code=0,
    )
    points: list[dict[str, Any]] = [{"step": step, "train/loss": 1.0} for step in range(1, 22)]
    receipt = receipt_of(plan.run, [attempt], 1060.0)
    assert receipt.lost_steps == 1
    model = tmp_path / "page"
    model.mkdir()
    write_page(model, plan, Lock(), points, {}, "", receipt, 2e12)
    world.hub.create_repo("alice/page")
    files = {f"xrun/{path.name}": path.read_bytes() for path in (model / "xrun").iterdir()}
    world.hub.write("alice/page", files)
    for named, where in (
        ("alice/page", "hub://alice/page"),
        ("alice/page@main", "hub://alice/page"),
        (str(model), str(model)),
    ):
        tuned = project.plan(f"model.init_from={named}")
        found = known_throughput(tuned, seconds=PATIENT).measured[A100]
        assert found.steps_per_second == pytest.approx(21 / 42, rel=0.01)
        assert found.source == f"measured in the receipt of first-1 ({where})"
        assert found.measured
    wider = project.plan("model.args={width: 9}")
    wider = replace(wider, recipe_path=str(model / "xrun" / "recipe.yaml"))
    scaled = known_throughput(wider, cost(1e12), seconds=PATIENT).measured[A100]
    assert scaled.steps_per_second == pytest.approx(2 * 21 / 42, rel=0.01)


def test_a_page_of_several_kinds_of_machines_says_nothing(project: Project, tmp_path: Path) -> None:
    """Its receipt does not say how many steps each attempt has computed."""
    record = train(project.plan(run="first-1"))
    model = tmp_path / "page"
    model.mkdir()
    receipt = receipt_of("first-1", record.attempts, 1100.0)
    points: list[dict[str, Any]] = [{"step": 1}, {"step": 20}]
    write_page(model, project.plan(), Lock(), points, {}, "", receipt)
    assert known_throughput(project.plan(f"model.init_from={model}")).measured == {}


def test_nobody_waits_for_a_hub_that_does_not_answer(project: Project, world: HubWorld) -> None:
    """What is here is known all the same."""
    plan = far(project)
    RunFolder(plan.folder).write_plan(plan)
    here = project.plan("train.seed=1")
    RunFolder(here.folder).write_plan(here)
    train(here)
    silent = world.hub.faults.add(match="GET /api/models", stall=3600.0, times=None)
    found = known_throughput(far(project, "train.seed=2"))
    world.hub.faults.clear()
    assert silent.hits
    assert found.measured[H100].measured


def test_epochs_have_an_end_once_somebody_has_counted_them(tmp_path: Path) -> None:
    """How many steps an epoch has is known from any attempt on, also of another run with the same
    data."""
    project, epochs = Project(tmp_path), ("train.steps=null", "train.epochs=2")
    assert known_throughput(project.plan(*epochs)).steps_left is None
    project.trap("SIGKILL", call=7 * PER_STEP, committed=5)
    assert project.attempt(*epochs).code == 75
    assert known_throughput(project.plan(*epochs)).steps_left == 26 - max(steps_of(project.run))
    assert known_throughput(project.plan(*epochs, "train.seed=1")).steps_left == 26
    assert known_throughput(project.plan(*epochs, "dataset.args={n: 50}")).steps_left is None


def test_the_time_left_is_the_newest_attempts(trained: Project) -> None:
    assert hours_left(RunFolder(trained.plan().folder)) == pytest.approx(8 / 2.0 / 3600)
