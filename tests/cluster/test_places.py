"""`make e2e`: xrun's plugin in a real SkyPilot, which has three places on a real Slurm at the
prices of its own configuration. Two of them play spot, because Slurm knows none; the third is dear.

Covers `xrun_sky.strategy` and `xrun_sky.plugin`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import xrun_sky
from cluster.site import EPOCHS, RECIPE, Site
from xrun_sky.stay import LEFT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

SPOT = ("north", "south")
MAIN, NORTH, SOUTH, SURE = 4.0, 10.0, 12.0, 100.0
"""Dollars an hour of SkyPilot's smallest machine, of two cores, in each place."""
SLOW = '''
import time

import torch


class Slow:
    """Samples that take their time to be read, so that a step takes as long on a busy machine."""

    def __len__(self):
        return 4096

    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.full((8,), i / 4096), i % 2


def build():
    return {"train": Slow()}
'''
LINE = """
from torch import nn


def build():
    return nn.Linear(8, 2)
"""
SLOW_RECIPE = """
name: slow
model: {name: line}
dataset: {name: slow}
task: classification
train:
  steps: 240
  global_batch: 16
  micro_batch: 16
  precision: fp32
  optimizer: {name: adamw, lr: 0.01}
checkpoint: {store: hub, every: 40 steps, keep: 3}
hardware: {any_of: [{clouds: [slurm], spot: false}]}
"""
"""Something over a minute on a machine of one's own."""


def submit(
    site: Site,
    name: str,
    deadline: str,
    *,
    epochs: str = EPOCHS,
    **believed: Any,
) -> str:
    """Launch the task that xrun makes for a recipe, with two of its places as spot and without the
    default partition; the run's id. `believed`: what its launch knows else."""
    settings = (
        f"name={name}",
        "hardware={any_of: [{clouds: [slurm], spot: false}]}",
        f"hardware.deadline={deadline}",
        f"checkpoint.store=hub://alice/{name}",
        epochs,
    )
    sets = [part for setting in settings for part in ("-s", setting)]
    said = site.xrun("plan", str(RECIPE), "--sky", *sets)
    task: dict[str, Any] = yaml.safe_load(said[said.index("name:") :])
    told = task["resources"]["job_recovery"]["xrun"]
    places = [(place["infra"].rpartition("/")[2], place) for place in told["places"]]
    told.update(believed)
    told["places"] = [
        {**place, "spot": where in SPOT} for where, place in places if where != "main"
    ]
    assert {where: place["usd_per_hour"] for where, place in places} == {
        "main": MAIN,
        "north": NORTH,
        "south": SOUTH,
        "sure": SURE,
    }
    path = site.cluster.root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    run = str(task["name"])
    secrets = [part for secret in task["secrets"] for part in ("--secret", secret)]
    sky = str(RECIPE.parents[1] / ".venv" / "bin" / "sky")
    launch = ("jobs", "launch", "--name", run, "--yes", "--detach-run", *secrets, str(path))
    site.cluster.run(sky, *launch, env=site.environment, seconds=600)
    return run


def test_a_run_goes_on_elsewhere_though_its_controller_is_killed_while_it_recovers(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preempted in the cheapest place it asks the next one, whatever happens to the controller; the
    weights and steps are the run's, the prices those of its places."""
    run = submit(site, "places", "3h")
    wait = site.cluster.until
    wait(run, lambda: site.committed("places") >= 150, "step 150", 900)
    killed = site.cluster.preempt(run, notice=False)
    asked = re.compile(r"xrun: asking for .* in slurm/local/south \(spot\)")
    wait(run, lambda: asked.search(site.cluster.controller_said(run)), "asking in the south", 300)
    site.cluster.kill_controller()
    before = site.committed("places")
    wait(run, lambda: site.committed("places") > before, "a step after the recovery", 900)
    back = time.time()
    site.cluster.wait_for(run, "SUCCEEDED", seconds=600)
    attempts = site.record("places")["attempts"]
    assert [(each["zone"], each["spot"], each["usd_per_hour"]) for each in attempts] == [
        ("north", True, NORTH),
        ("south", True, SOUTH),
    ]
    said = site.cluster.controller_said(run)
    lines = [line[line.index("xrun: ") :] for line in said.splitlines() if "xrun: " in line]
    assert "is gone after" in "\n".join(lines)
    assert not any("north" in line for line in lines[lines.index(gone(lines)) + 1 :])
    with capsys.disabled():
        print(f"\n{back - killed:.0f} s from the kill to the next committed step", *lines, sep="\n")


def gone(lines: list[str]) -> str:
    """The line that tells of the loss."""
    return next(line for line in lines if "is gone after" in line)


@pytest.mark.soak
def test_a_deadline_forces_the_dear_place(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Half an hour for a run that nobody has measured leaves no time to lose a spot machine."""
    run = submit(site, "forced", "30m")
    site.cluster.wait_for(run, "SUCCEEDED", seconds=900)
    (attempt,) = site.record("forced")["attempts"]
    assert (attempt["zone"], attempt["spot"], attempt["usd_per_hour"]) == ("sure", False, SURE)
    with capsys.disabled():
        print(
            "",
            *(line for line in site.cluster.controller_said(run).splitlines() if "xrun: " in line),
            sep="\n",
        )


@pytest.mark.soak
def test_a_run_that_was_believed_to_be_slow_goes_back_to_spot(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what its launch knows it takes until the deadline, so it has to take the dear place. There
    it finds that it is faster, and that a look for spot is worth a start: it saves, leaves with 75,
    and goes on in the cheapest place from where it was."""
    hours, steps = 3.0, 9200
    run = submit(
        site,
        "back",
        f"{hours:g}h",
        epochs="train.epochs=400",
        left=steps,
        rate=steps / (hours * 3600 - 90),
        changeover=60,
    )

    def went_on() -> bool:
        attempts = site.record("back").get("attempts", [])
        last = [each["attempt"] for each in site.record("back").get("checkpoints", [])][-1:]
        return len(attempts) == 2 and last == [attempts[1]["id"]]

    site.cluster.until(run, went_on, "a step of the second attempt", 1200)
    site.cluster.sky("jobs", "cancel", "--yes", "--name", run)
    first, second = site.record("back")["attempts"][:2]
    assert (first["zone"], first["spot"], first["usd_per_hour"]) == ("sure", False, SURE)
    assert (first["code"], first["reason"]) == (75, LEFT)
    assert (second["zone"], second["spot"], second["usd_per_hour"]) == ("north", True, NORTH)
    assert second["from_step"] == first["committed"] > 0
    said = site.cluster.controller_said(run)
    lines = [line[line.index("xrun: ") :] for line in said.splitlines() if "xrun: " in line]
    assert any("(on demand) was given back after" in line for line in lines)
    with capsys.disabled():
        print(f"\n{second['started'] - first['ended']:.0f} s without a machine", *lines, sep="\n")


@pytest.mark.soak
def test_a_receipt_is_within_its_quote(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours and dollars of a run whose speed another run has measured, as they are quoted before
    the launch; and the receipt has the time from the launch to the machine, which no quote has. A
    launch by another xrun says that the plugin is not its own."""
    for name, text in (
        ("recipes/slow.yaml", SLOW_RECIPE),
        ("datasets/slow.py", SLOW),
        ("models/line.py", LINE),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    recipe = tmp_path / "recipes" / "slow.yaml"
    first, second = (f"checkpoint.store=hub://alice/{run}" for run in ("measured", "quoted"))
    launch = (str(recipe), "--yes", "--detach", "--no-rehearsal")
    site.xrun(*launch, "--run", "measured", "-s", first)
    site.cluster.wait_for("measured", "SUCCEEDED", seconds=900)
    plan = ("plan", str(recipe), "--json", "--no-measure", "-s", second)
    offers = printed(site.xrun(*plan))
    best = offers["chosen"]
    assert not any("comes with" in note for note in offers["notes"])
    another = tmp_path / "another" / "xrun_sky"
    shutil.copytree(Path(xrun_sky.__path__[0]), another)
    (another / "__init__.py").write_text(f"{(another / '__init__.py').read_text()}# another one\n")
    elsewhere = site.environment | {"PYTHONPATH": str(another.parent)}
    told = printed(site.cluster.run(sys.executable, "-m", "xrun", *plan, env=elsewhere))
    (note,) = (note for note in told["notes"] if "comes with" in note)
    assert f"has xrun's plugin {xrun_sky.__version__}, and this xrun comes with" in note
    assert "`xrun setup sky` installs this xrun's" in note
    site.xrun(*launch, "--run", "quoted", "-s", second)
    site.cluster.wait_for("quoted", "SUCCEEDED", seconds=900)
    told = printed(site.xrun("receipt", "quoted", "--json"))
    with capsys.disabled():
        print(f"\nquoted: {best['quote']}, by {best['speed']}\n{site.xrun('receipt', 'quoted')}")
    assert best["usd_per_hour"] == told["attempts"][0]["usd_per_hour"] == MAIN
    assert best["speed"]["measured"]
    for name in ("hours", "usd"):
        quoted = best["quote"][name]
        assert quoted["low"] <= told[name] <= quoted["high"], (name, quoted, told[name])
    assert 0 < told["queued_hours"] < 0.5


def printed(said: str) -> Any:
    """The JSON that a command has printed, among what it says besides."""
    return json.JSONDecoder().raw_decode(said[said.index("{") :])[0]
