"""A run's receipt: what each attempt has cost and for what, and what the same would have cost on
demand.

docs/decisions/0060 says what is counted. A machine's time has three parts: its setup (from its
start to its first step), steps that were lost (computed, gone with the machine before they were
committed, and computed again), and the rest, which is training. Between two machines a run waits,
or nobody wants it to run; neither costs anything. What is not known is None, and never 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

from ..files import typed
from . import spending
from .record import AttemptRecord
from .table import Table

UNKNOWN = "not known"
_PLACES = 4
"""Digits after the point of dollars and hours for programs: the lines add up to the sums."""


@dataclass(frozen=True)
class Line:
    """One attempt. `began` and `ended` are seconds since 1970; `end` as in `spending.Life`, and
    `usd_seen` what it had cost at its last sign of life; `taken`: it was ended from outside. Hours
    are of its machines, however many nodes.

    `price` says how `usd_per_hour` is known: `seen` on `price_date`, `dearest` (its own is not
    known, and the dearest of the others counts), `own` (a machine of one's own), or `not known`.
    `setup_hours` is at least so much where `setup_known` is false. `lost_steps` and `lost_hours`
    are the steps of this attempt that a later one computed again, None where the log has gone with
    the machine. Before it the run has waited for a machine (`waited_hours`), or was not wanted
    (`paused_hours`); `queued_hours`, of the first attempt alone, is from the launch to its machine,
    None where nobody has recorded a launch; `barren_hours` and `barren_usd` are of machines that
    came in between, on which no attempt began. `on_demand_usd` is what its part would have cost
    where no machine is taken away: without what was lost, what is bounded, and the setup after a
    preemption.
    """

    attempt: int
    id: str
    cloud: str
    region: str
    zone: str
    machine: str
    nodes: int
    spot: bool | None
    began: float
    ended: float
    end: Literal["recorded", "bound", "running"]
    taken: bool
    hours: float
    price: Literal["seen", "dearest", "own", "not known"]
    usd_per_hour: float | None
    price_date: str
    usd: float | None
    usd_seen: float | None
    setup_hours: float
    setup_known: bool
    setup_usd: float | None
    lost_steps: int | None
    lost_hours: float | None
    lost_usd: float | None
    waited_hours: float
    paused_hours: float
    queued_hours: float | None
    on_demand_usd_per_hour: float | None
    on_demand_usd: float | None
    barren_hours: float = 0.0
    barren_usd: float = 0.0

    @property
    def place(self) -> str:
        """Where it ran, for people."""
        return " ".join(filter(None, (self.cloud, self.region, _kind(self.spot)))) or "here"

    @property
    def words(self) -> str:
        """What it has cost, for people; "" on a machine of one's own."""
        if self.price == "own":
            return ""
        _, place, _, hourly, hours, usd, _, _ = _row(self)
        return f"{place}, {hours} h at {hourly}: {usd}"


@dataclass(frozen=True)
class Receipt:
    """All attempts of a run, in their order. Sums are None where a part of them is not known."""

    run: str
    lines: tuple[Line, ...]

    @property
    def is_own(self) -> bool:
        """Whether nothing was rented, so that the run cost nothing."""
        return all(line.price == "own" for line in self.lines)

    @property
    def price(self) -> str:
        """The sum for people, in a word or two."""
        return "nothing" if self.is_own else money(self.usd)

    @property
    def hours(self) -> float:
        """Machine time."""
        return _sum(line.hours + line.barren_hours for line in self.lines) or 0.0

    @property
    def usd(self) -> float | None:
        """US dollars."""
        return _sum(None if line.usd is None else line.usd + line.barren_usd for line in self.lines)

    @property
    def barren_hours(self) -> float:
        """Of machines on which no attempt began."""
        return _sum(line.barren_hours for line in self.lines) or 0.0

    @property
    def barren_usd(self) -> float:
        """What those cost."""
        return _sum(line.barren_usd for line in self.lines) or 0.0

    @property
    def usd_of_bounds(self) -> float | None:
        """What of that may not have been: the time after last signs of life."""
        bounds = [line for line in self.lines if line.end == "bound"]
        whole, seen = _sum(line.usd for line in bounds), _sum(line.usd_seen for line in bounds)
        return None if whole is None or seen is None else round(whole - seen, _PLACES)

    @property
    def setup_hours(self) -> float:
        """From the machines' starts to their first steps."""
        return _sum(line.setup_hours for line in self.lines) or 0.0

    @property
    def setup_usd(self) -> float | None:
        """What that cost."""
        return _sum(line.setup_usd for line in self.lines)

    @property
    def setup_known(self) -> bool:
        """Whether it is all of it."""
        return all(line.setup_known for line in self.lines)

    @property
    def lost_steps(self) -> int:
        """Steps that were computed again, as far as that is known."""
        return sum(line.lost_steps or 0 for line in self.lines)

    @property
    def lost_hours(self) -> float:
        """What they took when they were computed first, as far as that is known."""
        return _sum(line.lost_hours or 0.0 for line in self.lines) or 0.0

    @property
    def lost_usd(self) -> float | None:
        """What that cost; None where no price is known."""
        if self.usd is None:
            return None
        return _sum(line.lost_usd or 0.0 for line in self.lines)

    @property
    def lost_known(self) -> bool:
        """Whether it is all of it."""
        return all(line.lost_steps is not None for line in self.lines)

    @property
    def waited_hours(self) -> float:
        """Without a machine, after one was taken away."""
        return _sum(line.waited_hours for line in self.lines) or 0.0

    @property
    def paused_hours(self) -> float:
        """Between a stop, or a failure, and the next start."""
        return _sum(line.paused_hours for line in self.lines) or 0.0

    @property
    def queued_hours(self) -> float | None:
        """From the launch to the first machine; None where nobody has recorded a launch."""
        return self.lines[0].queued_hours if self.lines else None

    @property
    def on_demand_usd(self) -> float | None:
        """What the same would have cost on machines that nobody takes away."""
        return _sum(line.on_demand_usd for line in self.lines)

    @property
    def saved_usd(self) -> float | None:
        """What spot machines have saved; below 0 where they cost more."""
        would, did = self.on_demand_usd, self.usd
        return None if would is None or did is None else round(would - did, _PLACES)

    def totals(self) -> dict[str, Any]:
        """The sums by their names."""
        names = (name for name, value in vars(Receipt).items() if isinstance(value, property))
        return {name: getattr(self, name) for name in names if name != "price"}

    def summary(self) -> dict[str, Any]:
        """The sums that a tracker shows: numbers, and words for what is not known."""
        names = "hours usd setup_hours lost_usd waited_hours on_demand_usd saved_usd".split()
        told = {name: getattr(self, name) for name in names}
        return {name: UNKNOWN if value is None else value for name, value in told.items()}

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"run": self.run, **self.totals(), "attempts": [asdict(each) for each in self.lines]}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Receipt:
        """Read what `to_json` wrote. Raises ValueError."""
        try:
            lines = tuple(Line(**typed(Line, each)) for each in told["attempts"])
            return cls(str(told["run"]), lines)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no receipt: {error}") from None

    def csv(self) -> bytes:
        """A row for each attempt; times in UTC, and nothing where something is not known."""
        columns = tuple(each.name for each in fields(Line))
        rows = []
        for line in self.lines:
            values = asdict(line) | {"began": utc(line.began), "ended": utc(line.ended)}
            rows.append(tuple(values[name] for name in columns))
        return Table(columns, tuple(rows)).csv()

    def rows(self) -> list[tuple[str, ...]]:
        """For people: a head, and a row for each attempt."""
        head = ("#", "place", "machine", "an hour", "hours", "dollars", "setup", "lost")
        return [head, *map(_row, self.lines)]

    def sentences(self) -> Iterator[str]:
        """For people: the sums, and what of them is not known."""
        yield self._whole()
        if self.is_own:
            return
        setup = "" if self.setup_known else "at least "
        yield f"Setup: {setup}{_hours(self.setup_hours)}{_for(self.setup_usd)}."
        lost = "" if self.lost_known else "at least "
        steps = f"{lost}{self.lost_steps} steps computed again"
        yield f"Lost: {steps}, {_hours(self.lost_hours)}{_for(self.lost_usd)}."
        if self.barren_hours:
            cost = f"{_hours(self.barren_hours)}, {money(self.barren_usd)}"
            yield f"Machines on which no attempt could begin: {cost}."
        if self.queued_hours:
            yield (
                f"From the launch to the first machine: {_hours(self.queued_hours)}, which cost"
                " nothing."
            )
        if self.waited_hours:
            yield f"Waited {_hours(self.waited_hours)} for machines, which cost nothing."
        if self.paused_hours:
            yield f"Stopped for {_hours(self.paused_hours)} in between, which cost nothing."
        yield f"The same on demand: {money(self.on_demand_usd)}.{self._saved()}"

    def notes(self) -> Iterator[str]:
        """For people: what the marks mean, and what is not in it."""
        if any(line.end == "bound" for line in self.lines):
            extra = self.usd_of_bounds
            of_it = "" if not extra else f" {money(extra)} of the dollars are for that time."
            yield (
                "* Its end was not recorded, so this is an upper bound: until its last sign of"
                f" life, plus the longest silence that is allowed.{of_it}"
            )
        if any(line.price == "dearest" for line in self.lines):
            yield "† Its price is not known: the highest known price is used."
        running = next((line for line in self.lines if line.end == "running"), None)
        if running and not self.is_own:
            yield f"Attempt {running.attempt} is counted until {utc(running.ended)}."
        if self.usd is not None and not self.is_own:
            yield (
                "Not included: what a cloud bills after an attempt has ended, the job controller,"
                " storage and traffic."
            )

    def _whole(self) -> str:
        if not self.lines:
            return "Cost: nothing; no attempt has begun."
        count = f"{len(self.lines)} attempt{'' if len(self.lines) == 1 else 's'}"
        took = f"{_hours(self.hours)} of machine time in {count}"
        if self.is_own:
            return f"Cost: nothing, on machines of one's own ({took})."
        return f"Cost: {money(self.usd)} for {took}."

    def _saved(self) -> str:
        saved, would = self.saved_usd, self.on_demand_usd
        if saved is None or would is None:
            return f" Saved: {UNKNOWN}."
        if saved < 0:
            return f" That is {money(-saved)} less than this run cost."
        share = f" ({100 * saved / would:.0f} %)" if would else ""
        return f" Saved: {money(saved)}{share}."


NO_RECEIPT = Receipt("", ())
"""Of a run of which nothing is known."""


def receipt_of(
    run: str, attempts: Sequence[AttemptRecord], now: float, *, running: bool = True
) -> Receipt:
    """What a run's attempts have cost until `now`; `running` as for `spending.lives`."""
    found = spending.lives(attempts, now, running=running)
    rates, known = spending.rates(attempts), spending.is_known(attempts)
    lines = []
    for number, (attempt, life, rate) in enumerate(zip(attempts, found, rates, strict=True)):
        before = (attempts[number - 1], found[number - 1]) if number else None
        after = attempts[number + 1] if number + 1 < len(attempts) else None
        price = rate if known or spending.is_own(attempt) else None
        lines.append(_line(number + 1, attempt, life, price, before, after))
    return Receipt(run, tuple(lines))


def _line(
    number: int,
    attempt: AttemptRecord,
    life: spending.Life,
    rate: float | None,
    before: tuple[AttemptRecord, spending.Life] | None,
    after: AttemptRecord | None,
) -> Line:
    hours = life.seconds / 3600
    until = attempt.started if attempt.trained_from is None else attempt.trained_from
    setup = min(hours, max(0.0, until - life.began) / 3600)
    lost = _lost(attempt, after, first=before is None)
    barren = attempt.barren_hours or 0.0
    gap = max(0.0, (life.began - before[1].ended) / 3600 - barren) if before else 0.0
    taken = before is not None and before[0].was_preempted
    # On demand nobody takes a machine away: nothing is lost by that, and nothing set up again.
    bounded = max(0.0, life.ended - max(life.began, life.seen)) if life.end == "bound" else 0.0
    needless = setup if taken and before and before[0].spot is not False else 0.0
    if attempt.spot is not False:
        needless += bounded / 3600 + ((lost[1] or 0.0) if attempt.was_preempted else 0.0)
    dear = _on_demand(attempt)
    return Line(
        attempt=number,
        id=attempt.id,
        cloud=attempt.cloud or "",
        region=attempt.region or "",
        zone=attempt.zone or "",
        machine=attempt.accelerators or attempt.instance or "",
        nodes=attempt.nodes,
        spot=attempt.spot,
        began=life.began,
        ended=life.ended,
        end=life.end,
        taken=attempt.was_lost,
        hours=round(hours, _PLACES),
        price=_how(attempt, rate),
        usd_per_hour=rate,
        price_date=attempt.price_date or "",
        usd=_cost(rate, hours),
        usd_seen=_cost(rate, hours - bounded / 3600),
        setup_hours=round(setup, _PLACES),
        setup_known=attempt.trained_from is not None,
        setup_usd=_cost(rate, setup),
        lost_steps=lost[0],
        lost_hours=None if lost[1] is None else round(lost[1], _PLACES),
        lost_usd=None if lost[1] is None else _cost(rate, lost[1]),
        waited_hours=round(gap if taken else 0.0, _PLACES),
        paused_hours=round(0.0 if taken else gap, _PLACES),
        queued_hours=_queued(attempt, life) if before is None else None,
        on_demand_usd_per_hour=dear,
        on_demand_usd=_cost(dear, max(0.0, hours - needless)),
        barren_hours=round(barren, _PLACES),
        barren_usd=round(attempt.barren_usd or 0.0, _PLACES),
    )


def _queued(first: AttemptRecord, life: spending.Life) -> float | None:
    if first.launched is None:
        return None
    hours = (life.began - first.launched) / 3600 - (first.barren_hours or 0.0)
    return round(max(0.0, hours), _PLACES)


def _lost(
    attempt: AttemptRecord, after: AttemptRecord | None, *, first: bool
) -> tuple[int | None, float | None]:
    """Steps and hours of this attempt that were computed again: by the one that followed, or by
    itself, where its processes were started again on the same machine."""
    steps, seconds = 0, 0.0
    if first or _restarted(attempt):
        steps, seconds = attempt.steps_recomputed or 0, attempt.seconds_lost or 0.0
    if after is None:
        return steps, seconds / 3600
    if attempt.was_lost and (after.steps_recomputed is None or _restarted(after)):
        return None, None
    if not _restarted(after):
        steps, seconds = steps + (after.steps_recomputed or 0), seconds + (after.seconds_lost or 0)
    return steps, seconds / 3600


def _restarted(attempt: AttemptRecord) -> bool:
    """Whether it has gone on from a step of its own, so that what it computed again was its own."""
    return attempt.resumed_step is not None and attempt.resumed_step > max(0, attempt.from_step)


def _on_demand(attempt: AttemptRecord) -> float | None:
    """Dollars per hour of the same machine where nobody takes it away."""
    if spending.is_own(attempt):
        return 0.0
    return attempt.usd_per_hour if attempt.spot is False else attempt.on_demand_usd_per_hour


def _how(
    attempt: AttemptRecord, rate: float | None
) -> Literal["seen", "dearest", "own", "not known"]:
    if spending.is_own(attempt):
        return "own"
    if attempt.usd_per_hour is not None:
        return "seen"
    return "not known" if rate is None else "dearest"


def _cost(rate: float | None, hours: float) -> float | None:
    return None if rate is None else round(rate * hours, _PLACES)


def _sum(values: Iterator[float] | Iterator[float | None]) -> float | None:
    """None where one of them is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return round(sum(known), _PLACES) if len(known) == len(found) else None


def _row(line: Line) -> tuple[str, ...]:
    marks = ("*" if line.end == "bound" else "", "†" if line.price == "dearest" else "")
    date = f" on {line.price_date}" if line.price_date and line.price == "seen" else ""
    nodes = f"{line.nodes}x " if line.nodes > 1 and line.machine else ""
    hourly = {"own": "-", "not known": UNKNOWN}.get(line.price, f"{money(line.usd_per_hour)}{date}")
    return (
        str(line.attempt),
        line.place,
        f"{nodes}{line.machine}" or "-",
        hourly + marks[1],
        _number(line.hours) + marks[0],
        "-" if line.price == "own" else money(line.usd) + marks[1],
        ("" if line.setup_known else "≥ ") + _number(line.setup_hours),
        UNKNOWN if line.lost_steps is None else f"{line.lost_steps} steps",
    )


def _kind(spot: bool | None) -> str:
    return {True: "spot", False: "on demand", None: ""}[spot]


def money(usd: float | None) -> str:
    """Dollars for people: in cents, and what is less than ten of them more exactly."""
    if usd is None:
        return UNKNOWN
    places = Decimal("0.0001" if 0 < usd < 0.1 else "0.01")
    return f"${Decimal(repr(usd)).quantize(places, ROUND_HALF_UP)}"


def utc(when: float) -> str:
    """A time as ISO 8601 has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def _for(usd: float | None) -> str:
    return f", {money(usd)}" if usd is not None else f", dollars {UNKNOWN}"


def _hours(hours: float) -> str:
    return f"{_number(hours)} h"


def _number(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 or not hours else f"{hours:.4f}"
