"""What a run has cost over all of its attempts, and when its budget ends it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from loopback.metadata import Metadata
from support.running import STEPS, Project, curve, record, steps_of
from xrun.machine.metadata import ADDRESS_NAME
from xrun.run import spending
from xrun.run.spending import allowance, dollars, hours, price_now, unknown

NOW = 1_800_000_000.0
HOUR = 3600.0
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
        "date": "2026-11-02",
        "source": "catalog",
    },
]


def machine(cloud: str, region: str, accelerators: int, prices: Any = PRICES) -> dict[str, str]:
    """What an attempt finds in its environment."""
    info = {"cluster": "c", "cloud": cloud, "region": region, "zone": "z"}
    return {
        "SKYPILOT_CLUSTER_INFO": json.dumps(info),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(accelerators),
        "XRUN_PRICES": json.dumps(prices),
        ADDRESS_NAME: "http://127.0.0.1:9",  # nobody there
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
        price = price_now({**here, ADDRESS_NAME: server.url})
    assert price is not None
    assert price.usd_per_hour == usd
    nobody = price_now(here)
    assert nobody is not None
    assert nobody.usd_per_hour == 30.0


def test_the_price_goes_into_the_attempts_entry() -> None:
    """With the place, the kind of machine, the date and the source."""
    entry = spending.facts(machine("GCP", "us-central1", 1), [], NOW)
    assert entry.pop("billed_from") <= NOW
    assert entry == {
        "cluster": "c",
        "cloud": "gcp",
        "region": "us-central1",
        "zone": "z",
        "accelerators": "L4",
        "spot": True,
        "usd_per_hour": 0.5,
        "price_date": "2026-11-02",
        "source": "catalog",
    }


def test_a_machine_of_ones_own_costs_nothing() -> None:
    """Without SkyPilot and prices an attempt's entry says nothing, and a budget in dollars is
    warned about."""
    assert spending.facts({}, [], NOW) == {}
    assert "Set budget.hours" in unknown({"usd": 5.0, "hours": None}, {})
    assert "budget.hours still counts" in unknown({"usd": 5.0, "hours": 1.0}, {})
    assert unknown({"usd": None}, {}) == unknown({"usd": 5.0}, {"usd_per_hour": 1.0}) == ""


def test_a_machine_is_paid_from_its_start_on_but_once() -> None:
    """A cloud's machine costs from when it was switched on; a second attempt on it does not pay for
    the first one again."""
    environ = machine("GCP", "us-central1", 1)
    assert spending.facts(environ, [], NOW)["billed_from"] < NOW
    ended = [{"started": NOW - 10.0, "ended": NOW - 0.5}]
    assert spending.facts(environ, ended, NOW)["billed_from"] == NOW - 0.5
    assert spending.facts(machine("Slurm", "", 1), [], NOW)["billed_from"] == NOW


def test_every_attempt_counts_with_its_own_price() -> None:
    """Hours and dollars are sums over the attempts; the one that runs counts until now."""
    attempts = [
        {"started": NOW - 9 * HOUR, "ended": NOW - 7 * HOUR, "usd_per_hour": 2.0},
        {
            "started": NOW - 4 * HOUR,
            "billed_from": NOW - 5 * HOUR,
            "ended": NOW - 4 * HOUR,
            "usd_per_hour": 3.0,
        },
        {"started": NOW - 1 * HOUR, "usd_per_hour": 0.5},
    ]
    assert hours(attempts, NOW) == pytest.approx(4.0)
    assert dollars(attempts, NOW) == pytest.approx(4.0 + 3.0 + 0.5)


def test_an_end_that_nobody_recorded_is_the_next_beginning() -> None:
    """A budget is never overdrawn because a machine vanished without a word."""
    attempts = [
        {"started": NOW - 5 * HOUR, "usd_per_hour": 1.0},
        {"started": NOW - 2 * HOUR, "usd_per_hour": 1.0},
    ]
    assert hours(attempts, NOW) == pytest.approx(5.0)


def test_an_unknown_price_counts_as_the_dearest() -> None:
    """Also as the rate at which the rest of the budget goes."""
    attempts = [
        {"started": NOW - 2 * HOUR, "ended": NOW - HOUR, "usd_per_hour": 4.0},
        {"started": NOW - HOUR},
    ]
    assert dollars(attempts, NOW) == pytest.approx(8.0)
    assert allowance({"usd": 12.0}, attempts, NOW).until == pytest.approx(NOW + HOUR)


def test_the_budget_ends_before_it_is_exceeded() -> None:
    """What comes first counts, dollars or hours, less what the end itself takes."""
    attempts = [{"started": NOW - 3 * HOUR, "usd_per_hour": 2.0}]
    left = allowance({"usd": 10.0, "hours": 24.0}, attempts, NOW)
    assert left.until == pytest.approx(NOW + 2 * HOUR)
    assert left.spent(NOW + 2 * HOUR - 61, ending=60.0) == ""
    assert (
        left.spent(NOW + 2 * HOUR - 36, ending=60.0) == "budget.usd: 9.98 of 10 dollars are spent."
    )
    assert (
        allowance({"usd": 10.0, "hours": 4.0}, attempts, NOW).spent(NOW + HOUR)
        == "budget.hours: 4 of 4 hours are used."
    )
    assert allowance({"usd": None, "hours": None}, attempts, NOW).spent(NOW * 2) == ""


def test_a_budget_in_dollars_ends_a_run_with_its_state_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is exceeded: exit 7 with the way on; the next attempt is refused before it starts;
    more money goes on."""
    for name, value in machine(
        "Slurm", "", 0, [{"cloud": "slurm", "usd_per_hour": 36.0, "date": "2026-11-01"}]
    ).items():
        monkeypatch.setenv(name, value)
    project = Project(tmp_path)
    done = project.attempt("budget.usd=0.29")  # less than the attempt's end may take
    assert done.code == 7, done.err
    assert "dollars are spent. Raise the budget" in done.err
    at = max(steps_of(project.run))
    assert 0 < at == max(curve(project.run)) < STEPS
    entry = record(project.run)["attempts"][-1]
    assert (entry["cloud"], entry["usd_per_hour"], entry["price_date"]) == (
        "slurm",
        36.0,
        "2026-11-01",
    )
    assert (entry["code"], entry["kind"]) == (7, "stopped")
    again = project.attempt("budget.usd=0.0001")
    assert again.code == 7
    assert len(record(project.run)["attempts"]) == 1, "nothing was started"
    assert project.attempt("budget.usd=100.0").code == 0
    card = (project.run.model / "README.md").read_text()
    assert re.search(r"Attempts: 2, 0 of them ended from outside\. They cost \$\d\.\d\d\.", card)


def test_a_budget_in_dollars_without_prices_is_warned_about(tmp_path: Path) -> None:
    """The run goes on, and says that its dollars are not counted."""
    done = Project(tmp_path).attempt("budget.usd=1.0", "train.steps=2")
    assert done.code == 0, done.err
    assert "nobody has said what this machine costs" in done.err
