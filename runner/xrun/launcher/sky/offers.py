"""A recipe's candidates -> offers, from SkyPilot's catalogs over the clouds that the person has
enabled.

The machines and prices are those that SkyPilot's optimizer ranks, found with the very calls that it
makes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import LaunchError
from ...recipe.schema import Candidate, Recipe
from ...run.plan import Plan
from ...run.prices import Price
from ..memory import GIB, fit
from ..offers import Offer, Offers, affordable, rank
from ..quote import quote
from ..throughput import Machines, Throughput
from .client import LOCAL, enabled_clouds, name_of, skypilot


def find_offers(
    plan: Plan, throughput: Throughput, *, any_memory: bool = False, any_nodes: bool = False
) -> Offers:
    """Every offer for a plan's recipe, ranked; `any_nodes` as in `rank`. `any_memory`: also where
    its step does not fit.

    Raises:
        LaunchError: no cloud is enabled, none offers what the recipe asks for, or what they offer
            has too little memory.
    """
    recipe, clouds = plan.load_recipe(), enabled_clouds()
    candidates = recipe.hardware.any_of
    with skypilot():
        catalogs = [_ask(candidate, clouds) for candidate in candidates]
    found = [
        offer
        for number, catalog in enumerate(catalogs)
        for offer in _offers(number, candidates[number], catalog)
    ]
    unable = sorted(
        {reason for catalog in catalogs for answer in catalog for reason in answer.unable}
    )
    if not found:
        raise _nothing(candidates, clouds, unable)
    known = [judged(offer, recipe, throughput) for offer in found]
    small = sorted({too_small(offer) for offer in known} - {""})
    if not any_memory:
        known = [offer for offer in known if not too_small(offer)]
    if not known:
        raise LaunchError(
            f"The step does not fit: {'; '.join(small)}.",
            "Take a smaller train.micro_batch, train.activation_checkpointing, or larger"
            " accelerators; --any-memory launches it all the same.",
        )
    left = "Does not fit" if any_memory else "Left out because the step does not fit"
    notes = [
        *_not_enabled(candidates, clouds),
        *(f"Left out: {reason}." for reason in unable),
        *(f"{left}: {each}." for each in small),
    ]
    return rank(known, candidates, notes, pinned=bool(unable), any_nodes=any_nodes)


def judged(offer: Offer, recipe: Recipe, throughput: Throughput) -> Offer:
    """The offer with what the run would take there, as far as that is known."""
    speed, cost = throughput.on(offer.machines), throughput.cost
    return replace(
        offer,
        speed=speed,
        quote=quote(
            recipe, throughput, speed, offer.hourly, spot=offer.use_spot, cloud=offer.cloud
        ),
        fit=fit(cost, recipe.train, offer.machines) if cost else None,
    )


def too_small(offer: Offer) -> str:
    """Which machines have too little memory, and by how much; "" where they have enough."""
    if offer.fit is None or offer.fit.fits:
        return ""
    short = (offer.fit.needed - offer.fit.there) / GIB
    return (
        f"{offer.machines} ({offer.fit} with micro-batches of {offer.fit.micro_batch}:"
        f" {short:.1f} GiB too few)"
    )


@dataclass(frozen=True)
class _Answer:
    """What one cloud offers for a candidate, and why it cannot give what it offers to a managed
    job."""

    cloud: str
    prices: tuple[Price, ...] = ()
    unable: tuple[str, ...] = ()
    fast: frozenset[str] = frozenset()
    """The instances that have a faster network."""


def _ask(candidate: Candidate, clouds: Sequence[Any]) -> list[_Answer]:
    """Ask every cloud that the candidate allows, all at once: the first question fetches its
    catalog."""
    wanted = [
        cloud for cloud in clouds if candidate.clouds is None or name_of(cloud) in candidate.clouds
    ]
    with ThreadPoolExecutor(max(1, len(wanted))) as threads:
        return list(threads.map(lambda cloud: _answer(candidate, cloud), wanted))


def _offers(number: int, candidate: Candidate, catalog: Sequence[_Answer]) -> list[Offer]:
    """One candidate's offers: a place each, twice where both spot and on-demand may be taken."""
    prices = [price for answer in catalog for price in answer.prices]
    fast = {(answer.cloud, instance) for answer in catalog for instance in answer.fast}
    machines = Machines(candidate.accelerators, candidate.nodes)
    offers = []
    for place in dict.fromkeys((price.cloud, price.region, price.instance) for price in prices):
        here = tuple(
            price for price in prices if (price.cloud, price.region, price.instance) == place
        )
        offers += [
            Offer(number, *place, machines, here, use_spot, fast_network=place[::2] in fast)
            for use_spot in kinds(candidate)
            if any(price.spot == use_spot and affordable(price, candidate) for price in here)
        ]
    return offers


def _answer(candidate: Candidate, cloud: Any) -> _Answer:
    """What a cloud offers, spot and on-demand, in every zone where it can be had."""
    from sky.utils.resources_utils import make_launchables_for_valid_region_zones

    found: list[Any] = []
    unable: list[str] = []
    fast: set[str] = set()
    for wish in _wishes(candidate, cloud):
        feasible = cloud.get_feasible_launchable_resources(wish, candidate.nodes).resources_list
        for machine in feasible[:1]:  # sorted by price, and the optimizer takes the first as well
            reason = _inability(cloud, machine, candidate.nodes)
            found += [] if reason else make_launchables_for_valid_region_zones(machine)
            unable += [reason] if reason and wish.use_spot in kinds(candidate) else []
            fast |= (
                {machine.instance_type} if _has_fast_network(cloud, machine, candidate) else set()
            )
    prices = tuple(_price(machine, candidate, cloud) for machine in found)
    return _Answer(name_of(cloud), prices, tuple(unable), frozenset(fast))


def _wishes(candidate: Candidate, cloud: Any) -> Iterator[Any]:
    """SkyPilot's resources for a candidate on a cloud; another cloud's regions are passed over."""
    import sky

    for region in candidate.regions or (None,):
        for spot in (True, False):
            with contextlib.suppress(ValueError):
                yield sky.Resources(
                    cloud=cloud,
                    region=region,
                    accelerators=str(candidate.accelerators) if candidate.accelerators else None,
                    use_spot=spot,
                    image_id=candidate.image,
                )


def _inability(cloud: Any, machine: Any, nodes: int) -> str:
    """Why a managed job cannot run there; "" if it can. SkyPilot itself asks when the job starts,
    and then the job fails."""
    from sky.clouds import CloudImplementationFeatures as Feature
    from sky.exceptions import NotSupportedError

    needed = {
        Feature.AUTODOWN,
        *machine.get_required_cloud_features(),
        *([Feature.MULTI_NODE] if nodes > 1 else []),
    }
    for feature in sorted(needed, key=lambda feature: feature.value):
        try:
            cloud.check_features_are_supported(machine, {feature})
        except NotSupportedError:
            spot = " on spot machines" if machine.use_spot else ""
            return (
                f"{name_of(cloud)} cannot run a managed job{spot}, SkyPilot says: no"
                f" {feature.value}"
            )
    return ""


def _has_fast_network(cloud: Any, machine: Any, candidate: Candidate) -> bool:
    """Whether SkyPilot can ask this cloud for the fastest network between the candidate's nodes. It
    comes with an image of the cloud's own, into which only a container's fits."""
    from sky.clouds import CloudImplementationFeatures as Feature
    from sky.exceptions import NotSupportedError

    own_image = candidate.image is not None and not candidate.image.startswith("docker:")
    if candidate.nodes == 1 or not candidate.accelerators or own_image:
        return False
    try:
        cloud.check_features_are_supported(machine, {Feature.CUSTOM_NETWORK_TIER})
    except NotSupportedError:
        return False
    return True


def _price(machine: Any, candidate: Candidate, cloud: Any) -> Price:
    date, source = catalog_of(name_of(cloud))
    return Price(
        cloud=name_of(cloud),
        usd_per_hour=round(machine.get_cost(3600) * candidate.nodes, 4),
        region=machine.region,
        zone=machine.zone or "",
        instance=machine.instance_type,
        accelerators=candidate.accelerators,
        spot=machine.use_spot,
        date=date,
        source=source,
    )


def catalog_of(cloud: str) -> tuple[str, str]:
    """The day on which a cloud's price list was fetched, and its name.

    SkyPilot touches the list itself also when it could not fetch it, so the day is that of the
    checksum beside it where there is one: that is written after a fetch only.
    """
    from sky.catalog.common import get_catalog_path

    prices, fetched = (
        Path(get_catalog_path(f"{folder}{cloud}/vms.csv{end}"))
        for folder, end in (("", ""), (".meta/", ".md5"))
    )
    if not prices.exists():
        return (
            time.strftime("%Y-%m-%d", time.gmtime()),
            f"SkyPilot has no price list for {cloud}: machines of your own",
        )
    when = (fetched if fetched.exists() else prices).stat().st_mtime
    return time.strftime("%Y-%m-%d", time.gmtime(when)), f"SkyPilot's catalog {cloud}/vms.csv"


def _nothing(
    candidates: Sequence[Candidate], clouds: Sequence[Any], unable: Sequence[str]
) -> LaunchError:
    wanted = "; ".join(dict.fromkeys(map(_wish, candidates)))
    names = ", ".join(name_of(cloud) for cloud in clouds)
    reasons = f" ({'; '.join(unable)})" if unable else ""
    return LaunchError(
        f"The enabled clouds ({names}) do not offer {wanted}{reasons}.",
        f"`sky check` enables more. {LOCAL}",
    )


def _wish(candidate: Candidate) -> str:
    machines = str(Machines(candidate.accelerators, candidate.nodes))
    spot = {True: " on spot", False: " on demand", "auto": ""}[candidate.spot]
    limit = (
        f" for at most ${candidate.max_hourly_cost:g} an hour" if candidate.max_hourly_cost else ""
    )
    return f"{machines}{spot}{limit}"


def _not_enabled(candidates: Sequence[Candidate], clouds: Sequence[Any]) -> list[str]:
    enabled = {name_of(cloud) for cloud in clouds}
    missing = sorted(
        {cloud for candidate in candidates for cloud in candidate.clouds or ()} - enabled
    )
    if not missing:
        return []
    names = ", ".join(missing)
    return [f"Left out, because SkyPilot has not enabled it: {names} (`sky check {missing[0]}`)."]


def kinds(candidate: Candidate) -> tuple[bool, ...]:
    """Whether spot machines, others, or both may be taken: spot first."""
    return (True, False) if candidate.spot == "auto" else (candidate.spot,)
