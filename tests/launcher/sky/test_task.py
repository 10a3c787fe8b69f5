"""The task that SkyPilot gets: valid for every recipe, one rule of recovery everywhere, secrets by
name."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import ROOT
from support.sky_home import CLOUDS, SkyHome
from xrun.launcher.offers import Offer, rank
from xrun.launcher.sky.recovery import OF_SKYPILOT
from xrun.launcher.sky.task import launch_command, resources, task_config, task_yaml
from xrun.launcher.throughput import Machines
from xrun.recipe.accelerators import Accelerators
from xrun.recipe.load import load_recipe
from xrun.recipe.schema import Candidate
from xrun.run.plan import Plan, make_plan
from xrun.run.prices import Price
from xrun.supervisor import preempted

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
H100 = "H100:8"


def offer(
    candidate: int = 0,
    accelerators: str = H100,
    *,
    cloud: str = "aws",
    spot: bool = True,
    nodes: int = 1,
    fast: bool = False,
    **prices: float,
) -> Offer:
    """An offer with a price per zone."""
    each = Accelerators.parse(accelerators)
    machines = Machines(each, nodes)
    seen = tuple(
        Price(
            cloud=cloud,
            usd_per_hour=price,
            region="r1",
            zone=zone,
            instance="machine",
            accelerators=each,
            spot=spot,
        )
        for zone, price in prices.items()
    )
    return Offer(candidate, cloud, "r1", "machine", machines, seen, spot, fast_network=fast)


def plan_of(
    tmp_path: Path, *overrides: str, candidates: str = f"[{{accelerators: '{H100}'}}]"
) -> Plan:
    path = ROOT / "recipes" / "digits.yaml"
    wanted = [
        "train.micro_batch=1",
        f"hardware={{any_of: {candidates}}}",
        "checkpoint.store=hub",
        *overrides,
    ]
    return make_plan(load_recipe(path, wanted), path, environ={"XRUN_HOME": str(tmp_path / "runs")})


def config_of(plan: Plan, tmp_path: Path, *offers: Offer, **environ: str) -> dict[str, Any]:
    candidates = plan.load_recipe().hardware.any_of
    return task_config(
        plan, rank(offers or [offer(z1=20)], candidates), tmp_path / "cargo", OF_SKYPILOT, environ
    )


def test_every_candidate_recovers_by_the_same_rule(tmp_path: Path) -> None:
    """Exit 75 is "come back"; what SkyPilot writes for nodes that it has ended itself (137, 143)
    says nothing (tests/cluster/test_driver.py)."""
    config = config_of(plan_of(tmp_path), tmp_path)
    assert config["resources"]["job_recovery"] == {
        "strategy": "EAGER_NEXT_REGION",
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": [75, 76],
    }
    assert not [entry for entry in config["resources"]["any_of"] if "job_recovery" in entry]


def test_on_kubernetes_the_attempt_is_asked_before_its_pod_goes(tmp_path: Path) -> None:
    """By SkyPilot's hook, for as long as the module that asks waits; nowhere else is there one."""
    plan = plan_of(tmp_path)
    assert "config" not in config_of(plan, tmp_path)
    config = config_of(plan, tmp_path, offer(cloud="kubernetes", spot=False, z1=0.0))
    [hook] = config["config"]["hooks"]
    assert hook["events"] == ["preemption"]
    assert hook["timeout"] == preempted.SECONDS
    assert f"xrun.supervisor.preempted ~/xrun/runs/{plan.run}/plan.json" in hook["run"]
    done = subprocess.run(["bash", "-c", hook["run"]], env={"HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0, "a machine that is not set up yet has nothing to save"


def test_who_is_told_goes_along_by_name(tmp_path: Path) -> None:
    """The variables' names and the events for xrun's plugin, the addresses as secrets."""
    config = config_of(plan_of(tmp_path, "alerts={to: [HOOK], on: [failed]}"), tmp_path, HOOK="x")
    assert json.loads(config["envs"]["XRUN_ALERTS"]) == {"to": ["HOOK"], "on": ["failed"]}
    assert config["secrets"] == {"HF_TOKEN": None, "HOOK": None}
    assert "XRUN_ALERTS" not in config_of(plan_of(tmp_path), tmp_path).get("envs", {})


HOOKED = """
import json, sys
import sky
task = sky.Task.from_yaml_config(json.loads(sys.argv[1]))
print(json.dumps([resource.hooks for resource in task.resources]))
"""


@pytest.mark.cloud
def test_skypilot_takes_the_hook(home: SkyHome, tmp_path: Path) -> None:
    """Its own schema, on the resources that it hands to Kubernetes."""
    config = config_of(plan_of(tmp_path), tmp_path, offer(cloud="kubernetes", z1=0.0))
    given = {name: config[name] for name in ("resources", "config", "run")}
    done = home.python(HOOKED, json.dumps(given))
    assert done.code == 0, done.err
    assert json.loads(done.out)[0] == config["config"]["hooks"]


def test_auto_means_spot_and_then_on_demand() -> None:
    both = [offer(z1=20), offer(spot=False, z1=60)]
    assert resources(
        [Candidate(accelerators=H100)], rank(both, [Candidate(accelerators=H100)])
    ) == {
        "any_of": [
            {"accelerators": H100, "use_spot": True},
            {"accelerators": H100, "use_spot": False},
        ]
    }


def test_where_speeds_differ_candidates_are_ordered_and_pinned() -> None:
    candidates = [Candidate(accelerators="A100:8", disk=100), Candidate(accelerators=H100)]
    offers = rank([offer(0, "A100:8", z1=10), offer(1, cloud="nebius", z1=20)], candidates)
    assert resources(candidates, offers) == {
        "ordered": [
            {"infra": "nebius/r1", "accelerators": H100, "use_spot": True},
            {"infra": "aws/r1", "accelerators": "A100:8", "use_spot": True, "disk_size": 100},
        ]
    }


def test_the_highest_price_is_given_per_node_and_dear_zones_are_left_out() -> None:
    """SkyPilot compares a node's cheapest zone with the limit, and would then take a dearer one."""
    candidate = Candidate(accelerators=H100, nodes=2, max_hourly_cost=50)
    offers = rank([offer(nodes=2, z1=60, z2=40, z3=30)], [candidate])
    assert resources([candidate], offers) == {
        "ordered": [
            {
                "infra": f"aws/r1/{zone}",
                "accelerators": H100,
                "use_spot": True,
                "max_hourly_cost": 25,
            }
            for zone in ("z3", "z2")
        ]
    }


def test_clouds_and_regions_of_the_recipe_stay() -> None:
    candidate = Candidate(accelerators=H100, clouds=["aws", "gcp"], regions=["r1"], spot=True)
    assert (
        resources([candidate], rank([offer(z1=20)], [candidate]))["any_of"][0]["infra"] == "aws/r1"
    )
    anywhere = Candidate(accelerators=H100, clouds=["aws", "gcp"], spot=True)
    assert resources([anywhere], rank([offer(z1=20)], [anywhere]))["any_of"][0]["infra"] == "aws"


def test_several_nodes_get_the_fastest_network_that_a_cloud_has() -> None:
    """The others are not left out; one cloud is not asked for what it does not have."""
    candidate = Candidate(accelerators=H100, nodes=2)
    offers = [offer(nodes=2, fast=True, z1=20), offer(nodes=2, cloud="azure", z1=30)]
    assert resources([candidate], rank(offers, [candidate])) == {
        "any_of": [
            {"infra": "aws", "accelerators": H100, "use_spot": True, "network_tier": "best"},
            {"infra": "azure", "accelerators": H100, "use_spot": True},
        ]
    }


def test_secrets_go_by_name(tmp_path: Path) -> None:
    """No value is in the YAML or in the command, although this process has them."""
    environ = {
        "HF_TOKEN": "hf_secretsecret",
        "WANDB_API_KEY": "k" * 40,
        "MINE": "s3cret",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    plan = plan_of(tmp_path, "tracking.wandb={project: p}", "secrets=[MINE]")
    config = config_of(plan, tmp_path, **environ)
    text, command = task_yaml(config), launch_command(config, "job.yaml")
    assert config["secrets"] == {"MINE": None, "HF_TOKEN": None, "WANDB_API_KEY": None}
    assert config["envs"] == {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    assert shlex.split(command)[5:] == [
        "--secret",
        "MINE",
        "--secret",
        "HF_TOKEN",
        "--secret",
        "WANDB_API_KEY",
        "job.yaml",
    ]
    assert not [
        value
        for name, value in environ.items()
        if name in config["secrets"] and value in text + command
    ]


FILES = """files={
    data: ./README.md, '~/there/': ./docs,
    /copied: s3://bucket/prefix/, /azure: 'https://account.blob.core.windows.net/container/part',
    /mounted: {source: 'gs://bucket', mode: MOUNT},
    /cached: {source: 'r2://bucket', mode: MOUNT_CACHED},
    /hub: {source: 'hf://datasets/owner/name', mode: MOUNT}, /mnt/volume: {volume: datasets}
}""".replace("\n", " ")


def test_files_of_the_recipe_go_along(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FILES)
    config = config_of(plan, tmp_path)
    assert config["file_mounts"] == {
        f"~/xrun/{plan.run}/cargo": str(tmp_path / "cargo"),
        "~/data": str(ROOT / "README.md"),
        "~/there": str(ROOT / "docs"),
        "/copied": "s3://bucket/prefix",
        "/azure": "https://account.blob.core.windows.net/container/part",
        "/mounted": {"source": "gs://bucket", "mode": "MOUNT"},
        "/cached": {"source": "r2://bucket", "mode": "MOUNT_CACHED"},
        "/hub": {"source": "hf://datasets/owner/name", "mode": "MOUNT"},
    }
    assert config["volumes"] == {"/mnt/volume": "datasets"}


@pytest.mark.cloud
def test_skypilot_takes_buckets_and_volumes_as_the_recipe_names_them(
    home: SkyHome, tmp_path: Path
) -> None:
    """Its own reading and checks of the task, as a client makes them: what is in a bucket it asks
    at the launch."""
    given = config_of(plan_of(tmp_path, FILES), tmp_path)
    (tmp_path / "cargo").mkdir()
    done = home.python(MOUNTED, json.dumps(given | {"secrets": {"HF_TOKEN": "value"}}))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["copied"] == {
        target: source for target, source in given["file_mounts"].items() if isinstance(source, str)
    }
    assert told["mounted"] == {
        "/mounted": ["gs://bucket", "MOUNT"],
        "/cached": ["r2://bucket", "MOUNT_CACHED"],
        "/hub": ["hf://datasets/owner/name", "MOUNT"],
    }
    assert told["volumes"] == {"/mnt/volume": "datasets"}


def test_a_plan_of_before_buckets_has_files_as_texts(tmp_path: Path) -> None:
    """Its recipe says path -> path."""
    plan = plan_of(tmp_path, "files={data: ./README.md}")
    written = json.loads(plan.to_json())
    written["recipe"]["files"] = {"data": "./README.md"}
    older = Plan.from_json(json.dumps(written))
    assert config_of(older, tmp_path) == config_of(plan, tmp_path)


def test_the_yaml_is_what_was_made(tmp_path: Path) -> None:
    config = config_of(plan_of(tmp_path), tmp_path)
    assert yaml.safe_load(task_yaml(config)) == config


MOUNTED = """
import json, sys
import sky

task = sky.Task.from_yaml_config(json.loads(sys.argv[1]))
task.validate()
storages = {
    target: (storage.source, storage.mode.value)
    for target, storage in task.storage_mounts.items()
}
for storage in task.storage_mounts.values():
    storage._validate_storage_spec(None)  # what it asks of a source before it asks the cloud
print(json.dumps({"copied": task.file_mounts, "mounted": storages, "volumes": task.volumes}))
"""
VALIDATED = """
import json, sys
import sky
from pathlib import Path
from typing import Any
from xrun.run.plan import make_plan
from xrun.recipe.load import load_recipe
from xrun.launcher.sky.cloud import sky_task
from xrun.launcher.sky.launch import prepare

told = {}
for name in sys.argv[1:]:
    recipe = load_recipe(Path(name))
    if recipe.hardware.local:
        hardware = "hardware={any_of: [{accelerators: 'H100:1', disk: 100}]}"
        recipe = load_recipe(Path(name), [hardware, "checkpoint.store=hub"])
    plan = make_plan(recipe, Path(name))
    launch = prepare(plan, {})
    launch.write()
    task = sky_task(launch.task, dict.fromkeys(launch.task["secrets"], "value"))
    task.validate()
    recovery = [resource.job_recovery for resource in task.resources]
    spot = [resource.use_spot for resource in task.resources]
    secrets = sorted(task.secrets)
    told[plan.recipe["name"]] = {"secrets": secrets, "recovery": recovery, "spot": spot}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    home = SkyHome(tmp_path_factory.mktemp("sky"))
    home.enable(*CLOUDS)
    home.environment["XRUN_HOME"] = str(home.folder / "runs")
    return home


@pytest.mark.cloud
def test_every_recipe_gives_a_task_that_skypilot_takes(home: SkyHome) -> None:
    """Its own schema and checks; those that train here get a candidate."""
    done = home.python(VALIDATED, *map(str, RECIPES))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert len(told) == len(RECIPES)
    for task in told.values():
        assert all(
            recovery
            == {
                "max_restarts_on_errors": 0,
                "recover_on_exit_codes": [75, 76],
                "strategy": "EAGER_NEXT_REGION",
            }
            for recovery in task["recovery"]
        )
        assert set(task["spot"]) == {True, False}
    assert told["vit-a100"]["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]


NETWORKS = """
import json, sys
from pathlib import Path
from xrun.run.plan import make_plan
from xrun.recipe.load import load_recipe
from xrun.launcher.sky.cloud import sky_task
from xrun.launcher.sky.launch import prepare

path = Path(sys.argv[1])
told = []
for candidate in sys.argv[2:]:
    hardware = f"hardware={{any_of: [{candidate}]}}"
    recipe = load_recipe(path, [hardware, "checkpoint.store=hub", "train.micro_batch=1"])
    task = sky_task(prepare(make_plan(recipe, path), {}).task, {"HF_TOKEN": "x"})
    tiers = {str(each.cloud): each.network_tier for each in task.resources}
    told.append({cloud: tier and tier.value for cloud, tier in tiers.items()})
print(json.dumps(told))
"""


@pytest.mark.cloud
def test_skypilot_knows_who_has_a_fast_network(home: SkyHome) -> None:
    """Asked of its own clouds: AWS has one, Nebius where eight GPUs are in a node; one node needs
    none, and a machine image of the recipe's own would not fit."""
    ask = (
        "{accelerators: 'H100:8', nodes: 2, clouds: [aws, nebius]}",
        "{accelerators: 'H100:1', nodes: 2, clouds: [nebius]}",
        "{accelerators: 'H100:8', clouds: [aws]}",
        "{accelerators: 'H100:8', nodes: 2, clouds: [aws], regions: [us-east-1], image: ami-1}",
    )
    done = home.python(NETWORKS, str(ROOT / "recipes" / "digits.yaml"), *ask)
    assert done.code == 0, done.err
    assert json.loads(done.out) == [
        {"AWS": "best", "Nebius": "best"},
        {"Nebius": None},
        {"AWS": None},
        {"AWS": None},
    ]


@pytest.mark.cloud
def test_the_printed_command_is_one_that_skypilots_command_line_takes(home: SkyHome) -> None:
    """`xrun plan --sky`: the YAML lies where the command looks for it, with everything that it
    mounts."""
    done = home.xrun("plan", str(ROOT / "recipes" / "gpt_h100.yaml"), "--sky", "--no-measure")
    assert done.code == 0, done.err
    text, _, command = done.out.rstrip().rpartition("\n# ")
    first, *arguments = shlex.split(command)
    assert first == "sky"
    assert Path(arguments[-1]).read_text() == text
    cargo = next(iter(yaml.safe_load(text)["file_mounts"].values()))
    assert (Path(cargo) / "plan.json").is_file()
    parse = (
        "import sys; from sky.client.cli import command as sky; jobs ="
        " sky.cli.commands['jobs'].commands['launch'];print(jobs.make_context('launch',"
        " sys.argv[3:]).params['secret'])"
    )
    home.environment |= {"HF_TOKEN": "one", "WANDB_API_KEY": "two"}
    parsed = home.python(parse, *arguments)
    assert parsed.out.strip() == "(('HF_TOKEN', 'one'), ('WANDB_API_KEY', 'two'))", parsed.err
