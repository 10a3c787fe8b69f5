"""What a run has cost, over all of its attempts, and how long its budget lasts.

An attempt's entry in the run's record says from when on its machines cost money, how much an hour,
and when it ended. The price is the one that the launcher saw: it sends a list along, and the
attempt finds itself in it. Where something is not known, the answer is the dearer one, so that a
budget is never overdrawn because of it: of several prices that fit, the highest counts, and an
attempt whose end nobody recorded counts until the next one began. What a cloud bills after an
attempt has ended (a minute or two until the machine is gone) is not in it, nor are storage and
traffic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..machine.nodes import Place, place_of

PRICES_NAME = "XRUN_PRICES"
"""The environment variable with the prices that the launcher saw, as a JSON list of `Price`."""
WAY_ON = "Raise the budget and start the same command again to go on."
_SHARED = ("", "kubernetes", "slurm", "ssh")
"""Where a machine has been running before the run came: the time since its start is not the
run's."""
TIDY_SECONDS = 30.0
"""What the end of an attempt takes besides its last save."""


@dataclass(frozen=True)
class Price:
    """Dollars per hour for all nodes together of one kind of machine, when and where they were
    seen; None fits everything."""

    cloud: str
    usd_per_hour: float
    region: str | None = None
    instance: str | None = None
    accelerators: str | None = None
    spot: bool | None = None
    date: str = ""
    source: str = ""

    def fits(self, place: Place, accelerators: int) -> bool:
        """Whether a machine at this place with so many accelerators may be of this kind."""
        count = int(self.accelerators.partition(":")[2] or 1) if self.accelerators else 0
        return (
            self.cloud.lower() == place.cloud
            and self.region in (None, "", place.region)
            and count in (0, accelerators)
        )


def prices_of(environ: Mapping[str, str]) -> list[Price]:
    """What the launcher saw; keys that a newer one has added are ignored."""
    known = Price.__dataclass_fields__
    values = json.loads(environ.get(PRICES_NAME) or "[]")
    return [Price(**{name: value[name] for name in known if name in value}) for value in values]


def price_now(environ: Mapping[str, str]) -> Price | None:
    """What this machine costs: the dearest that fits it, else the dearest of all; None if nobody
    knows any price.

    The cloud is asked whether it is a spot machine where that makes the difference.
    """
    prices, place = prices_of(environ), place_of(environ)
    accelerators = int(float(environ.get("SKYPILOT_NUM_GPUS_PER_NODE") or 0))
    fitting = [price for price in prices if price.fits(place, accelerators)]
    if {True, False} <= {price.spot for price in fitting}:
        from ..machine.metadata import is_spot  # an HTTP client, which only machines of clouds need

        spot = is_spot(place.cloud, environ)
        fitting = [price for price in fitting if None in (price.spot, spot) or price.spot == spot]
    return max(fitting or prices, key=lambda price: price.usd_per_hour, default=None)


def facts(
    environ: Mapping[str, str], attempts: Sequence[Mapping[str, Any]], now: float
) -> dict[str, Any]:
    """What a new attempt's entry says of its machine and its price; `attempts` came before."""
    price, place = price_now(environ), place_of(environ)
    if price is None:
        return {name: value for name, value in asdict(place).items() if value}
    told = {
        name: value
        for name, value in asdict(price).items()
        if value not in (None, "") and name != "date"
    }
    where = {name: value for name, value in asdict(place).items() if value}
    return {
        **told,
        **where,
        "price_date": price.date,
        "billed_from": _billed_from(place, attempts, now),
    }


def _billed_from(place: Place, attempts: Sequence[Mapping[str, Any]], now: float) -> float:
    """When this machine began to cost money: when it was switched on, but no attempt before this
    one has paid for the same."""
    if place.cloud in _SHARED:
        return now
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    paid = [float(attempts[-1].get("ended", attempts[-1]["started"]))] if attempts else []
    return min(now, max([now - uptime, *paid]))


def seconds(attempts: Sequence[Mapping[str, Any]], now: float) -> list[float]:
    """How long each attempt's machines have run; the last one, if it has not ended, until `now`."""
    begins = [float(attempt.get("billed_from", attempt["started"])) for attempt in attempts]
    nexts = [*begins[1:], now]
    ends = [
        float(attempt.get("ended", after)) for attempt, after in zip(attempts, nexts, strict=True)
    ]
    return [max(0.0, end - begin) for begin, end in zip(begins, ends, strict=True)]


def hours(attempts: Sequence[Mapping[str, Any]], now: float) -> float:
    """Hours of machine time over all attempts, whatever the number of nodes."""
    return sum(seconds(attempts, now)) / 3600


def dollars(attempts: Sequence[Mapping[str, Any]], now: float) -> float:
    """US dollars over all attempts."""
    return sum(
        rate * time for rate, time in zip(_rates(attempts), seconds(attempts, now), strict=True)
    )


def _rates(attempts: Sequence[Mapping[str, Any]]) -> list[float]:
    """Dollars per second of each; one whose price nobody knows counts as the dearest one that is
    known, else as nothing."""
    dearest = max([float(attempt.get("usd_per_hour", 0.0)) for attempt in attempts], default=0.0)
    return [float(attempt.get("usd_per_hour", dearest)) / 3600 for attempt in attempts]


@dataclass(frozen=True)
class Allowance:
    """How long the running attempt may go on: `until` in seconds of `time.time()`, and what is
    limited.

    `limit` dollars or hours are used up then, at `rate` of them per second.
    """

    until: float = float("inf")
    key: str = ""
    limit: float = 0.0
    rate: float = 0.0

    def spent(self, now: float, ending: float = 0.0) -> str:
        """The sentence that ends the run once no more is left than its end takes, `ending` seconds;
        "" before."""
        if now + ending < self.until:
            return ""
        used = self.limit - (self.until - now) * self.rate
        what = "dollars are spent" if self.key == "usd" else "hours are used"
        return f"budget.{self.key}: {used:.4g} of {self.limit:g} {what}."


def allowance(
    budget: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], now: float
) -> Allowance:
    """What is left of `budget` (keys `usd` and `hours`; None: no limit) for the last one of these
    attempts, which runs."""
    found = [Allowance()]
    for key, used, rate in (
        ("hours", hours(attempts, now), 1 / 3600),
        ("usd", dollars(attempts, now), _rates(attempts)[-1]),
    ):
        if budget.get(key) and rate:
            found.append(
                Allowance(now + (budget[key] - used) / rate, key, float(budget[key]), rate)
            )
    return min(found, key=lambda one: one.until)


def unknown(budget: Mapping[str, Any], attempt: Mapping[str, Any]) -> str:
    """The warning about a budget in dollars where nobody knows what the machine costs; ""
    otherwise."""
    if not budget.get("usd") or attempt.get("usd_per_hour"):
        return ""
    limited = (
        "budget.hours still counts."
        if budget.get("hours")
        else "Set budget.hours to limit the run."
    )
    return (
        "budget.usd: nobody has said what this machine costs, so its dollars are not counted."
        f" {limited}"
    )
