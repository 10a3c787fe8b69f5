"""What machines cost an hour, as it was seen at a launch. The list travels with the job, so each attempt can find its own price.

In the job, `$XRUN_PRICES` is one JSON object:

    {"nodes": 2, "prices": [{"cloud": "aws", "region": "us-east-1", "zone": "use1-az1", "instance": "p4d.24xlarge",
                             "accelerators": "A100:8", "spot": true, "usd_per_hour": 4.931,
                             "seen": "2026-11-21", "source": "SkyPilot's catalog aws/vms.csv"}, ...]}

`usd_per_hour` is for all nodes together. `zone` is "" where the whole region has one price, `accelerators` is "" on a machine
without. `seen` is the day on which SkyPilot has fetched the catalog.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

ENVIRONMENT = "XRUN_PRICES"


@dataclass(frozen=True)
class Price:
    """One kind of machine in one place, in US dollars per hour for all nodes together."""

    cloud: str
    region: str
    zone: str
    instance: str
    accelerators: str
    spot: bool
    usd_per_hour: float
    seen: str
    source: str


def to_json(prices: Iterable[Price], nodes: int) -> str:
    """The text of `$XRUN_PRICES`, on one line."""
    return json.dumps({"nodes": nodes, "prices": [asdict(price) for price in prices]}, separators=(",", ":"))


def from_environment(environ: Mapping[str, str]) -> list[Price]:
    """The prices that travelled with the job; none outside of a job. Keys that a newer xrun has added are ignored."""
    known = Price.__dataclass_fields__
    rows = json.loads(environ.get(ENVIRONMENT) or "{}").get("prices", [])
    return [Price(**{name: row[name] for name in known}) for row in rows]


def price_here(
    prices: Iterable[Price], cloud: str, region: str, *, zone: str = "", count: int = 0, spot: bool | None = None
) -> Price | None:
    """The price of the machine that an attempt runs on, or None if it was not among those seen at the launch.

    `cloud`, `region` and `zone` as SKYPILOT_CLUSTER_INFO says, `count` as SKYPILOT_NUM_GPUS_PER_NODE. Where more than one fits
    (`spot=None`: nobody could tell), it is the dearest: a budget must not be exceeded because of a guess.
    """
    fitting = [
        price
        for price in prices
        if (price.cloud, price.region) == (cloud.lower(), region)
        and int(price.accelerators.partition(":")[2] or bool(price.accelerators)) == count
        and (spot is None or price.spot == spot)
    ]
    here = [price for price in fitting if price.zone in ("", zone)]
    return max(here or fitting, key=lambda price: price.usd_per_hour, default=None)
