"""`Policy`: where a run goes next, when it waits, when it goes on demand, and when it leaves that
again.

It sees a clock, prices, what is left of the run, and the answers to launches that were made because
it said so. Whoever hosts it (SkyPilot's controller, a simulation) asks `next` until a machine is
there, tells it each answer, and keeps `to_json` between two asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf
from typing import Any

from .outlook import LOOKS, Odds, Outlook, outlook
from .weather import Weather, geometric

UNITS = 144
"""Rows of a table: the work of a long run is counted in larger units than a start takes."""


@dataclass(frozen=True)
class Candidate:
    """A kind of machines in a place. `usd_per_hour` is for all nodes together; `speed` is how much
    of the run's work they do in a second, over what the reference does."""

    place: str
    spot: bool
    usd_per_hour: float
    speed: float = 1.0
    shape: str = ""

    @property
    def work(self) -> float:
        """Dollars for an hour's work of the reference."""
        return self.usd_per_hour / self.speed

    @property
    def name(self) -> str:
        """Where its answers are kept: other shapes in one place are other stocks."""
        return "|".join((self.place, self.shape, "spot" if self.spot else "on demand"))


@dataclass(frozen=True)
class Terms:
    """What the run was promised. Seconds; `deadline` is on the clock of `now`.

    `changeover`: from a request that is granted to the first new step, work done twice included.
    `grain`: how late the host may act on what it is told. `max_wait`: how long a run without a
    deadline waits for spot machines; `budget_usd` is what is left for it.
    """

    changeover: float
    deadline: float | None = None
    max_wait: float | None = None
    budget_usd: float | None = None
    retry: float = 300.0
    grain: float = 60.0


def worth(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The spot machines whose work is cheaper than all on demand."""
    dear = min((each.work for each in candidates if not each.spot), default=inf)
    return [each for each in candidates if each.spot and each.work < dear]


@dataclass(frozen=True)
class Launch:
    """Ask for these machines."""

    candidate: Candidate


@dataclass(frozen=True)
class Wait:
    """Ask again after so many seconds."""

    seconds: float


@dataclass
class Policy:
    """The state of one run: `weather`, the machine that it is on, and what has refused since."""

    weather: Weather
    on: Candidate | None = None
    since: float = 0.0
    idle_since: float | None = None
    last_lost: str | None = None

    def next(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> Launch | Wait:
        """What a run without a machine does now. `left`: seconds of work for speed 1."""
        self.idle_since = now if self.idle_since is None else self.idle_since
        spot = worth(candidates)
        open_now = self._open(now, spot, terms)
        if open_now and self._may_start(now, left, candidates, terms):
            return Launch(min(open_now, key=lambda each: self._rate(each, terms)))
        if spot and not open_now:
            self.weather.nowhere(now)
        if spot and not open_now and self._waits(now, left, candidates, terms):
            return Wait(self._pause(now, left, candidates, terms))
        dear = self._open(now, [each for each in candidates if not each.spot], terms)
        if dear:
            return Launch(self._cheapest(now, left, dear, terms))
        if open_now:
            return Launch(min(open_now, key=lambda each: self._rate(each, terms)))
        return Wait(terms.retry)

    def granted(self, now: float, candidate: Candidate) -> None:
        """The machines that were asked for are there."""
        if candidate.spot:
            self.weather.granted(now, candidate.name)
        self.on, self.since, self.idle_since = candidate, now, None

    def refused(self, now: float, candidate: Candidate) -> None:
        """There were none."""
        self.weather.refused(now, candidate.name)

    def lost(self, now: float) -> None:
        """The machines are gone."""
        if self.on is not None and self.on.spot:
            self.weather.lost(now, self.on.name, now - self.since)
            self.last_lost = self.on.name
        self.on, self.idle_since = None, now

    def failed(self, now: float) -> None:
        """No attempt has begun on the machines, which nobody has taken: it says nothing of losses,
        and other places come first."""
        self.last_lost = self.on.name if self.on is not None else None
        self.on, self.idle_since = None, now

    def left(self, now: float) -> None:
        """The machines were given back, as `leave_after` said."""
        if self.on is not None and self.on.spot:  # of machines that nobody takes it says nothing
            self.weather.lasted(self.on.name, now - self.since)
        self.on, self.idle_since, self.last_lost = None, now, None

    def leave_after(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> float | None:
        """Seconds after which to leave the machines that the run is on; None: not at all.

        On demand: to look for spot machines; at once where there was no time to ask for any and now
        there is, since the run is faster than was believed. Spot machines that are too slow for the
        deadline: at the last responsible moment.
        """
        assert self.on is not None
        if self.on.spot:
            return self._slow(now, left, candidates, terms)
        if not worth(candidates):
            return None
        if terms.deadline is None:
            wait = terms.max_wait
            rest = left - (wait or 0.0) * self.on.speed
            return wait if self._pays(rest, candidates, terms) else None
        view, work, slack, unit = self._outlook(now, left, candidates, terms)
        units = min((0, *LOOKS), key=lambda units: view.looking(work, slack, units))
        likely = self.weather.outage_since is None and work > 1
        if likely and view.leaving(work, slack) < view.looking(work, slack, units):
            seconds = 0.0
        elif units:
            seconds = units * unit
        else:
            return None
        then = left - seconds * self.on.speed
        return seconds if self._may_look(now + seconds, then, candidates, terms) else None

    def may_leave(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> bool:
        """Whether machines on demand can be given up now: spot machines would save more on the rest
        of the run than a start costs, and there is the slack to look for them."""
        return self._pays(left, candidates, terms) and self._may_look(now, left, candidates, terms)

    def spare(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> float:
        """Seconds that are left beside the work on demand and two starts, negative where they do
        not fit any more; infinite where nothing has to be in time, or can be."""
        if terms.deadline is None or all(each.spot for each in candidates):
            return inf
        return self._slack(now, left, candidates, terms) - 2 * terms.changeover

    def to_json(self) -> dict[str, Any]:
        """One document, for `from_json`."""
        return {**asdict(self), "version": 1}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """What `to_json` has written."""
        on = data["on"]
        return cls(
            Weather.from_json(data["weather"]),
            Candidate(**on) if on else None,
            data["since"],
            data["idle_since"],
            data["last_lost"],
        )

    def _open(self, now: float, candidates: Sequence[Candidate], terms: Terms) -> list[Candidate]:
        """Those that have not refused a moment ago; what was lost comes after all others."""
        places = self.weather.places
        recent = [
            each
            for each in candidates
            if each.name not in places
            or (refused := places[each.name].refused_at) is None
            or now - refused >= terms.retry
        ]
        others = [each for each in recent if each.name != self.last_lost]
        return others or recent

    def _rate(self, candidate: Candidate, terms: Terms) -> float:
        """Dollars for an hour's work there, with the starts that its losses cost."""
        losses = self.weather.losses_per_second(name=candidate.name)
        return candidate.work * (1 + losses * terms.changeover)

    def _may_start(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> bool:
        """Whether spot machines that are lost at once leave the time to finish on demand."""
        return self.spare(now, left, candidates, terms) >= 0

    def _slack(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> float:
        """Seconds until the deadline beyond the work on the fastest machines on demand."""
        assert terms.deadline is not None
        fastest = max(each.speed for each in candidates if not each.spot)
        return terms.deadline - now - left / fastest - terms.grain

    def _waits(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> bool:
        if all(each.spot for each in candidates):
            return True
        if terms.deadline is None:
            return self._waits_for_money(now, left, candidates, terms)
        if self._slack(now, left, candidates, terms) < terms.changeover + terms.grain:
            return False
        view, work, slack, _ = self._outlook(now, left, candidates, terms)
        return view.waiting(work, slack) < view.going(work, slack)

    def _waits_for_money(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> bool:
        assert self.idle_since is not None
        if terms.max_wait is None or now - self.idle_since < terms.max_wait:
            return True
        dear = min(each.work for each in candidates if not each.spot)
        cost = dear * (left + terms.changeover) / 3600
        return terms.budget_usd is not None and cost > terms.budget_usd

    def _cheapest(
        self, now: float, left: float, dear: Sequence[Candidate], terms: Terms
    ) -> Candidate:
        """The cheapest rest of the run that still meets the deadline, else the fastest."""

        def seconds(each: Candidate) -> float:
            return left / each.speed + terms.changeover

        end = terms.deadline
        soon = [each for each in dear if end is None or now + seconds(each) <= end]
        if not soon:
            return max(dear, key=lambda each: each.speed)
        return min(soon, key=lambda each: each.usd_per_hour * seconds(each))

    def _pause(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> float:
        """Seconds until spot is asked again: of a place that has refused, or no longer than there
        is time."""
        places = self.weather.places
        refused = [places[each.name].refused_at for each in candidates if each.name in places]
        pause = min((at + terms.retry - now for at in refused if at is not None), default=0.0)
        if terms.deadline is not None and not all(each.spot for each in candidates):
            slack = self._slack(now, left, candidates, terms) - terms.changeover
            pause = min(pause, slack)
        return max(1.0, pause)

    def _pays(self, left: float, candidates: Sequence[Candidate], terms: Terms) -> bool:
        """Whether so much work costs less on spot machines, with what a start costs here."""
        assert self.on is not None
        spot = min((each.work for each in worth(candidates)), default=inf)
        return left * (self.on.work - spot) > terms.changeover * self.on.usd_per_hour

    def _may_look(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> bool:
        """The slack for a start on spot and another one on demand, once these machines are gone."""
        return self._may_start(now + terms.grain, left, candidates, terms)

    def _slow(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> float | None:
        if terms.deadline is None or all(each.spot for each in candidates):
            return None
        assert self.on is not None
        fastest = max(each.speed for each in candidates if not each.spot)
        slack = self._slack(now, left, candidates, terms) - terms.changeover
        shrinks = 1 - self.on.speed / fastest
        if shrinks <= 0 or slack >= shrinks * left / self.on.speed:
            return None
        return max(0.0, slack / shrinks)

    def _outlook(
        self, now: float, left: float, candidates: Sequence[Candidate], terms: Terms
    ) -> tuple[Outlook, int, int, float]:
        """The table of costs, the row and the column in it, and the seconds of a unit."""
        fastest = max(each.speed for each in candidates if not each.spot)
        unit = max(terms.changeover, geometric(left / fastest / UNITS, 1.25))
        work = max(1, ceil(left / (fastest * unit)))
        rows = 24 * ceil(work / 24)
        slack = int(min(rows, max(0.0, self._slack(now, left, candidates, terms) / unit)))
        columns = min(rows, 24 * ceil(max(1, slack) / 24))
        return outlook(self._odds(now, candidates, terms, unit), rows, columns), work, slack, unit

    def _odds(self, now: float, candidates: Sequence[Candidate], terms: Terms, unit: float) -> Odds:
        """What is expected of losses and outages, rounded so that alike odds share a table."""
        spot = worth(candidates)
        dear = min(each.work for each in candidates if not each.spot)
        running = now - self.since if self.on is not None and self.on.spot else 0.0
        return Odds(
            min(0.9, geometric(self.weather.losses_per_second(running) * unit, 1.25)),
            min(0.9, geometric(self.weather.returns_per_second(now) * unit, 1.25)),
            round(self.weather.moves(len(spot)), 1),
            geometric(max(0.01, min(each.work for each in spot) / dear), 1.1),
            round(terms.changeover / unit, 2),
        )
