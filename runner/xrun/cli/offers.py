"""Offers as a table for people and as JSON for programs. No price stands there without its day and
its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..launcher.offers import Controller, Offer, Offers
from ..launcher.quote import Quote, Range
from .plans import cost_text

if TYPE_CHECKING:
    from ..recipe.schema import Recipe

_ROWS = 12
"""Places that the table shows; the JSON has them all."""
_ELSEWHERE = 6
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
        "chosen": offers.best.summary() if offers.offers else None,
        "order": offers.order,
        "ordered": offers.ordered,
        "notes": list(offers.notes),
        "controller": asdict(offers.controller) if offers.controller else None,
        "cost": offers.cost.to_json() if offers.cost else None,
        "lacks": offers.lacks,
        "elsewhere": [offer.summary() for offer in offers.elsewhere],
        "offers": [offer.summary() for offer in offers.offers],
    }


def offers_text(offers: Offers, recipe: Recipe | None = None) -> str:
    """The table, what is chosen and why, what the run would take, and whose prices these are."""
    if not offers.offers:
        quoted = _quoted(offers.elsewhere[0], offers, recipe)
        return "\n".join([*_elsewhere(offers), "", *quoted, *offers.notes])
    places = _places(offers.offers)
    relative = all(offer.usd is None and offer.work is not None for offer in places)
    header = (*_HEADER[:-1], "WORK (est.)") if relative else _HEADER
    rows = [_row(offer, offers.best, relative=relative) for offer in places[:_ROWS]]
    table = _aligned([header, *rows])
    below = _below(offers, places, recipe, relative=relative)
    return "\n".join([*table, *below, *_elsewhere(offers)])


def _elsewhere(offers: Offers) -> Iterator[str]:
    """What clouds that are not enabled would charge."""
    if not offers.elsewhere:
        return
    if offers.offers:
        yield ""
    yield "Clouds that are not enabled (`sky check CLOUD`), by their published price lists:"
    best = offers.elsewhere[0]
    rows = [_row(each, best, relative=False) for each in _places(offers.elsewhere)[:_ELSEWHERE]]
    yield from _aligned([_HEADER, *(("", *row[1:]) for row in rows)])
    yield f"Prices: {'; '.join(_sources(offers.elsewhere))}."


def _places(offers: Sequence[Offer]) -> list[Offer]:
    """The first offer of each place: spot and on demand there are one row."""
    first: dict[tuple[int, str, str], Offer] = {}
    for offer in offers:
        first.setdefault((offer.candidate, offer.infra, offer.instance), offer)
    return list(first.values())


def _row(offer: Offer, best: Offer, *, relative: bool) -> tuple[str, ...]:
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


def _below(
    offers: Offers, places: Sequence[Offer], recipe: Recipe | None, *, relative: bool
) -> Iterator[str]:
    best = offers.best
    if len(places) > _ROWS:
        yield f"and {len(places) - _ROWS} dearer places (--json has them all)"
    yield ""
    kind = "spot" if best.use_spot else "on demand"
    whole = f", ${best.usd:.2f} for the whole run" if best.usd is not None else ""
    yield f"Chosen: {best.machines} on {best.infra}, {kind}, ${best.hourly:.2f} an hour{whole}."
    yield from _quoted(best, offers, recipe)
    yield offers.order
    if relative:
        yield "WORK is what the same work costs, relative to the chosen place."
    elif best.speed is None and best.usd is None:
        yield "Hours and dollars of the whole run are known once an attempt has measured its speed."
    yield from offers.notes
    if offers.controller:
        yield _controller(offers.controller)
    yield f"Dollars are for all nodes together. Prices: {'; '.join(_sources(offers.offers))}."


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


def _sources(offers: Sequence[Offer]) -> list[str]:
    prices = (p for offer in offers for p in offer.prices if p.spot == offer.use_spot)
    return sorted({f"{price.source} of {price.date}" for price in prices})


def _quoted(best: Offer, offers: Offers, recipe: Recipe | None) -> Iterator[str]:
    """What the run would take on what is tried first, or would be."""
    if (quote := best.quote) is not None and best.speed is not None:
        lost = f", {_between(quote.preemptions, '.1f')} preemptions" if best.use_spot else ""
        yield (
            f"To the end: {_between(quote.hours, '.1f')} hours,"
            f" {_between(quote.usd, '.2f', '$')}{lost}; this includes starts, evaluations and"
            " saves, but no waiting for machines or for data."
        )
        if best.speed.source not in offers.order:
            yield f"Speed: {best.speed.source}."
        if quote.saved is not None:
            usd = (
                f"${quote.saved_usd:.2f} an hour" if quote.saved_usd else "nothing is billed for it"
            )
            yield f"Saves send {quote.saved:.3g} GB an hour: {usd}."
    elif best.speed is not None and recipe is not None and not recipe.train.steps:
        yield (
            "Hours and dollars of the whole run are not known, because its data do not say how many"
            " samples they have: an attempt counts them."
        )
    if recipe is not None and quote is not None:
        yield from _over_budget(recipe, quote)
    if best.fit is not None:
        margin = "with CUDA's own memory and 10 % for fragmentation"
        verdict = "It fits" if best.fit.fits else "It does not fit"
        yield f"{verdict}: {best.fit} of each accelerator ({margin})."
    if offers.cost is not None and recipe is not None:
        world = (best.machines.accelerators.count if best.machines.accelerators else 1) * (
            best.machines.nodes
        )
        yield from (" ".join(line.split()) for line in cost_text(offers.cost, recipe, world))
    if offers.lacks:
        yield f"Whether it fits is not known. {offers.lacks}"


def _over_budget(recipe: Recipe, quote: Quote) -> Iterator[str]:
    for name, limit, taken in (
        ("usd", recipe.budget.usd, quote.usd),
        ("hours", recipe.budget.hours, quote.hours),
    ):
        if limit is not None and taken.likely > limit:
            yield f"budget.{name} of {limit:g} will end the run early: it needs {taken.likely:.4g}."
        elif limit is not None and taken.high > limit:
            yield f"budget.{name} of {limit:g} may end the run early."


def _between(taken: Range, form: str, unit: str = "") -> str:
    low, likely, high = (f"{unit}{value:{form}}" for value in taken)
    return f"{likely} ({low} to {high})"


def _dollars(price: float | None) -> str:
    return "-" if price is None else f"{price:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [*map(str.ljust, row[:5], widths[:5]), *map(str.rjust, row[5:], widths[5:])] for row in rows
    ]
    return ["  ".join(row).rstrip() for row in cells]
