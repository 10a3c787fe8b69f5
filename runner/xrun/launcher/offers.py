"""Offers: which machines can be had where, what they cost, and which comes first.

SkyPilot's optimizer compares one hour. Here the whole run is compared where it is known or can be
estimated how fast the machines are, because a machine twice as dear can be three times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..recipe.schema import Candidate
from ..run.cost import Cost
from ..run.prices import Price
from .memory import Fit
from .quote import Quote
from .throughput import Machines, Speed


@dataclass(frozen=True)
class Offer:
    """One kind of machine of one candidate in one region. Dollars are for all nodes together.

    `spot` and `on_demand` are None where there is none; `quote` (the whole run, with the price of
    `use_spot`) where the speed or the number of steps is not known, `fit` where nobody knows what
    a step takes or how much memory there is.
    """

    candidate: int
    cloud: str
    region: str
    instance: str
    machines: Machines
    prices: tuple[Price, ...]
    use_spot: bool
    speed: Speed | None = None
    quote: Quote | None = None
    fit: Fit | None = None
    fast_network: bool = False
    """Whether the cloud has a faster network between such nodes, for those who ask for it."""
    enabled: bool = True
    """Whether SkyPilot could launch there; else its catalog alone says what it would cost."""

    @property
    def spot(self) -> float | None:
        """Dollars per hour of the cheapest zone, interruptible."""
        return self._cheapest(spot=True)

    @property
    def on_demand(self) -> float | None:
        """Dollars per hour without interruptions."""
        return self._cheapest(spot=False)

    @property
    def hourly(self) -> float:
        """Dollars per hour of what would be launched."""
        price = self._cheapest(spot=self.use_spot)
        assert price is not None
        return price

    @property
    def saving(self) -> float | None:
        """What spot saves, as a fraction of the on-demand price."""
        return 1 - self.spot / self.on_demand if self.spot is not None and self.on_demand else None

    @property
    def hours(self) -> float | None:
        """Hours that are to be expected from here to the end of the run."""
        return self.quote.hours.likely if self.quote else None

    @property
    def usd(self) -> float | None:
        """Dollars that are to be expected from here to the end of the run."""
        return self.quote.usd.likely if self.quote else None

    @property
    def work(self) -> float | None:
        """Dollars for a fixed amount of work: comparable among offers whose machines are known or
        estimated."""
        if self.speed is not None:
            return self.hourly / self.speed.steps_per_second
        return self.hourly / self.machines.peak if self.machines.peak else None

    @property
    def infra(self) -> str:
        """The place as SkyPilot writes it."""
        return f"{self.cloud}/{self.region}"

    def summary(self) -> dict[str, Any]:
        """The offer as JSON."""
        return {
            "cloud": self.cloud,
            "region": self.region,
            "instance": self.instance,
            "accelerators": str(self.machines.accelerators or ""),
            "nodes": self.machines.nodes,
            "use_spot": self.use_spot,
            "usd_per_hour": self.hourly,
            "spot_usd_per_hour": self.spot,
            "on_demand_usd_per_hour": self.on_demand,
            "saving": self.saving,
            "hours": self.hours,
            "usd": self.usd,
            "quote": self.quote.summary() if self.quote else None,
            "memory": self.fit.summary() if self.fit else None,
            "enabled": self.enabled,
            "speed": asdict(self.speed) if self.speed else None,
            "date": self.prices[0].date,
            "source": self.prices[0].source,
        }

    def _cheapest(self, *, spot: bool) -> float | None:
        return min(
            (price.usd_per_hour for price in self.prices if price.spot == spot), default=None
        )


@dataclass(frozen=True)
class Controller:
    """The machine of SkyPilot's job controller, one for all jobs of a person. `usd_per_hour` is
    None where nobody knows it, and then `instance` is ""."""

    cloud: str
    instance: str = ""
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Offers:
    """All offers, what is launched first at the front, and how that order came about.

    `ordered`: SkyPilot is given this very order, each offer pinned to its place; else it takes the
    cheapest hour, which is the same order, and stays right when prices change. `controller`: what
    is paid for besides; None where that is nothing. `others`: of other numbers of nodes, which a
    job may go on with later.
    """

    offers: tuple[Offer, ...]
    ordered: bool
    order: str
    notes: tuple[str, ...] = ()
    controller: Controller | None = None
    others: tuple[Offer, ...] = ()
    cost: Cost | None = None
    lacks: str = ""
    """Why nobody knows what a step takes."""
    elsewhere: tuple[Offer, ...] = ()
    """What clouds that are not enabled would charge, in the same order."""

    @property
    def best(self) -> Offer:
        """What is tried first."""
        return self.offers[0]

    @property
    def prices(self) -> list[Price]:
        """The prices of everything that may be launched, each with what the same costs on
        demand."""
        launchable = (
            replace(price, on_demand_usd_per_hour=offer.on_demand)
            for offer in (*self.offers, *self.others)
            for price in offer.prices
            if price.spot == offer.use_spot
        )
        return list(dict.fromkeys(launchable))


def cheapest_first(offers: Sequence[Offer]) -> tuple[list[Offer], bool]:
    """By the whole run where all speeds are known or can be estimated, else by the hour; and
    whether it is by the run."""
    speeds = {offer.speed is not None for offer in offers}
    by_work = len(speeds) == 1 and all(offer.work is not None for offer in offers)
    ordered = sorted(
        offers, key=lambda offer: (offer.work if by_work else offer.hourly, not offer.use_spot)
    )
    return ordered, by_work


def rank(
    offers: Sequence[Offer],
    candidates: Sequence[Candidate],
    notes: Sequence[str] = (),
    *,
    pinned: bool = False,
    any_nodes: bool = False,
) -> Offers:
    """The cheapest whole run first where all speeds are known or can be estimated, else the
    cheapest hour.

    A job of SkyPilot has one number of nodes and one setup, so those of the best offer are taken.
    `pinned`: SkyPilot must not look elsewhere than in these places. `any_nodes`: xrun's plugin may
    change the number of nodes.
    """
    ordered, by_work = cheapest_first(offers)
    shape = _shape(ordered[0], candidates)
    kept = tuple(offer for offer in ordered if _shape(offer, candidates) == shape)
    by_work = (
        by_work and len({offer.machines for offer in kept}) > 1
    )  # else the cheapest hour is the cheapest run
    capped = any(candidates[offer.candidate].max_hourly_cost for offer in kept)
    others = tuple(
        offer
        for offer in ordered
        if any_nodes and offer not in kept and _shape(offer, candidates)[1] == shape[1]
    )
    what = "one setup" if any_nodes else "one number of nodes and one setup"
    return Offers(
        kept,
        by_work or capped or pinned,
        _order(kept, by_work),
        (*notes, *_left_out(ordered, (*kept, *others), what)),
        others=others,
    )


def _order(offers: Sequence[Offer], by_work: bool) -> str:
    """How the order came about, in one sentence."""
    if not by_work:
        return "The cheapest hour first."
    if any(offer.speed is None for offer in offers):
        return "The cheapest whole run first, by the " + ESTIMATED
    guessed = sorted(
        {offer.speed.source for offer in offers if offer.speed and not offer.speed.measured}
    )
    return "The cheapest whole run first" + (
        f"; {guessed[0]}." if guessed else ", by measured speed."
    )


ESTIMATED = (
    "estimate that speed follows the data sheets' peak dense 16-bit TFLOP/s; it is measured in the"
    " first attempt."
)


def _shape(offer: Offer, candidates: Sequence[Candidate]) -> tuple[int, str | None]:
    """What all machines of a job have in common."""
    return offer.machines.nodes, candidates[offer.candidate].setup


def _left_out(offers: Sequence[Offer], kept: Sequence[Offer], what: str) -> list[str]:
    others = sorted({str(offer.machines) for offer in offers if offer not in kept})
    return [f"Left out, because a job has {what}: {', '.join(others)}."] if others else []


def affordable(price: Price, candidate: Candidate) -> bool:
    """Whether a candidate may cost that much."""
    return candidate.max_hourly_cost is None or price.usd_per_hour <= candidate.max_hourly_cost
