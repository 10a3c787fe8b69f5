"""SkyPilot's job controller: what it costs is told beside the offers, and what would fail there
before anything is launched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from support.sky_home import CLOUDS, SkyHome

pytestmark = pytest.mark.cloud

ASK = """
import json, sys
from dataclasses import asdict
from xrun.errors import XrunError
from xrun.launcher.sky.controller import find_controller
try:
    found = find_controller(json.loads(sys.argv[1]))
    print(json.dumps(found and asdict(found)))
except XrunError as error:
    print(json.dumps([error.exit_code, str(error)]))
"""
ANYWHERE = {"any_of": [{"accelerators": "H100:1", "use_spot": True}]}
ON_AWS = {"any_of": [{"infra": "aws", "accelerators": "H100:8", "use_spot": True}]}
INSIDE = "jobs: {controller: {consolidation_mode: true}}"


def home_with(folder: Path, *clouds: str, config: str = "{}") -> SkyHome:
    home = SkyHome(folder, config)
    home.enable(*clouds)
    return home


def ask(home: SkyHome, wanted: dict[str, Any]) -> Any:
    done = home.python(ASK, json.dumps(wanted))
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])


def test_the_cheapest_machine_that_can_host_it_is_priced(tmp_path: Path) -> None:
    """By SkyPilot's own rule and catalog: four processors and four times as many GB; Verda, which
    would be cheaper, cannot host it."""
    home = home_with(tmp_path / "all", *CLOUDS)
    assert ask(home, ANYWHERE) == {
        "cloud": "nebius",
        "instance": "cpu-d3_4vcpu-16gb",
        "usd_per_hour": 0.0992,
    }


def test_a_price_that_the_catalog_does_not_have_is_unknown(tmp_path: Path) -> None:
    """The controller goes where the task's resources may go."""
    home = home_with(tmp_path / "all", "aws", "nebius")
    assert ask(home, ON_AWS)["usd_per_hour"] is None


def test_without_a_cloud_that_can_host_it_nothing_is_launched(tmp_path: Path) -> None:
    """In one sentence, with the way out."""
    code, said = ask(home_with(tmp_path / "verda", "verda"), ANYWHERE)
    assert code == 3
    assert said.startswith("No enabled cloud (verda) can host SkyPilot's job controller")
    assert "consolidation_mode: true" in said


def test_inside_of_the_api_server_it_costs_nothing(tmp_path: Path) -> None:
    """Nor where the API server is somebody else's."""
    home = home_with(tmp_path / "inside", "verda", config=INSIDE)
    assert ask(home, ANYWHERE) is None


def test_a_bucket_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """SkyPilot refuses it when the launch has begun."""
    home = home_with(tmp_path / "bucket", *CLOUDS, config="jobs: {bucket: 'gs://files'}")
    code, said = ask(home, ANYWHERE)
    assert code == 3
    assert "gs://files" in said
    assert "`sky check gcp`" in said


def test_the_table_and_its_json_have_it(tmp_path: Path) -> None:
    home = home_with(tmp_path / "all", *CLOUDS)
    recipe = str(ROOT / "recipes" / "gpt_h100.yaml")
    told = home.xrun("plan", recipe, "--json", "--no-measure")
    assert told.code == 0, told.err
    assert set(json.loads(told.out)["controller"]) == {"cloud", "instance", "usd_per_hour"}
    assert "SkyPilot's job controller costs" in home.xrun("plan", recipe, "--no-measure").out
