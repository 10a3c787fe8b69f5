"""How a job comes back after a loss: by xrun's plugin where SkyPilot has it, else by SkyPilot's own
rule; and what that means for the run, in a line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from xrun_sky.assignment import Assignment, Place

from ...errors import EX_TEMPFAIL, NEVER_BEGAN, XrunError
from ...recipe.schema import Candidate, Hardware
from ...run import spending
from ...run.folder import RunFolder
from ...run.plan import Plan
from ...run.record import RunRecord
from ..offers import Offer, Offers, affordable
from ..throughput import Throughput
from .task import wish

OF_SKYPILOT = {
    "strategy": "EAGER_NEXT_REGION",
    "max_restarts_on_errors": 0,
    "recover_on_exit_codes": [EX_TEMPFAIL, NEVER_BEGAN],
}
"""Not 137 and 143: when one node has ended, SkyPilot ends the others and writes these for them,
also where the end was for good (docs/decisions/0024)."""
_LOST = (
    "it may ask first for machines in the zone that it has just lost, at the prices of now, and"
    " goes on demand as soon as there are no spot machines where the recipe allows both; and nobody"
    " counts machines on which no attempt begins, so a job whose machines all fail while they"
    " install comes back, and costs, until `xrun cancel`"
)


def first_launch(plan: Plan, now: float | None = None) -> float:
    """When the run was first launched, in seconds since 1970: as its plan says, else as its first
    attempt does, else now."""
    return plan.launched or _record(plan).launched or (time.time() if now is None else now)


def recovery(plan: Plan, offers: Offers, throughput: Throughput) -> dict[str, Any]:
    """SkyPilot's `job_recovery` with everything that xrun's plugin is to know."""
    told = assignment(plan, offers, throughput).to_json()
    return {**OF_SKYPILOT, "strategy": "XRUN", "xrun": told}


def assignment(plan: Plan, offers: Offers, throughput: Throughput) -> Assignment:
    """The run as the plugin sees it."""
    recipe, best = plan.load_recipe(), offers.best
    hardware, attempts = recipe.hardware, _record(plan).attempts
    spent = spending.dollars(attempts, time.time(), running=False) or 0.0
    limit = plan.limits.usd
    return Assignment(
        run=plan.run,
        launched=plan.launched,
        places=tuple(_places(hardware.any_of, offers)),
        state=plan.where,
        steps=recipe.train.steps,
        epochs=recipe.train.epochs,
        left=throughput.steps_left,
        rate=best.speed.steps_per_second if best.speed else None,
        deadline=hardware.deadline.after(plan.launched) if hardware.deadline else None,
        max_wait=hardware.max_wait.seconds,
        budget_usd=max(0.0, limit - spent) if limit else None,
    )


def with_plugin(plan: Plan, offers: Offers) -> Iterator[str]:
    """What the plugin will do, in sentences."""
    hardware = plan.load_recipe().hardware
    every = (*offers.offers, *offers.others)
    dear = min((offer.hourly for offer in every if not offer.use_spot), default=None)
    spot = any(offer.use_spot for offer in every)
    if hardware.deadline is not None and spot and dear is not None:
        yield (
            "The run takes spot machines while on-demand machines, from"
            f" ${dear:.2f} an hour, could still finish it by"
            f" {_time(hardware.deadline.after(plan.launched))} (hardware.deadline); then it takes"
            " those."
        )
    elif spot and dear is not None:
        covered = ", if budget.usd covers the rest of the run" if plan.limits.usd else ""
        yield (
            f"Without spot machines for {hardware.max_wait} (hardware.max_wait) it goes on demand,"
            f" from ${dear:.2f} an hour{covered}."
        )
    if hardware.deadline is not None and offers.best.speed is None:
        yield (
            "Nobody has measured the speed of training yet: until an attempt has, half of the time"
            " to the deadline counts as work."
        )
    if offers.others:
        others = sorted({str(offer.machines) for offer in offers.others})
        yield f"After a loss it may go on with {', '.join(others)} as well."


def without_plugin(hardware: Hardware) -> str:
    """What a launch does not get from SkyPilot alone."""
    late = f"hardware.deadline ({hardware.deadline}) is not kept; " if hardware.deadline else ""
    return (
        f"SkyPilot's API server does not have xrun's plugin, so SkyPilot's own rule recovers:"
        f" {late}{_LOST}. `xrun setup sky` installs it."
    )


def _places(candidates: Sequence[Candidate], offers: Offers) -> Iterator[Place]:
    """Each offer where it can be had: by zone where zones are lost by themselves or have prices of
    their own, else by region. Of two that are the same the cheaper."""
    found: dict[tuple[str, str, bool, int], Place] = {}
    for offer in (*offers.offers, *offers.others):
        for place in _of(offer, candidates[offer.candidate], offers.best):
            key = (place.infra, place.instance, place.spot, place.nodes)
            if key not in found or place.usd_per_hour < found[key].usd_per_hour:
                found[key] = place
    yield from found.values()


def _of(offer: Offer, candidate: Candidate, best: Offer) -> Iterator[Place]:
    prices = [price for price in offer.prices if price.spot == offer.use_spot]
    cheap = [price for price in prices if affordable(price, candidate)]
    by_zone = offer.use_spot or len({price.usd_per_hour for price in prices}) > 1
    for price in cheap if by_zone else cheap[:1]:
        infra = f"{offer.infra}/{price.zone}" if by_zone and price.zone else offer.infra
        yield Place(
            infra=infra,
            spot=offer.use_spot,
            usd_per_hour=price.usd_per_hour,
            nodes=offer.machines.nodes,
            speed=_speed(offer, best),
            instance=offer.instance,
            accelerators=str(offer.machines.accelerators or ""),
            resources=wish(candidate, offer.use_spot, infra, offer.fast_network),
        )


def _speed(offer: Offer, best: Offer) -> float:
    """How fast the run is there, over what it is on the best offer; the same where nobody knows."""
    if offer.speed is not None and best.speed is not None:
        return offer.speed.steps_per_second / best.speed.steps_per_second
    if offer.machines.peak and best.machines.peak:
        return offer.machines.peak / best.machines.peak
    return 1.0


def _record(plan: Plan) -> RunRecord:
    folder = RunFolder(plan.folder)
    try:
        return folder.record() if folder.plan_file.exists() else RunRecord()
    except XrunError:
        return RunRecord()


def _time(when: float) -> str:
    return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC"
