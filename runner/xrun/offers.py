"""A recipe's candidates -> offers: which machines can be had where, what they cost, and which comes first.

The feasible machines and their prices are what SkyPilot's optimizer would rank, found with the very calls that it makes, from its
catalogs and over the clouds that the person has enabled. The optimizer compares one hour; here the whole run is compared where
it is known how fast the machines are, because a machine twice as dear can be three times as fast.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .errors import LaunchError
from .plan import Plan
from .prices import Price
from .recipe import Candidate
from .skypilot import LOCAL, enabled_clouds, name_of, skypilot
from .throughput import Machines, Speed, Throughput


@dataclass(frozen=True)
class Offer:
    """One kind of machine of one candidate in one region. Dollars are for all nodes together.

    `spot` and `on_demand` are None where there is none; `hours` and `usd` (the whole run, with the price of `use_spot`) where the
    speed or the number of steps is not known.
    """

    candidate: int
    cloud: str
    region: str
    instance: str
    machines: Machines
    prices: tuple[Price, ...]
    use_spot: bool
    speed: Speed | None = None
    hours: float | None = None

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
    def usd(self) -> float | None:
        """Dollars from here to the end of the run."""
        return self.hourly * self.hours if self.hours is not None else None

    @property
    def work(self) -> float | None:
        """Dollars for a fixed amount of work: comparable among offers whose machines are known or estimated."""
        if self.speed is not None:
            return self.hourly / self.speed.steps_per_second
        return self.hourly / self.machines.peak if self.machines.peak else None

    @property
    def infra(self) -> str:
        """The place as SkyPilot writes it."""
        return f"{self.cloud}/{self.region}"

    @property
    def seen(self) -> str:
        """The day of the price."""
        return self.prices[0].seen

    def summary(self) -> dict[str, Any]:
        """The offer as JSON."""
        return {
            "cloud": self.cloud, "region": self.region, "instance": self.instance, "accelerators": self.machines.accelerators,
            "nodes": self.machines.nodes, "use_spot": self.use_spot, "usd_per_hour": self.hourly, "spot_usd_per_hour": self.spot,
            "on_demand_usd_per_hour": self.on_demand, "saving": self.saving, "hours": self.hours, "usd": self.usd,
            "speed": asdict(self.speed) if self.speed else None, "seen": self.seen, "source": self.prices[0].source,
        }  # fmt: skip

    def _cheapest(self, *, spot: bool) -> float | None:
        return min((price.usd_per_hour for price in self.prices if price.spot == spot), default=None)


@dataclass(frozen=True)
class Offers:
    """All offers, what is launched first at the front, and how that order came about.

    `ordered`: SkyPilot is given this very order; else it takes the cheapest hour, which is the same order.
    """

    offers: tuple[Offer, ...]
    ordered: bool
    order: str
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Offer:
        """What is tried first."""
        return self.offers[0]

    @property
    def prices(self) -> list[Price]:
        """Every price that was seen, once."""
        return list(dict.fromkeys(price for offer in self.offers for price in offer.prices))


def find_offers(plan: Plan, throughput: Throughput) -> Offers:
    """Every offer for a plan's recipe, ranked.

    Raises:
        LaunchError: no cloud is enabled, or none offers what the recipe asks for.
    """
    candidates, clouds = plan.load_recipe().hardware.any_of, enabled_clouds()
    found = [offer for number, wanted in enumerate(candidates) for offer in _offers(number, wanted, clouds)]
    names = ", ".join(name_of(cloud) for cloud in clouds)
    if not found:
        wanted = "; ".join(_wish(candidate) for candidate in candidates)
        raise LaunchError(f"The enabled clouds ({names}) do not offer {wanted}.", f"`sky check` enables more clouds. {LOCAL}")
    known = [replace(offer, speed=throughput.on(offer.machines), hours=throughput.hours_on(offer.machines)) for offer in found]
    return rank(known, candidates, _not_enabled(candidates, clouds))


def rank(offers: Sequence[Offer], candidates: Sequence[Candidate], notes: Iterable[str] = ()) -> Offers:
    """The cheapest whole run first where all speeds are known or can be estimated, else the cheapest hour.

    A job of SkyPilot has one number of nodes and one setup, so those of the best offer are taken.
    """
    speeds = {offer.speed is not None for offer in offers}
    by_work = len(speeds) == 1 and all(offer.work is not None for offer in offers)
    ordered = sorted(offers, key=lambda offer: (offer.work if by_work else offer.hourly, not offer.use_spot))
    shape = _shape(ordered[0], candidates)
    kept = tuple(offer for offer in ordered if _shape(offer, candidates) == shape)
    notes = [*notes, *_left_out(ordered, kept)]
    same_speed = len({(offer.machines, offer.speed) for offer in kept}) == 1
    capped = any(candidates[offer.candidate].max_hourly_cost for offer in kept)
    return Offers(kept, (by_work and not same_speed) or capped, _order(kept, by_work and not same_speed), tuple(notes))


def _order(offers: Sequence[Offer], by_work: bool) -> str:
    """How the order came about, in one sentence."""
    if not by_work:
        return "The cheapest hour first."
    if any(offer.speed is None for offer in offers):
        return "The cheapest whole run first, by the " + ESTIMATED
    guessed = sorted({offer.speed.source for offer in offers if offer.speed and not offer.speed.measured})
    return "The cheapest whole run first" + (f"; {guessed[0]}." if guessed else ", by measured speed.")


ESTIMATED = "estimate that speed follows the data sheets' peak dense 16-bit TFLOP/s; it is measured in the first attempt."


def _offers(number: int, candidate: Candidate, clouds: Sequence[Any]) -> list[Offer]:
    """One candidate's offers: a place each, twice where both spot and on-demand may be taken."""
    wanted = [cloud for cloud in clouds if candidate.clouds is None or name_of(cloud) in candidate.clouds]
    with ThreadPoolExecutor(max(1, len(wanted))) as threads:
        prices = [price for found in threads.map(lambda cloud: _prices(candidate, cloud), wanted) for price in found]
    machines = Machines(candidate.accelerators or "", candidate.nodes)
    offers = []
    for place in dict.fromkeys((price.cloud, price.region, price.instance) for price in prices):
        here = tuple(price for price in prices if (price.cloud, price.region, price.instance) == place)
        offers += [
            Offer(number, *place, machines, here, use_spot)
            for use_spot in _kinds(candidate)
            if any(price.spot == use_spot and affordable(price, candidate) for price in here)
        ]
    return offers


def _kinds(candidate: Candidate) -> tuple[bool, ...]:
    return (True, False) if candidate.spot == "auto" else (candidate.spot,)


def affordable(price: Price, candidate: Candidate) -> bool:
    """Whether a candidate may cost that much."""
    return candidate.max_hourly_cost is None or price.usd_per_hour <= candidate.max_hourly_cost


def _prices(candidate: Candidate, cloud: Any) -> list[Price]:
    """What a cloud offers for a candidate, spot and on-demand, in every zone where it can be had."""
    with skypilot() as sky:
        from sky.utils.resources_utils import make_launchables_for_valid_region_zones

        found = []
        for spot in (True, False):
            wish = sky.Resources(cloud=cloud, accelerators=candidate.accelerators, use_spot=spot)
            feasible = cloud.get_feasible_launchable_resources(wish, candidate.nodes).resources_list
            for machine in feasible[:1]:  # sorted by price, and the optimizer takes the first as well
                found += make_launchables_for_valid_region_zones(machine)
        if candidate.regions is not None:
            found = [machine for machine in found if machine.region in candidate.regions]
        return [_price(machine, candidate, cloud) for machine in found]


def _price(machine: Any, candidate: Candidate, cloud: Any) -> Price:
    seen, source = _catalog(name_of(cloud))
    return Price(
        name_of(cloud), machine.region, machine.zone or "", machine.instance_type, candidate.accelerators or "",
        machine.use_spot, round(machine.get_cost(3600) * candidate.nodes, 4), seen, source,
    )  # fmt: skip


def _catalog(cloud: str) -> tuple[str, str]:
    """The day on which a cloud's price list was fetched, and its name.

    SkyPilot touches the list itself also when it could not fetch it, so the day is that of the checksum beside it where there is
    one: that is written after a fetch only.
    """
    from sky.catalog.common import get_catalog_path

    prices, fetched = (Path(get_catalog_path(f"{folder}{cloud}/vms.csv{end}")) for folder, end in (("", ""), (".meta/", ".md5")))
    if not prices.exists():
        return time.strftime("%Y-%m-%d", time.gmtime()), f"SkyPilot has no price list for {cloud}: machines of your own"
    when = (fetched if fetched.exists() else prices).stat().st_mtime
    return time.strftime("%Y-%m-%d", time.gmtime(when)), f"SkyPilot's catalog {cloud}/vms.csv"


def _wish(candidate: Candidate) -> str:
    machines = str(Machines(candidate.accelerators or "", candidate.nodes))
    spot = {True: " on spot", False: " on demand", "auto": ""}[candidate.spot]
    limit = f" for at most ${candidate.max_hourly_cost:g} an hour" if candidate.max_hourly_cost else ""
    return f"{machines}{spot}{limit}"


def _not_enabled(candidates: Sequence[Candidate], clouds: Sequence[Any]) -> list[str]:
    enabled = {name_of(cloud) for cloud in clouds}
    missing = sorted({cloud for candidate in candidates for cloud in candidate.clouds or ()} - enabled)
    return [f"Left out, because SkyPilot has not enabled it: {', '.join(missing)} (`sky check {missing[0]}`)."] if missing else []


def _shape(offer: Offer, candidates: Sequence[Candidate]) -> tuple[int, str | None]:
    """What all machines of a job have in common."""
    return offer.machines.nodes, candidates[offer.candidate].setup


def _left_out(offers: Sequence[Offer], kept: Sequence[Offer]) -> list[str]:
    others = sorted({str(offer.machines) for offer in offers if offer not in kept})
    return [f"Left out, because a job has one number of nodes and one setup: {', '.join(others)}."] if others else []
