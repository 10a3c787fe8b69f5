"""xrun's plugin in the real SkyPilot: installed, loaded through its registry, and asked by the code
of its controller.

Covers `xrun.cli.setup`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.receivers import Webhook
from support.running import Project
from support.sky_home import CLOUDS, SkyHome
from xrun.errors import LaunchError
from xrun.launcher.sky import plugin
from xrun.launcher.wheel import pack_plugin

pytestmark = [pytest.mark.cloud, pytest.mark.once]

OTHER = {"class": "somebody.Plugin", "parameters": {"a": 1}}


OURS = {"class": "xrun_sky.plugin.XrunPlugin"}


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    home = SkyHome(tmp_path / "home")
    home.environment["XRUN_HOME"] = str(tmp_path / "runs")
    return home


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of SkyPilot's files of the person who runs this test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".sky").mkdir()
    return tmp_path / ".sky"


def files(sky: Path) -> dict[str, Any]:
    """What SkyPilot would read, and the wheels."""
    found = {path.name: yaml.safe_load(path.read_text()) for path in sky.glob("*plugins.yaml")}
    return {**found, "wheels": [path.name for path in sorted(sky.rglob("*.whl"))]}


def make(changes: list[plugin.Change]) -> None:
    for change in changes:
        change.make()


def test_the_plugin_is_installed_once_and_removed(sky: Path) -> None:
    """The server and controllers elsewhere name it; an older xrun's wheel goes."""
    old = sky / "xrun" / "wheels" / "xrun_sky-0.0.1-py3-none-any.whl"
    old.parent.mkdir(parents=True)
    old.touch()
    changes = plugin.installation()
    assert "+- class: xrun_sky.plugin.XrunPlugin" in changes[2].text()
    assert len(files(sky)["wheels"]) == 1, "nothing is written before the yes"
    make(changes)
    (wheel,) = files(sky)["wheels"]
    assert wheel != old.name
    assert files(sky)["plugins.yaml"] == {
        "plugins": [OURS],
        "controller_wheel_path": "~/.sky/xrun/wheels",
    }
    assert files(sky)["remote_plugins.yaml"] == {"plugins": [OURS]}
    assert plugin.installation() == []
    make(plugin.removal())
    assert files(sky) == {"wheels": []}
    assert plugin.removal() == []


def test_plugins_of_others_stay(sky: Path, tmp_path: Path) -> None:
    """With their folder of wheels, where ours goes too."""
    theirs = tmp_path / "wheels"
    before = {"plugins": [OTHER], "controller_wheel_path": str(theirs)}
    (sky / "plugins.yaml").write_text(yaml.safe_dump(before))
    make(plugin.installation())
    assert files(sky)["plugins.yaml"] == {**before, "plugins": [OTHER, OURS]}
    assert len(list(theirs.glob("xrun_sky-*.whl"))) == 1
    make(plugin.removal())
    assert files(sky) == {"plugins.yaml": before, "wheels": []}
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize("text", ["plugins: [", "plugins: 3", "[]", "plugins: [3]"])
def test_a_damaged_file_is_named(sky: Path, text: str) -> None:
    path = sky / "plugins.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError, match=f"{path}, which names SkyPilot's plugins, is damaged"):
        plugin.installation()
    assert path.read_text() == text


def test_the_wheel_needs_nothing(tmp_path: Path) -> None:
    """What it has can be imported without any other package; every file is in its RECORD."""
    name, wheel = pack_plugin()
    assert (name, wheel) == pack_plugin()
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        archive.extractall(tmp_path / "there")
        (record,) = (each for each in archive.namelist() if each.endswith("RECORD"))
        told = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
        assert sorted(told) == sorted(archive.namelist())
    code = "import xrun_sky.pilot; print(xrun_sky.pilot.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(tmp_path / "there")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "there"))


def test_a_plugin_of_another_xrun_is_told_with_the_way_out() -> None:
    """Its version follows from its sources."""
    assert list(plugin.other_version(plugin.OWN)) == []
    (said,) = plugin.other_version("0.1.0")
    assert f"has xrun's plugin 0.1.0, and this xrun comes with {plugin.OWN}: " in said
    assert "`xrun setup sky` installs this xrun's, and `sky api stop` ends the API server" in said


def test_an_api_server_elsewhere_is_told_how(home: SkyHome) -> None:
    home.environment["SKYPILOT_API_SERVER_ENDPOINT"] = "http://elsewhere.invalid:46580"
    refused = home.xrun("setup", "sky", "--yes")
    assert (refused.code, files(home.folder / ".sky")) == (3, {"wheels": []})
    assert "http://elsewhere.invalid:46580, not on this machine" in refused.err
    written = home.xrun("setup", "sky", "--wheel", str(home.folder))
    assert Path(written.out.strip()).parent == home.folder
    assert zipfile.is_zipfile(written.out.strip())


LOADED = """
import asyncio, json, sys, time
from dataclasses import replace
from pathlib import Path
import sky
from sky import backends, exceptions
from sky.jobs import recovery_strategy
from sky.server import plugins
from sky.utils import dag_utils

context = plugins.ExtensionContext(context=plugins.PluginContext.CONTROLLER)
plugins.load_plugins(context)
plugins.load_plugins(context)

from xrun.launcher.sky.cloud import sky_task
from xrun.launcher.sky.launch import prepare
from xrun.recipe.load import load_recipe
from xrun.run.plan import make_plan
from xrun_sky.strategy import XrunStrategy

path = Path(sys.argv[1])
hardware = "hardware={any_of: [{accelerators: 'H100:8', clouds: [nebius, aws]},"
hardware += "{accelerators: 'H100:8', nodes: 2, clouds: [aws], spot: true}], deadline: 36h}"
settings = [hardware, "train.micro_batch=1", "train.global_batch=64",
            "checkpoint.store=hub://alice/run", "alerts={to: [HOOK], on: [failed, stalled]}"]
launch = prepare(make_plan(load_recipe(path, settings), path), {})
secrets = dict.fromkeys(launch.task["secrets"], "value")
task = sky_task(launch.task, {**secrets, "HOOK": sys.argv[2]})
with sky.Dag() as dag:
    dag.add(task)
dag.name = task.name
dag_utils.fill_default_config_in_dag_for_job_launch(dag)
travelling = dag_utils.dump_chain_dag_to_yaml_str(dag)

asked = []


class Grounded(XrunStrategy):
    # Where no cloud is to be asked: every place is full but the fourth, and then but the first.
    grants = iter([4, 1, 1])

    async def _launch(self, max_retry=3, raise_on_failure=True, recovery=False):
        task = self.dag.tasks[0]
        (wish,) = task.resources
        asked.append({"infra": wish.infra.to_str(), "spot": wish.use_spot, "nodes": task.num_nodes,
                      "retries": max_retry, "recovery": recovery, "envs": dict(task.envs)})
        self.left = getattr(self, "left", None) or next(self.grants)
        self.left -= 1
        if self.left:
            raise exceptions.ManagedJobReachedMaxRetriesError("full")
        return time.time()


class Full(XrunStrategy):
    # No place has machines, until people were told of that.
    async def _launch(self, max_retry=3, raise_on_failure=True, recovery=False):
        if self._pilot.told:
            return time.time()
        raise exceptions.ManagedJobReachedMaxRetriesError("full")


class Forbidden(XrunStrategy):
    # No place gives any, for want of a right.
    async def _launch(self, max_retry=3, raise_on_failure=True, recovery=False):
        raise exceptions.ProvisionPrechecksError([ValueError("no right to do that")])


def executor(job, kind):
    lock = asyncio.Lock()
    task = dag_utils.load_chain_dag_from_yaml_str(travelling).tasks[0]
    made = recovery_strategy.StrategyExecutor.make(
        "cluster", backends.CloudVmRayBackend(), task, job, 0, None, set(), lock,
        asyncio.Condition(lock))
    assert type(made) is XrunStrategy, type(made)
    made.__class__ = kind
    return made


async def live():
    made = executor(7, Grounded)
    prices = made._prices()
    assert made.should_restart_on_failure([75])
    assert not made.should_restart_on_failure([1])
    barren = []
    for _ in range(5):
        made._pilot.asked += 1  # other machines
        barren.append(made.should_restart_on_failure([76, 137]))
    await made._telling
    assert barren == [True] * 4 + [False], barren
    made._pilot.barren, made._pilot.rests_until = [], 0.0
    await made.launch()
    await made._tell("finished", "The recipe does not want to hear of this.")
    await made.recover()
    asked.append({"again": True})
    full = executor(8, Full)
    told = full._pilot.assignment
    full._pilot.assignment = replace(told, places=told.places[:1], max_wait=0.0, retry=2.0)
    await full.launch()
    forbidden = executor(9, Forbidden)
    forbidden._pilot.assignment = replace(told, places=told.places[:1])  # the others are full
    try:
        await forbidden.launch()
        raise AssertionError("it has launched")
    except exceptions.ProvisionPrechecksError:
        pass
    other = executor(7, Grounded)
    await other.on_resume("cluster")
    await other.recover()
    return prices, [place.usd_per_hour for place in made._pilot.assignment.places]


now, then = asyncio.run(live())
print(json.dumps({"asked": asked, "now": now, "then": then, "notes": launch.offers.notes}))
"""


def test_the_controller_asks_the_plugin(home: SkyHome, tmp_path: Path) -> None:
    """What a launch has told arrives whole; places are asked one by one at the prices of SkyPilot's
    own catalogs, and what was lost is not the first to be asked again, by the next controller
    either. SkyPilot's launch alone is not made."""
    home.enable(*CLOUDS)
    asked = home.xrun("setup", "sky")
    assert (asked.code, files(home.folder / ".sky")) == (3, {"wheels": []}), asked.err
    installed = home.xrun("setup", "sky", "--yes")
    assert "The plugin is installed" in installed.out, installed.err
    project = Project(tmp_path)
    with Webhook() as hook:
        done = home.python(LOADED, str(project.recipe), hook.address, cwd=project.root)
    assert done.code == 0, done.err
    ended, waits, refused = ((said["id"].split()[-1], said["message"]) for _, said in hook.posted)
    assert (ended[0], waits[0], refused[0]) == ("failed", "stalled", "failed")
    assert ended[1].startswith(
        "5 times in a row machines have come on which no attempt could begin"
    )
    assert waits[1].startswith("No machine has been available for ")
    assert refused[1].startswith("No place gives machines. ")
    assert "no right to do that" in refused[1]
    told = json.loads(done.out.splitlines()[-1])
    assert told["now"] == told["then"]
    assert any("could still finish it by" in note for note in told["notes"])
    asked = told["asked"]
    again = asked.index({"again": True})
    assert all(each["retries"] == 1 for each in asked if "retries" in each)
    first, lost, back = asked[:4], asked[4], asked[again + 1]
    assert {each["nodes"] for each in first} == {1, 2}
    assert len({(each["infra"], each["nodes"]) for each in first}) == 4
    assert all(each["spot"] for each in first)
    granted = first[-1]
    assert (lost["infra"], lost["recovery"]) != (granted["infra"], False)
    assert back["infra"] != lost["infra"]
    price = json.loads(granted["envs"]["XRUN_PRICES"])[0]
    assert price["spot"] is True
    assert price["usd_per_hour"] in told["then"]
    assert granted["envs"]["XRUN_LEAVE_AT"] == ""
    assert json.loads(granted["envs"]["XRUN_BARREN"]) == {"hours": 0.0, "usd": 0.0}
