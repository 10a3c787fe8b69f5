"""What a run has seen of interruptible machines: each place's answers and losses, and how long
nothing could be had anywhere.

Only launches that the run made itself count. Before it has seen any, `PRIOR_UP` and `PRIOR_DOWN`
are assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import exp, log
from typing import Any

PRIOR_UP, PRIOR_DOWN = 4 * 3600.0, 3600.0
"""Seconds that a machine is expected to last, and an outage; each weighs as much as one loss or one
outage that was seen. Chosen on one set of traces, where it mattered little: decision 0053."""


@dataclass
class Place:
    """One place's answers. Seconds since the epoch, or None for what has not happened."""

    asked: int = 0
    granted: int = 0
    lost: int = 0
    seconds: float = 0.0
    refused_at: float | None = None
    lost_at: float | None = None


@dataclass
class Weather:
    """The places, and the outages: times in which every place that was asked had refused. After a
    loss a run has `moved` to another place at once, or was `stranded`."""

    places: dict[str, Place] = field(default_factory=dict)
    outages: int = 0
    outage_seconds: float = 0.0
    outage_since: float | None = None
    moved: int = 0
    stranded: int = 0

    def place(self, name: str) -> Place:
        """What is known of one; a new one if nothing is."""
        return self.places.setdefault(name, Place())

    def granted(self, now: float, name: str) -> None:
        """A machine was given. It ends an outage, or else a loss was followed by a move."""
        place = self.place(name)
        place.asked, place.granted, place.refused_at = place.asked + 1, place.granted + 1, None
        if self.outage_since is not None:
            self.outages += 1
            self.outage_seconds += max(0.0, now - self.outage_since)
            self.outage_since = None
        elif any(each.lost_at is not None for each in self.places.values()):
            self.moved += 1

    def refused(self, now: float, name: str) -> None:
        """No machine was given."""
        place = self.place(name)
        place.asked, place.refused_at = place.asked + 1, now

    def lost(self, now: float, name: str, seconds: float) -> None:
        """A machine that was there for so long went away."""
        place = self.place(name)
        place.lost, place.lost_at = place.lost + 1, now
        self.lasted(name, seconds)

    def lasted(self, name: str, seconds: float) -> None:
        """A machine was there for so long and was given back."""
        self.place(name).seconds += max(0.0, seconds)

    def nowhere(self, now: float) -> None:
        """Every place has refused: an outage begins, or goes on."""
        if self.outage_since is None:
            self.outage_since = now
            self.stranded += 1

    def losses_per_second(self, running: float = 0.0, name: str | None = None) -> float:
        """Losses of a running machine, anywhere or in one place. One place weighs its own losses
        against the mean of all."""
        lost = sum(place.lost for place in self.places.values())
        seconds = sum(place.seconds for place in self.places.values()) + running
        mean = (1 + lost) / (PRIOR_UP + seconds)
        if name is None:
            return mean
        own = self.places.get(name, Place())
        return (1 + own.lost) / (1 / mean + own.seconds)

    def returns_per_second(self, now: float) -> float:
        """Ends of outages. One that lasts longer than the others is expected to last longer
        still."""
        lasting = now - self.outage_since if self.outage_since is not None else 0.0
        return (1 + self.outages) / (PRIOR_DOWN + self.outage_seconds + max(0.0, lasting))

    def moves(self, places: int) -> float:
        """The probability that another place has a machine when one is lost."""
        expected = 1 - 0.5 ** max(0, places - 1)
        return (2 * expected + self.moved) / (2 + self.moved + self.stranded)

    def to_json(self) -> dict[str, Any]:
        """Everything, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Weather:
        """What `to_json` has written."""
        places = {name: Place(**place) for name, place in data["places"].items()}
        return cls(**{**data, "places": places})


def geometric(value: float, ratio: float) -> float:
    """The nearest power of `ratio`: so that alike values share one table."""
    return exp(round(log(value) / log(ratio)) * log(ratio))
