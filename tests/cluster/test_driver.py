"""What SkyPilot's controller does when the nodes of a job end, on the driver that it has for
clouds: exit code by node -> ended for good, or started again.

The jobs run the script of the real task on two real Ray nodes, and the controller's own function
decides. docs/decisions/0024 has the table.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.driver import NODES, PYTHON, Driver, Ended
from cluster.waiting import until
from support.paths import SOURCES
from support.running import Project
from xrun.launcher.bundle import pack, there
from xrun.launcher.offers import Offer, rank
from xrun.launcher.sky.recovery import OF_SKYPILOT
from xrun.launcher.sky.task import task_config
from xrun.launcher.throughput import Machines
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.run.prices import Price

pytestmark = [pytest.mark.e2e, pytest.mark.cloud, pytest.mark.timeout(1500)]

FINAL = (2, 3, 4, 5, 6, 7)
BACK = (1, 75, "SIGKILL", "SIGTERM", "SIGSEGV")
"""Ways of an entrypoint to end that say nothing about the run."""
CANCELLED = 137
"""What the driver writes for a node that it has ended itself."""


def story(node0: tuple[str, Any], node1: tuple[str, Any]) -> str:
    return json.dumps({"0": node0, "1": node1})


STORIES = {
    # As the supervisor has it: the follower leaves the last word to node 0, which ends last.
    **{f"{how}, the other before": story(("last", how), ("together", 0)) for how in (0, *FINAL)},
    **{f"{how}, the other before": story(("last", how), ("together", 0)) for how in BACK},
    # A tie that is lost: the other node still runs, and saves when it is told to end.
    **{f"{how}, the other runs": story(("together", how), ("together", "stay")) for how in FINAL},
    **{f"{how}, the other runs": story(("together", how), ("together", "stay")) for how in BACK},
    # A follower that ends by itself while node 0 runs.
    **{f"{how} on node 1": story(("together", "stay"), ("together", how)) for how in BACK},
    # No attempt has begun.
    "never begins": story(("together", "never begin"), ("together", "stay")),
    # What ends the script and not what it has started.
    "TERM to the script": story(("together", "script SIGTERM"), ("together", "stay")),
    "KILL to the script": story(("together", "script SIGKILL"), ("together", "stay")),
}


class Site:
    """A home in which a run's cargo lies, and the driver that runs its task there."""

    def __init__(self, driver: Driver, root: Path) -> None:
        self.driver, self.root = driver, root

    def task(self, plan: Plan) -> dict[str, Any]:
        """The task of a plan, with its cargo in place and an environment that is installed; whose
        interpreter is `python`."""
        price = Price(cloud="aws", usd_per_hour=1, spot=False)
        offer = Offer(0, "aws", "r1", "m", Machines(None, 2), (price,), use_spot=False)
        candidates = plan.load_recipe().hardware.any_of
        cargo = pack(plan, [price])
        cargo.write()
        placed = self.driver.home / there(plan.run).removeprefix("~/")
        placed.parent.mkdir(parents=True)
        cargo.folder.rename(placed)
        return task_config(plan, rank([offer], candidates), cargo.folder, OF_SKYPILOT, {})

    def install(self, plan: Plan, *command: str) -> None:
        """Let `~/xrun/python` be this command, in the environment that the cargo asks for."""
        cargo = self.driver.home / there(plan.run).removeprefix("~/")
        key = (cargo / "environment.key").read_text()
        home = self.driver.home / "xrun" / "environments" / key
        home.mkdir(parents=True, exist_ok=True)
        line = f'#!/bin/sh\nexport PYTHONPATH={SOURCES}\nexec {" ".join(command)} "$@"\n'
        (home / "python").write_text(line)
        (home / "python").chmod(0o755)
        (home / "ready").touch()

    def arm(self, plan: Plan, trap: dict[str, Any]) -> None:
        """Lay the trap of support.running.Project in the project that has travelled."""
        cargo = self.driver.home / there(plan.run).removeprefix("~/")
        whole = {"split": "train", "rank": 0, "stays": False, "committed": -1, "paced": False}
        (cargo / "project" / "trap.json").write_text(json.dumps(whole | trap))


def plan_of(root: Path, name: str) -> Plan:
    """The plan of a new project's run on two nodes of a cloud."""
    project = Project(root / name)
    hardware, store = (
        "hardware={any_of: [{nodes: 2, spot: false}]}",
        f"checkpoint.store={root}/{name}-state",
    )
    return project.plan(hardware, store, run=name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not PYTHON.exists():
        assert not os.environ.get("CI"), "make e2e makes .venv-driver"
        pytest.skip("Ray has an environment of its own: make e2e")
    with Driver(tmp_path_factory.mktemp("home")).up() as driver:
        yield Site(driver, tmp_path_factory.mktemp("projects"))


@pytest.fixture(scope="module")
def table(site: Site) -> dict[str, tuple[Ended, bool]]:
    """How each story's job ended, and whether the controller starts it again."""
    plan = plan_of(site.root, "stories")
    task = site.task(plan)
    site.install(plan, sys.executable, str(Path(__file__).with_name("stand_in.py")))
    jobs = {}
    for number, (name, told) in enumerate(STORIES.items()):
        stage = site.root / f"stage-{number}"
        stage.mkdir()
        jobs[name] = {"STORY": told, "STAGE": str(stage)}
    ended = site.driver.run(task["run"], jobs)
    restarts = site.driver.restarts(task, [each.codes or () for each in ended.values()])
    return {name: (ended[name], again) for name, again in zip(ended, restarts, strict=True)}


def show(table: dict[str, tuple[Ended, bool]]) -> str:
    """All of it, for a test that fails and for docs/decisions/0024."""
    return "\n".join(
        f"{name:28} {ended.status:10} {ended.codes!s:12} {'again' if again else 'over'}"
        for name, (ended, again) in table.items()
    )


def test_a_finished_run_is_over(table: dict[str, tuple[Ended, bool]]) -> None:
    assert table["0, the other before"] == (Ended("SUCCEEDED", None), False)


@pytest.mark.parametrize("code", FINAL)
def test_an_end_for_good_is_over(table: dict[str, tuple[Ended, bool]], code: int) -> None:
    """Whether the other node has ended, or is ended by the driver while it runs."""
    ended, again = table[f"{code}, the other before"]
    assert (set(ended.codes or ()), again) in [({code, 0}, False), ({code, CANCELLED}, False)]
    ended, again = table[f"{code}, the other runs"]
    assert (set(ended.codes or ()), again) == ({code, CANCELLED}, False), show(table)


@pytest.mark.parametrize("how", BACK)
def test_any_other_end_comes_back(table: dict[str, tuple[Ended, bool]], how: Any) -> None:
    """On whichever node, and whatever became of the other one."""
    for name in (f"{how}, the other before", f"{how}, the other runs", f"{how} on node 1"):
        ended, again = table[name]
        assert 75 in (ended.codes or ()), show(table)
        assert set(ended.codes or ()) <= {75, 0, CANCELLED}, show(table)
        assert again, show(table)


def test_machines_on_which_nothing_begins_come_back_too(
    table: dict[str, tuple[Ended, bool]],
) -> None:
    """By a code of their own, which xrun's plugin counts."""
    ended, again = table["never begins"]
    assert (set(ended.codes or ()), again) == ({76, CANCELLED}, True), show(table)


def test_the_script_outlives_a_signal(table: dict[str, tuple[Ended, bool]]) -> None:
    """It is passed on, and the code is that of what has saved. SIGKILL alone ends it, and then the
    run with it: nobody is left who could say more."""
    ended, again = table["TERM to the script"]
    assert (set(ended.codes or ()), again) == ({75, CANCELLED}, True)
    ended, again = table["KILL to the script"]
    assert (set(ended.codes or ()), again) == ({CANCELLED}, False)


@pytest.mark.parametrize(
    ("trap", "codes", "again"),
    [
        ({"do": "nan", "call": 1, "stays": True}, {6, 0}, False),
        ({"do": "SIGKILL", "call": 9, "rank": 1}, {75, 0}, True),
    ],
    ids=["a loss that is no number", "a killed rank"],
)
def test_the_supervisors_of_two_nodes_end_in_this_order(
    site: Site, trap: dict[str, Any], codes: set[int], again: bool, request: pytest.FixtureRequest
) -> None:
    """Real ones, which train: the follower with 0, and node 0 last, with the attempt's code."""
    name = f"real-{trap['do'].lower()}"
    plan = plan_of(site.root, name)
    task = site.task(plan)
    site.install(plan, sys.executable)
    site.arm(plan, trap)
    ended = site.driver.run(task["run"], {name: {}})[name]
    said = site.driver.said(name)
    assert set(ended.codes or ()) == codes, said
    assert site.driver.restarts(task, [ended.codes or ()]) == [again]
    (attempt,) = RunFolder(site.driver.home / "xrun" / "runs" / name).record().attempts
    assert attempt.code == max(codes), said


def test_a_node_that_is_gone_leaves_no_codes(site: Site) -> None:
    """The driver ends with it, and writes nothing that an exit code could match: the controller
    asks the cloud instead, which finds the cluster broken. Last, since it takes the node away."""
    plan = plan_of(site.root, "gone")
    task = site.task(plan)
    site.install(plan, sys.executable, str(Path(__file__).with_name("stand_in.py")))
    stage = site.root / "gone-stage"
    stage.mkdir()
    stays = {"STORY": story(("together", "stay"), ("together", "stay")), "STAGE": str(stage)}

    def take_away() -> None:
        until(lambda: (stage / "0").exists() and (stage / "1").exists(), "both nodes", 120)
        site.driver.kill(NODES[1])

    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(take_away)
        ended = site.driver.run(task["run"], {"gone": stays})["gone"]
        taken.result()
    assert ended == Ended("RUNNING", None)
