"""Which node this is, from SkyPilot's environment."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import RECIPES
from xrun.machine.nodes import Nodes, Place, interface_of, meeting_port, nodes_of, place_of
from xrun.recipe.load import load_recipe
from xrun.run.plan import make_plan
from xrun.supervisor.ranks import rank_environment


def environ(rank: int, ips: str, accelerators: str) -> dict[str, str]:
    return {
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": ips,
        "SKYPILOT_NUM_NODES": str(len(ips.split())),
        "SKYPILOT_NUM_GPUS_PER_NODE": accelerators,
        "SKYPILOT_TASK_ID": "sky-managed-1",
    }


def test_without_skypilot_there_is_one_node() -> None:
    """With as many processes as the plan says."""
    assert nodes_of({}, 3) == Nodes(0, ("127.0.0.1",), 3)
    assert list(nodes_of({}, 3).ranks) == [0, 1, 2]
    assert nodes_of({}, 3).environment() == {}


def test_several_nodes_share_the_ranks() -> None:
    """A process per accelerator; the ranks go on from node to node."""
    nodes = nodes_of(environ(1, "10.0.0.4\n10.0.0.5\n10.0.0.6", "8"), 1)
    assert (nodes.count, nodes.world, nodes.ranks) == (3, 24, range(8, 16))
    assert (nodes.first, nodes.address, nodes.name(2)) == (
        "10.0.0.4",
        "10.0.0.5",
        "node 2 (10.0.0.6)",
    )


@pytest.mark.parametrize("accelerators", ["", "0", "1", "0.5"])
def test_a_machine_without_accelerators_has_one_process(accelerators: str) -> None:
    """On one cloud machine the ranks meet on loopback."""
    assert nodes_of(environ(0, "10.0.0.4", accelerators), 4) == Nodes(0, ("127.0.0.1",), 1)


@pytest.mark.parametrize("key", ["cluster_name", "cluster"])
def test_the_place_is_read_and_never_stops_anybody(key: str) -> None:
    """Clouds in lower case; what is missing or cannot be read is unknown."""
    info = {key: "x-1", "cloud": "AWS", "region": "us-east-1", "zone": None, "more": 1}
    assert place_of({"SKYPILOT_CLUSTER_INFO": json.dumps(info)}) == Place(
        "x-1", "aws", "us-east-1", ""
    )
    assert (
        place_of({"SKYPILOT_CLUSTER_INFO": "{"})
        == place_of({"SKYPILOT_CLUSTER_INFO": "3"})
        == place_of({})
        == Place()
    )


TOLD = """
import json
from types import SimpleNamespace
from sky.backends import CloudVmRayBackend
launched = SimpleNamespace(cloud="AWS", region="us-east-1", zone="us-east-1a")
handle = SimpleNamespace(cluster_name="x-1", launched_resources=launched)
print(json.dumps(CloudVmRayBackend()._skypilot_predefined_env_vars(handle)))
"""


@pytest.mark.cloud
def test_the_place_is_what_skypilot_says() -> None:
    """In the words of SkyPilot's own function, asked about a machine that it has launched."""
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert place_of(json.loads(done.stdout)) == Place("x-1", "aws", "us-east-1", "us-east-1a")


def test_all_nodes_meet_at_one_port() -> None:
    """Every node works out the same; other runs and other jobs meet elsewhere; the environment can
    name it."""
    ports = [meeting_port("digits-1", environ(rank, "10.0.0.4 10.0.0.5", "1")) for rank in (0, 1)]
    assert ports[0] == ports[1]
    assert meeting_port("digits-2", environ(0, "10.0.0.4 10.0.0.5", "1")) != ports[0]
    assert meeting_port("digits-1", {}) != ports[0]
    assert meeting_port("digits-1", {"XRUN_PORT": "12345"}) == 12345


def test_the_interface_is_found_by_its_address() -> None:
    """Of loopback (all of 127) and of this machine's own address; nobody has an address from a
    documentation's range."""
    assert interface_of("127.0.0.1") == interface_of("127.0.0.2") == "lo"
    assert interface_of("192.0.2.1") == interface_of("not an address") == ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no way out, so it has loopback only")
        own = probe.getsockname()[0]
    assert interface_of(own) in [name for _, name in socket.if_nameindex()]


def test_ranks_keep_freed_memory_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank's environment has it, whoever starts xrun can set it otherwise, and the recipe has the
    last word."""
    path = tmp_path / "recipes" / "recipe.yaml"
    path.parent.mkdir()
    (tmp_path / "pyproject.toml").touch()
    text = (RECIPES / "digits_mlp.yaml").read_text()

    def told(more: str = "") -> str:
        path.write_text(text + more)
        return rank_environment(make_plan(load_recipe(path), path), Nodes(), 0, 1)[
            "MALLOC_MMAP_MAX_"
        ]

    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    assert told() == "0"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert told() == "7"
    assert told('\nenv: {MALLOC_MMAP_MAX_: "9"}\n') == "9"


def test_a_gpus_memory_grows_in_segments_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has set torch's allocator, by its name of today or of before, is not overruled."""
    path = tmp_path / "recipes" / "recipe.yaml"
    path.parent.mkdir()
    (tmp_path / "pyproject.toml").touch()
    text = (RECIPES / "digits_mlp.yaml").read_text()
    new, old = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"

    def told(more: str = "") -> str | None:
        path.write_text(text + more)
        return rank_environment(make_plan(load_recipe(path), path), Nodes(), 0, 1).get(new)

    monkeypatch.delenv(new, raising=False)
    monkeypatch.delenv(old, raising=False)
    assert told() == "expandable_segments:True"
    assert told(f"\nenv: {{{new}: backend:native}}\n") == "backend:native"
    assert told(f"\nenv: {{{old}: backend:native}}\n") is None
    monkeypatch.setenv(old, "backend:native")
    assert told() is None
    monkeypatch.delenv(old)
    monkeypatch.setenv(new, "max_split_size_mb:64")
    assert told() == "max_split_size_mb:64"


def test_nccl_sums_in_one_order_where_the_recipe_is_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVLS is off with `train.deterministic`, and not without; the environment is asked first, and
    the recipe has the last word."""
    path = tmp_path / "recipes" / "recipe.yaml"
    path.parent.mkdir()
    (tmp_path / "pyproject.toml").touch()
    text = (RECIPES / "digits_mlp.yaml").read_text()

    def told(more: str = "", deterministic: str = "true") -> str | None:
        path.write_text(text + more)
        loaded = load_recipe(path, [f"train.deterministic={deterministic}"])
        return rank_environment(make_plan(loaded, path), Nodes(), 0, 1).get("NCCL_NVLS_ENABLE")

    monkeypatch.delenv("NCCL_NVLS_ENABLE", raising=False)
    assert told() == "0"
    assert told(deterministic="false") is None
    assert told('\nenv: {NCCL_NVLS_ENABLE: "1"}\n') == "1"
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "2")
    assert told() == "2"


def test_gloo_and_nccl_are_told_the_interface() -> None:
    """NCCL's name is exact: without the sign it would take every interface whose name begins like
    this."""
    told = Nodes(1, ("127.0.0.1", "127.0.0.2"), 1).environment()
    assert told == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
