"""What this machine costs: the launcher sends along the prices that it saw, and the attempt finds
itself in them. Of several that fit, the highest counts, so that a budget is never overdrawn."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import environment
from ..errors import LaunchError
from ..files import read_small
from ..machine.nodes import Place, accelerators_of, place_of
from ..run.prices import SHARED, Price, read_prices
from ..run.record import AttemptRecord


def price_now(environ: Mapping[str, str]) -> Price | None:
    """What this machine costs: the dearest that fits it, else the dearest of all; None if nobody
    knows any price.

    The cloud is asked whether it is a spot machine where that makes the difference.
    """
    prices, place = _seen(environment.PRICES.of(environ)), place_of(environ)
    count = accelerators_of(environ)
    fitting = [price for price in prices if price.fits(place.cloud, place.region, count)]
    if {True, False} <= {price.spot for price in fitting}:
        from ..machine.metadata import is_spot  # an HTTP client, which only machines of clouds need

        spot = is_spot(place.cloud, environ)
        fitting = [price for price in fitting if None in (price.spot, spot) or price.spot == spot]
    return max(fitting or prices, key=lambda price: price.usd_per_hour, default=None)


def _seen(told: str) -> list[Price]:
    """The prices in the file that is named, or in the list itself, as older launchers told them;
    none where the file is not there."""
    if told.startswith("["):
        return read_prices(told)
    path = Path(told).expanduser()
    try:
        return read_prices(read_small(path).decode())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"{path}, which holds the prices seen at the launch, is damaged: {error}.",
            "Without them nobody knows what the run costs. Launch it again.",
        ) from error


def facts(
    environ: Mapping[str, str], attempts: Sequence[AttemptRecord], now: float
) -> dict[str, Any]:
    """What a new attempt's record says of its machine and its price; `attempts` came before."""
    price, place = price_now(environ), place_of(environ)
    where = {name: value for name, value in asdict(place).items() if value} | _barren(environ)
    if price is None:
        return where
    told = {
        "cloud": price.cloud,
        "region": price.region,
        "instance": price.instance,
        "accelerators": str(price.accelerators or ""),
        "spot": price.spot,
        "usd_per_hour": price.usd_per_hour,
        "on_demand_usd_per_hour": price.on_demand_usd_per_hour,
        "source": price.source,
    }
    known = {name: value for name, value in told.items() if value not in (None, "")}
    billed_from = _billed_from(place, environ, attempts, now)
    return {**known, **where, "price_date": price.date, "billed_from": billed_from}


def _barren(environ: Mapping[str, str]) -> dict[str, float]:
    """Hours and dollars of machines before these on which no attempt has begun, as they were told;
    nothing where none were."""
    told = json.loads(environment.BARREN.of(environ))
    return {f"barren_{name}": float(told[name]) for name in ("hours", "usd") if told.get(name)}


def _billed_from(
    place: Place, environ: Mapping[str, str], attempts: Sequence[AttemptRecord], now: float
) -> float:
    """When this machine began to cost money: when it was switched on, or, of one that was there
    before, when the job's script began; but no attempt before this one, on the same machine, has
    paid for the same."""
    if place.cloud in SHARED:
        began = _time(environment.ARRIVED.of(environ), now)
    else:
        began = now - float(Path("/proc/uptime").read_text().split()[0])
    here = ("", socket.gethostname())  # an old record may not say where
    before = [attempt.last_known for attempt in attempts[-1:] if attempt.host in here]
    return min(now, max([began, *before]))


def _time(text: str, otherwise: float) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    return otherwise
