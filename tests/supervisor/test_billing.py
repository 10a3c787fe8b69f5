"""What this machine costs, by the prices that the launcher saw."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from loopback.metadata import Metadata
from xrun import environment
from xrun.run.record import AttemptRecord
from xrun.supervisor.billing import facts, price_now

NOW = 1_800_000_000.0
PRICES = [
    {
        "cloud": "AWS",
        "region": "us-east-1",
        "instance": "p4d",
        "accelerators": "A100:8",
        "spot": True,
        "usd_per_hour": 8.0,
        "date": "2026-11-01",
        "source": "catalog",
        "later": 1,
    },
    {
        "cloud": "aws",
        "region": None,
        "instance": "p5",
        "accelerators": "H100:8",
        "spot": False,
        "usd_per_hour": 30.0,
        "date": "2026-11-01",
        "source": "catalog",
    },
    {
        "cloud": "gcp",
        "region": "us-central1",
        "accelerators": "L4",
        "spot": True,
        "usd_per_hour": 0.5,
        "on_demand_usd_per_hour": 1.25,
        "date": "2026-11-02",
        "source": "catalog",
    },
]


def machine(cloud: str, region: str, accelerators: int, prices: Any = PRICES) -> dict[str, str]:
    """What an attempt finds in its environment."""
    info = {"cluster_name": "c", "cloud": cloud, "region": region, "zone": "z"}
    return {
        "SKYPILOT_CLUSTER_INFO": json.dumps(info),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(accelerators),
        environment.PRICES.name: json.dumps(prices),
        environment.METADATA_ADDRESS.name: "http://127.0.0.1:9",  # nobody there
    }


@pytest.mark.parametrize(
    ("where", "usd"),
    [
        (("GCP", "us-central1", 1), 0.5),
        (("AWS", "us-west-2", 8), 30.0),  # the other one is for another region
        (("AWS", "us-east-1", 8), 30.0),  # both fit: the dearer counts
        (("AWS", "us-east-1", 4), 30.0),  # none fits: the dearest of all
        (("Azure", "westeurope", 1), 30.0),
    ],
)
def test_an_attempt_finds_its_price(where: tuple[str, str, int], usd: float) -> None:
    """By cloud, region and number of accelerators; where that leaves several, or none, the dearest
    counts."""
    price = price_now(machine(*where))
    assert price is not None
    assert price.usd_per_hour == usd


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize(("spot", "usd"), [(True, 8.0), (False, 30.0)])
def test_a_machine_says_whether_it_is_a_spot_one(cloud: str, spot: bool, usd: float) -> None:
    """With `spot: auto` both prices fit; the cloud is asked. Where it does not answer, the dearer
    counts."""
    both = [
        {"cloud": cloud, "spot": True, "usd_per_hour": 8.0},
        {"cloud": cloud, "spot": False, "usd_per_hour": 30.0},
    ]
    here = machine(cloud.upper(), "r", 8, both)
    with Metadata(cloud, spot=spot) as server:
        price = price_now({**here, environment.METADATA_ADDRESS.name: server.url})
    assert price is not None
    assert price.usd_per_hour == usd
    nobody = price_now(here)
    assert nobody is not None
    assert nobody.usd_per_hour == 30.0


def test_prices_are_read_from_a_file(tmp_path: Path) -> None:
    """Which the variable names; without it no price is known, and nobody stumbles."""
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(PRICES))
    here = machine("GCP", "us-central1", 1) | {environment.PRICES.name: str(path)}
    price = price_now(here)
    assert price is not None
    assert price.usd_per_hour == 0.5
    path.unlink()
    assert price_now(here) is None


def test_the_price_goes_into_the_attempts_entry() -> None:
    """With the place, the kind of machine, the date and the source."""
    entry = facts(machine("GCP", "us-central1", 1), [], NOW)
    assert entry.pop("billed_from") <= NOW
    assert entry == {
        "cluster": "c",
        "cloud": "gcp",
        "region": "us-central1",
        "zone": "z",
        "accelerators": "L4",
        "spot": True,
        "usd_per_hour": 0.5,
        "on_demand_usd_per_hour": 1.25,
        "price_date": "2026-11-02",
        "source": "catalog",
    }


def test_machines_on_which_nothing_began_are_in_it_too() -> None:
    """As xrun's plugin tells of them, whether or not this one's price is known."""
    told = {environment.BARREN.name: json.dumps({"hours": 0.5, "usd": 4.0})}
    assert facts(told, [], NOW) == {"barren_hours": 0.5, "barren_usd": 4.0}
    entry = facts(machine("GCP", "us-central1", 1) | told, [], NOW)
    assert (entry["barren_usd"], entry["usd_per_hour"]) == (4.0, 0.5)
    nothing = {environment.BARREN.name: json.dumps({"hours": 0.0, "usd": 0.0})}
    assert facts(nothing, [], NOW) == {}


def test_a_machine_of_ones_own_costs_nothing() -> None:
    """Without SkyPilot and prices an attempt's entry says nothing."""
    assert facts({}, [], NOW) == {}


def test_a_machine_is_paid_from_its_start_on_but_once() -> None:
    """A cloud's machine costs from when it was switched on; a second attempt on it does not pay for
    the first one again."""
    environ, here = machine("GCP", "us-central1", 1), {"host": socket.gethostname()}
    assert facts(environ, [], NOW)["billed_from"] < NOW
    ended = [AttemptRecord("a", started=NOW - 10.0, ended=NOW - 0.5, **here)]
    assert facts(environ, ended, NOW)["billed_from"] == NOW - 0.5
    died = [AttemptRecord("a", started=NOW - 10.0, last_seen=NOW - 0.7, **here)]
    assert facts(environ, died, NOW)["billed_from"] == NOW - 0.7


def test_a_machine_that_was_there_before_is_paid_from_the_jobs_beginning() -> None:
    """With what it installs; a second attempt of the job does not pay for the first one again. A
    job that an older xrun has launched does not say when it began."""
    environ = machine("Slurm", "", 1)
    assert facts(environ, [], NOW)["billed_from"] == NOW
    for told, began in ((f"{NOW - 40:.0f}", NOW - 40), (f"{NOW + 5:.0f}", NOW), ("soon", NOW)):
        arrived = environ | {environment.ARRIVED.name: told}
        assert facts(arrived, [], NOW)["billed_from"] == began
    arrived = environ | {environment.ARRIVED.name: f"{NOW - 40:.0f}"}
    ended = [
        AttemptRecord("a", started=NOW - 30.0, ended=NOW - 0.5, host=socket.gethostname()),
    ]
    assert facts(arrived, ended, NOW)["billed_from"] == NOW - 0.5


def test_two_machines_at_once_are_both_paid() -> None:
    """Another machine, which still ran when this one was switched on, has not paid for it."""
    environ = machine("GCP", "us-central1", 1)
    elsewhere = [AttemptRecord("a", started=NOW - 10.0, last_seen=NOW, host="elsewhere")]
    assert facts(environ, elsewhere, NOW)["billed_from"] < NOW - 1.0
