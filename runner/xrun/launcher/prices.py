"""What machines cost an hour, as it was seen at a launch. The list travels with the job, where each
attempt finds itself in it.

`spending.Price` is what reads it there; `zone`, which it does not know, is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Price:
    """One kind of machine in one place, in US dollars per hour for all nodes together.

    `zone` is "" where the whole region has one price, `accelerators` is "" on a machine without,
    `date` is the day on which SkyPilot has fetched the catalog `source`.
    """

    cloud: str
    region: str
    zone: str
    instance: str
    accelerators: str
    spot: bool
    usd_per_hour: float
    date: str
    source: str


def prices_json(prices: Iterable[Price]) -> str:
    """The text of `$XRUN_PRICES`, on one line."""
    return json.dumps([asdict(price) for price in prices], separators=(",", ":"))
