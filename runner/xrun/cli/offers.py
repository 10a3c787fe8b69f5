"""Offers as a table for people and as JSON for programs. No price stands there without its day and
its source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..launcher.offers import Controller, Offer, Offers

_ROWS = 12
"""Places that the table shows; the JSON has them all."""
_HEADER = (
    "",
    "CLOUD",
    "REGION",
    "INSTANCE",
    "ACCELERATORS",
    "NODES",
    "SPOT $/h",
    "ON-DEMAND $/h",
    "SAVING",
    "HOURS",
    "RUN $",
)


def offers_json(offers: Offers) -> dict[str, Any]:
    """Everything, best first; `chosen` is what is tried first. Dollars are for all nodes
    together."""
    return {
        "chosen": offers.best.summary(),
        "order": offers.order,
        "ordered": offers.ordered,
        "notes": list(offers.notes),
        "controller": asdict(offers.controller) if offers.controller else None,
        "offers": [offer.summary() for offer in offers.offers],
    }


def offers_text(offers: Offers) -> str:
    """The table, what is chosen and why, and where the prices come from."""
    places = list(
        {
            (offer.candidate, offer.infra, offer.instance): offer
            for offer in reversed(offers.offers)
        }.values()
    )
    places.sort(key=offers.offers.index)
    relative = all(offer.usd is None and offer.work is not None for offer in places)
    header = (*_HEADER[:-1], "WORK (est.)") if relative else _HEADER
    rows = [_row(offer, offers, relative=relative) for offer in places[:_ROWS]]
    return "\n".join([*_aligned([header, *rows]), *_below(offers, places, relative=relative)])


def _row(offer: Offer, offers: Offers, *, relative: bool) -> tuple[str, ...]:
    best = offers.best
    place = (offer.candidate, offer.infra, offer.instance) == (
        best.candidate,
        best.infra,
        best.instance,
    )
    if relative:
        run = f"x {(offer.work or 0) / (best.work or 1):.2f}" if best.work else "-"
    else:
        run = _dollars(offer.usd) + _mark(offer)
    saving = "-" if offer.saving is None else f"{offer.saving:.0%}"
    hours = "-" if offer.hours is None else f"{offer.hours:.1f}{_mark(offer)}"
    machines = (str(offer.machines.accelerators or "-"), str(offer.machines.nodes))
    prices = (_dollars(offer.spot), _dollars(offer.on_demand), saving)
    return (
        ">" if place else "",
        offer.cloud,
        offer.region,
        offer.instance,
        *machines,
        *prices,
        hours,
        run,
    )


def _mark(offer: Offer) -> str:
    return (
        " est."
        if offer.speed is not None and not offer.speed.measured and offer.hours is not None
        else ""
    )


def _below(offers: Offers, places: Sequence[Offer], *, relative: bool) -> Iterable[str]:
    best = offers.best
    if len(places) > _ROWS:
        yield f"and {len(places) - _ROWS} dearer places (--json has them all)"
    yield ""
    kind = "spot" if best.use_spot else "on demand"
    whole = f", ${best.usd:.2f} for the whole run" if best.usd is not None else ""
    yield f"Chosen: {best.machines} on {best.infra}, {kind}, ${best.hourly:.2f} an hour{whole}."
    yield offers.order
    if relative:
        yield "WORK is what the same work costs, relative to the chosen place."
    elif best.usd is None:
        yield "Hours and dollars of the whole run show up once an attempt has measured its speed."
    yield from offers.notes
    if offers.controller:
        yield _controller(offers.controller)
    yield f"Dollars are for all nodes together. Prices: {'; '.join(_sources(offers))}."


def _controller(controller: Controller) -> str:
    price = controller.usd_per_hour
    if price is None:
        return (
            f"SkyPilot's job controller, a machine on {controller.cloud}, costs more on top; no"
            " catalog says how much."
        )
    return (
        f"SkyPilot's job controller costs ${price:.2f} an hour on top: {controller.instance} on"
        f" {controller.cloud}, one for all of your jobs."
    )


def _sources(offers: Offers) -> list[str]:
    return sorted({f"{price.source} of {price.date}" for price in offers.prices})


def _dollars(price: float | None) -> str:
    return "-" if price is None else f"{price:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [*map(str.ljust, row[:5], widths[:5]), *map(str.rjust, row[5:], widths[5:])] for row in rows
    ]
    return ["  ".join(row).rstrip() for row in cells]
