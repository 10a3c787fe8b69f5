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
