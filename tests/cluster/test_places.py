"""`make e2e`: xrun's plugin in a real SkyPilot, which has three places on a real Slurm at the
prices of its own configuration. Two of them play spot, because Slurm knows none; the third is dear.

Covers `xrun_sky.strategy` and `xrun_sky.plugin`.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import yaml

from cluster.site import EPOCHS, RECIPE, Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

SPOT = ("north", "south")
NORTH, SOUTH, SURE = 0.1, 0.12, 1.0
"""Dollars an hour of SkyPilot's smallest machine, of two cores, in each place."""


def submit(site: Site, name: str, deadline: str) -> str:
    """Launch the task that xrun makes for a recipe, with two of its places as spot and without the
    default partition, which costs nothing; the run's id."""
    settings = (
        f"name={name}",
        "hardware={any_of: [{clouds: [slurm], spot: false}]}",
        f"hardware.deadline={deadline}",
        f"checkpoint.store=hub://alice/{name}",
        EPOCHS,
    )
    sets = [part for setting in settings for part in ("-s", setting)]
    said = site.xrun("plan", str(RECIPE), "--sky", *sets)
    task: dict[str, Any] = yaml.safe_load(said[said.index("name:") :])
    told = task["resources"]["job_recovery"]["xrun"]
    places = [(place["infra"].rpartition("/")[2], place) for place in told["places"]]
    told["places"] = [
        {**place, "spot": where in SPOT} for where, place in places if where != "main"
    ]
    assert {where: place["usd_per_hour"] for where, place in places} == {
        "main": 0,
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
