"""`Assignment`: what a launch tells the plugin of a run, as the `xrun` of SkyPilot's
`job_recovery`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Place:
    """A kind of machines in one place. `infra` is the place and `resources` the whole wish, as
    SkyPilot writes them, `instance` the machine that the price is that of. `usd_per_hour` is for
    all nodes together, as it was seen at the launch; `speed` is how much of the work they do in a
    second, over what the reference does."""

    infra: str
    spot: bool
    usd_per_hour: float
    nodes: int = 1
    speed: float = 1.0
    instance: str = ""
    accelerators: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """What tells it from other machines there."""
        return f"{self.nodes} x {self.instance}"


@dataclass(frozen=True)
class Assignment:
    """A run, what it was promised, and where it may go. Times are seconds since 1970.

    `state` is where its head is. It has so many `steps`, or `epochs` whose steps its attempts
    count; `left` of them were to do when it was launched, at `rate` steps a second on machines of
    speed 1. What is not known is None. `changeover`: seconds from a request for machines to the
    first new step; `retry`: until a place that has refused is asked again. `rests`: without
    machines, after the first ones, the second, ... in a row on which no attempt has begun; after
    one more the job ends.
    """

    run: str
    launched: float
    places: tuple[Place, ...]
    state: str = ""
    steps: int | None = None
    epochs: int | None = None
    left: int | None = None
    rate: float | None = None
    deadline: float | None = None
    max_wait: float | None = None
    budget_usd: float | None = None
    changeover: float = 600.0
    retry: float = 300.0
    rests: tuple[float, ...] = (300.0, 900.0, 2700.0, 8100.0)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the task."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        return {"version": VERSION, **told, "places": [asdict(place) for place in self.places]}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Assignment:
        """Read it. Raises ValueError with what to do about it."""
        if told.get("version") != VERSION:
            raise ValueError(
                f"job_recovery.xrun is of version {told.get('version')}, and this plugin knows"
                f" {VERSION}: install the plugin of the xrun that launches, by `xrun setup sky`."
            )
        known = {each.name for each in fields(cls)}
        try:
            places = tuple(Place(**place) for place in told["places"])
            rest = {name: value for name, value in told.items() if name in known}
            rests = tuple(map(float, rest.get("rests", cls.rests)))
            made = cls(**{**rest, "places": places, "rests": rests})
        except (KeyError, TypeError) as error:
            raise ValueError(f"job_recovery.xrun is no assignment of xrun's: {error}") from None
        if not places:
            raise ValueError("job_recovery.xrun names no places.")
        return made
