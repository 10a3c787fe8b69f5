"""What clouds that the person has not enabled would charge, by SkyPilot's published price lists
alone. Nobody's account is asked; whether a job could really run there only SkyPilot can tell then.
"""

from __future__ import annotations

import contextlib
import csv
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ...recipe.schema import Candidate, Recipe
from ...run.prices import Price
from ..offers import Offer, affordable, cheapest_first
from ..throughput import Machines, Throughput
from .client import LOCAL, NoClouds, name_of, skypilot
from .offers import catalog_of, judged, kinds, too_small

_WITHOUT_PRICES = {"kubernetes", "slurm", "ssh", "local", "vsphere"}
_SECONDS = 5.0


def price_lists(enabled: Collection[str]) -> dict[str, Path]:
    """The price lists of the clouds that are not enabled, by their names; those of earlier days
    where they cannot be fetched, and none where there are none.

    Raises:
        LaunchError: SkyPilot is not installed.
    """
    with skypilot():
        from sky.utils.registry import CLOUD_REGISTRY

        names = {name_of(cloud) for cloud in CLOUD_REGISTRY.values()}
        others = sorted(names - set(enabled) - _WITHOUT_PRICES)
        with ThreadPoolExecutor(8) as threads:
            fetched = threads.map(_list, others, [_reachable()] * len(others))
            lists = dict(zip(others, fetched, strict=True))
    return {cloud: path for cloud, path in lists.items() if path is not None}


def check_lists(lists: Mapping[str, Path]) -> None:
    """There are price lists of clouds, where none is enabled.

    Raises:
        NoClouds: there are none; with where they would be.
    """
    if lists:
        return
    with skypilot():
        from sky.catalog.common import get_catalog_path
        from sky.skylet.constants import HOSTED_CATALOG_DIR_URL

        here = Path(get_catalog_path("aws/vms.csv")).parent.parent
        server = urllib.parse.urlsplit(HOSTED_CATALOG_DIR_URL).netloc
    raise NoClouds(
        f"No cloud is enabled in SkyPilot, and there is no price list to say what others would"
        f" charge: {server} cannot be reached, and {here} has none.",
        f"Nothing was measured. With a network the same command fetches them. {LOCAL}",
    )


def offers_elsewhere(
    recipe: Recipe, throughput: Throughput, lists: Mapping[str, Path]
) -> tuple[Offer, ...]:
    """The cheapest place of each cloud of these price lists, for each of the recipe's candidates
    and for spot and on demand, the cheapest first; only where the step fits."""
    found = [
        judged(offer, recipe, throughput)
        for number, candidate in enumerate(recipe.hardware.any_of)
        for cloud, path in lists.items()
        if candidate.clouds is None or cloud in candidate.clouds
        for offer in _cheapest(number, candidate, cloud, path)
    ]
    return tuple(cheapest_first([offer for offer in found if not too_small(offer)])[0])


def _reachable() -> bool:
    """Whether SkyPilot's lists can be fetched: its own question has no limit in time."""
    from sky.skylet.constants import HOSTED_CATALOG_DIR_URL

    try:
        with urllib.request.urlopen(HOSTED_CATALOG_DIR_URL, timeout=_SECONDS):  # noqa: S310  https
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _list(cloud: str, reachable: bool) -> Path | None:
    """A cloud's price list here, fetched if it can be."""
    from sky.catalog.common import get_catalog_path, read_catalog

    path = Path(get_catalog_path(f"{cloud}/vms.csv"))
    if not path.exists() and reachable:
        with contextlib.suppress(Exception):  # a cloud without a list has many ways to say so
            len(read_catalog(f"{cloud}/vms.csv"))
    return path if path.exists() else None


def _cheapest(number: int, candidate: Candidate, cloud: str, path: Path) -> Iterator[Offer]:
    date, source = catalog_of(cloud)
    listed = Price(cloud=cloud, usd_per_hour=0.0, date=date, source=source)
    prices: list[Price] = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if _is_meant(row, candidate):
                prices += _prices(row, candidate, listed)
    machines = Machines(candidate.accelerators, candidate.nodes)
    for spot in kinds(candidate):
        own = [price for price in prices if price.spot == spot and affordable(price, candidate)]
        if not own:
            continue
        best = min(own, key=lambda price: price.usd_per_hour)
        here = (best.region, best.instance)
        both = tuple(price for price in prices if (price.region, price.instance) == here)
        yield Offer(number, cloud, *here, machines, both, spot, enabled=False)


def _is_meant(row: Mapping[str, str], candidate: Candidate) -> bool:
    wanted = candidate.accelerators
    if candidate.regions is not None and row.get("Region") not in candidate.regions:
        return False
    name, count = row.get("AcceleratorName") or "", float(row.get("AcceleratorCount") or 0)
    return (name, count) == ((wanted.name, wanted.count) if wanted else ("", 0))


def _prices(row: Mapping[str, str], candidate: Candidate, of: Price) -> Iterator[Price]:
    for spot, column in ((True, "SpotPrice"), (False, "Price")):
        if text := row.get(column):
            yield replace(
                of,
                usd_per_hour=round(float(text) * candidate.nodes, 4),
                region=row.get("Region") or "",
                zone=row.get("AvailabilityZone") or "",
                instance=row.get("InstanceType") or "",
                accelerators=candidate.accelerators,
                spot=spot,
            )
