"""`make e2e`: recipes/digits.yaml as managed jobs of a real SkyPilot on a real Slurm, with machines
that are really taken away.

The state goes to a loopback Hub and the points to a loopback W&B. Each test says what it measured.

Covers `xrun.launcher.sky.cancel`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.site import EPOCHS, RECIPE, Site
from support.running import until as eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

EXAMPLE = RECIPE.parents[1] / "examples" / "iris"


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Iterator[subprocess.Popen[str]]:
    """The same training on this machine, without a cloud and without interruptions; it runs while
    the first machine is set up."""
    environment = site.environment | {
        "XRUN_HOME": str(site.cluster.root / "undisturbed"),
        "OMP_NUM_THREADS": "1",
    }
    command = (sys.executable, "-m", "xrun", str(RECIPE), "--local", "--yes", "-s", EPOCHS)
    process = site.cluster.start(*command, env=environment, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def expected(site: Site, undisturbed: subprocess.Popen[str]) -> tuple[bytes, dict[int, float]]:
    """The undisturbed run's final weights and its loss at each step."""
    assert undisturbed.wait(timeout=600) == 0
    (folder,) = (site.cluster.root / "undisturbed").iterdir()
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {point["step"]: point["train/loss"] for point in points if "train/loss" in point}
    return (folder / "model" / "model.safetensors").read_bytes(), losses


@pytest.mark.usefixtures("undisturbed")
def test_a_job_that_is_preempted_twice_ends_with_the_weights_of_an_undisturbed_run(
    site: Site, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """One machine gives notice and one is gone at once; W&B has one run with every step once, and
    no secret lies around."""
    run, killed = "preempted", []
    site.launch(run)
    for step, notice in ((150, True), (450, False)):
        site.wait_for_step(run, step)
        killed.append(site.cluster.preempt(run, notice=notice))
    job = site.cluster.wait_for(run, "SUCCEEDED", seconds=600)
    weights, losses = request.getfixturevalue("expected")
    assert job.recovery_count == 2
    assert len(site.record(run)["attempts"]) == 3
    assert site.weights(run) == weights
    rows = [row for row in site.rows(run) if "train/loss" in row]
    assert site.wandb.runs("alice", "e2e") == [run]
    assert [row["train/step"] for row in rows] == sorted(losses)
    assert {row["train/step"]: row["train/loss"] for row in rows} == losses
    assert site.wandb.state("alice", "e2e", run) == "finished"
    for secret in site.secrets:
        assert not naming(
            secret,
            site.cluster.root / "home" / "sky_logs",
            site.hub.root,
            site.cluster.root / "wandb",
        )
    first = [
        min(row["_timestamp"] for row in rows if row["xrun/attempt"] == attempt)
        for attempt in (2, 3)
    ]
    seconds = ", ".join(
        f"{after - before:.0f} s" for before, after in zip(killed, first, strict=True)
    )
    with capsys.disabled():
        print(f"\n{job.recovery_count} recoveries; from the kill to the next step {seconds}")


def test_two_nodes_train_the_same_weights(
    site: Site, expected: tuple[bytes, dict[int, float]]
) -> None:
    """One process on each of two nodes; the reduction of digits.yaml is exact, so the bits are
    those of one process."""
    site.launch("two-nodes", nodes=2)
    site.cluster.wait_for("two-nodes", "SUCCEEDED", seconds=900)
    (attempt,) = site.record("two-nodes")["attempts"]
    assert (attempt["nodes"], attempt["processes"]) == (2, 2)
    assert site.weights("two-nodes") == expected[0]


def test_cancel_gives_the_machine_back_and_the_checkpoints_stay(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --save the run commits a step and stops by itself; launched again it goes on from there;
    without, it ends at once."""
    site.launch("cancelled")
    site.wait_for_step("cancelled", 100)
    began = time.monotonic()
    said = site.xrun("cancel", "cancelled", "--save")
    assert "has stopped" in said
    saved = site.record("cancelled")["attempts"][-1]
    assert (saved["kind"], saved["code"], saved["reason"]) == (
        "stopped",
        7,
        "stopped by xrun cancel --save",
    )
    assert saved["committed"] == site.committed("cancelled") >= 100
    eventually(lambda: not site.cluster.slurm_jobs(), "the machine being given back")
    with capsys.disabled():
        print(
            f"\nsaved at step {saved['committed']}, stopped and given back after"
            f" {time.monotonic() - began:.0f} s"
        )
    site.launch("cancelled")
    site.wait_for_step("cancelled", saved["committed"] + 1)
    assert site.record("cancelled")["attempts"][-1]["resumed_step"] == saved["committed"]
    began = time.monotonic()
    site.xrun("cancel", "cancelled")
    site.cluster.wait_for("cancelled", "CANCELLED", seconds=300)
    eventually(lambda: not site.cluster.slurm_jobs(), "the machine being given back")
    assert site.committed("cancelled") > saved["committed"]
    assert "Starting at step 0" in site.xrun("logs", "cancelled", "--attempt", "1"), (
        "its machine has gone"
    )
    with capsys.disabled():
        print(f"\ncancelled and given back after {time.monotonic() - began:.0f} s")


@pytest.mark.soak
def test_a_project_of_ones_own_arrives_and_survives(site: Site) -> None:
    """The example's package, its data file and its library are on the machine, and two preemptions
    end in the weights of an undisturbed run."""
    project = site.cluster.root / "project"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    site.cluster.run("git", "init", "-q", str(project), env=site.environment, cwd=project)
    recipe, epochs, home = project / "recipes/iris.yaml", "train.epochs=1000", project / "alone"
    site.xrun(str(recipe), "--local", "--yes", "-s", epochs, "-s", f"checkpoint.store={home}")
    site.launch("iris", recipe=recipe, epochs=epochs)
    for step, notice in ((400, True), (2000, False)):
        site.wait_for_step("iris", step)
        site.cluster.preempt("iris", notice=notice)
    job = site.cluster.wait_for("iris", "SUCCEEDED", seconds=600)
    assert job.recovery_count == 2
    assert len(site.record("iris")["attempts"]) == 3
    (undisturbed,) = home.glob("*/model/model.safetensors")
    assert site.weights("iris") == undisturbed.read_bytes()


def naming(secret: str, *folders: Path) -> list[Path]:
    """Files that have a secret in them."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


SWEEP = """\
sweep:
  parameters:
    train.optimizer.lr: {min: 1e-4, max: 1e-1, log: true, points: 6}
  parallel: 2
  stop: {method: halving, rungs: 1, reduction: 3}
"""
"""Two trials of six come to their end."""


@pytest.mark.soak
def test_a_sweep_of_six_jobs_keeps_the_trials_of_a_local_one(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials are managed jobs, two of which lose their machines, and the command is killed once:
    the same results, survivors and weights as of the same sweep on this machine."""
    recipe = site.cluster.root / "swept" / "recipes" / "swept.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text((RECIPE.parent / "digits_mlp.yaml").read_text() + SWEEP)
    steps = ("-s", "train.steps=600", "-s", "train.evaluate.every=100 steps")
    home = {"XRUN_HOME": str(site.cluster.root / "swept" / "here"), "OMP_NUM_THREADS": "1"}
    assert sweep(site, recipe, "--local", *steps, **home).wait(timeout=900) == 0
    here = table(site, recipe, "--local", *steps, **home)

    hardware = "hardware={any_of: [{clouds: [slurm], spot: false}]}"
    there = (*steps, "-s", hardware, "-s", "checkpoint.store=hub")
    runs, began = [row["run"] for row in here], time.monotonic()
    command = sweep(site, recipe, *there)
    site.wait_for_step(runs[0], 0)
    site.cluster.preempt(runs[0], notice=False)
    command.kill()
    command.communicate()
    command = sweep(site, recipe, *there)
    site.wait_for_step(runs[3], 0)
    site.cluster.preempt(runs[3])
    assert command.wait(timeout=1200) == 0
    found = table(site, recipe, *there)
    told = ("trial", "run", "state", "rung", "step", "value")
    assert [[row[name] for name in told] for row in found] == [
        [row[name] for name in told] for row in here
    ]
    survivors = [row["run"] for row in here if row["state"] == "finished"]
    assert len(survivors) == 2
    for run in survivors:
        model = Path(home["XRUN_HOME"]) / run / "model" / "model.safetensors"
        assert site.weights(run) == model.read_bytes()
    lost = [run for run in runs if len(site.record(run)["attempts"]) > 1]
    assert {runs[0], runs[3]} <= set(lost)
    with capsys.disabled():
        print(f"\nsix trials as jobs after {time.monotonic() - began:.0f} s")


def sweep(site: Site, recipe: Path, *settings: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command that runs all trials of a recipe; what it says is in logs/sweep.log."""
    command = (sys.executable, "-m", "xrun", str(recipe), "--yes", "--no-rehearsal", *settings)
    with (site.cluster.root / "logs" / "sweep.log").open("a") as log:
        return site.cluster.start(
            *command, env=site.environment | variables, stdout=log, stderr=log
        )


def table(site: Site, recipe: Path, *settings: str, **variables: str) -> list[dict[str, Any]]:
    """The rows of `xrun sweep table`."""
    command = (sys.executable, "-m", "xrun", "sweep", "table", str(recipe), "--json", *settings)
    said = site.cluster.run(*command, env=site.environment | variables, stderr=subprocess.DEVNULL)
    return list(json.loads(said))
