"""What machines cost an hour, as it was seen at a launch. The list travels with the job, where each
attempt finds itself in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..files import parsed, typed
from ..recipe.accelerators import Accelerators

SHARED = ("", "kubernetes", "slurm", "ssh")
"""Clouds where a machine has been running before the run came: the time since its start is not the
run's."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """One kind of machine in one place, in US dollars per hour for all nodes together.

    `on_demand_usd_per_hour` is what the same machines cost where nobody takes them away, as far as
    that was seen. `zone` is "" where the whole region has one price, `accelerators` is None on a
    machine without, `date` is the day on which SkyPilot has fetched the catalog `source`. In a list
    that somebody has written by hand, what is not said fits everything.
    """

    cloud: str
    usd_per_hour: float
    region: str = ""
    zone: str = ""
    instance: str = ""
    accelerators: Accelerators | None = None
    spot: bool | None = None
    on_demand_usd_per_hour: float | None = None
    date: str = ""
    source: str = ""

    def fits(self, cloud: str, region: str, accelerators: int) -> bool:
        """Whether a machine at this place with so many accelerators may be of this kind."""
        count = self.accelerators.count if self.accelerators else 0
        here = self.cloud.lower() == cloud and self.region in ("", region)
        return here and count in (0, accelerators)

    def to_json(self) -> dict[str, Any]:
        """As it travels, and as a launch is written down."""
        return {**asdict(self), "accelerators": str(self.accelerators or "")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Price:
        """Read what `to_json` wrote; keys that a newer xrun has added are ignored."""
        said = {name: each for name, each in dict(value).items() if each is not None}
        known = typed(cls, said)
        if {"cloud", "usd_per_hour"} - set(known):
            raise ValueError("a price has no cloud or no dollars")
        text = known.pop("accelerators", "")
        return cls(**known, accelerators=Accelerators.parse(text) if text else None)


def prices_json(prices: Iterable[Price]) -> str:
    """The list as text on one line."""
    return json.dumps([price.to_json() for price in prices], separators=(",", ":"))


def read_prices(text: str) -> list[Price]:
    """The list that `prices_json` wrote. Raises ValueError."""
    values = parsed(text)
    if not isinstance(values, list):
        raise ValueError("prices are a list")
    return [Price.from_json(value) for value in values]
