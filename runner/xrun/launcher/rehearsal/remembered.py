"""Rehearsals that went well, by the digest of all that went into them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from blake3 import blake3

from ... import clock, environment
from ...files import needed, number, read_json, write_json
from ...run.plan import Plan
from ..bundle import Cargo
from .interpreter import Libraries
from .small import small_recipe

_ELSE = ("plan.json", "prices.json", "code.json", "dirty.diff")
"""Files of a cargo that change nothing of what is rehearsed: the recipe counts by itself."""


@dataclass(frozen=True)
class Rehearsed:
    """When a rehearsal ended, in seconds since 1970, and how long it took."""

    when: float
    seconds: float

    def __str__(self) -> str:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.when))
        return f"rehearsed {day} in {self.seconds:.0f} s, nothing changed"


def digest_of(plan: Plan, cargo: Cargo, libraries: Libraries) -> str:
    """Of all that goes into a rehearsal: what it reads of the recipe, the project and xrun as they
    are packed, and the libraries."""
    files = {
        name: blake3(data).hexdigest()
        for name, data in sorted(cargo.files.items())
        if name not in _ELSE
    }
    told = [small_recipe(plan), dict(plan.recipe["train"]), files, libraries.key]
    return blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def folder() -> Path:
    """Where they are kept, and the logs of those that failed."""
    return environment.cache_folder() / "rehearsals"


def remembered(digest: str) -> Rehearsed | None:
    """The rehearsal of this digest, if it went well."""
    told = read_json(folder() / f"{digest}.json", dict)
    if told is None or not number(told.get("when")):
        return None
    return Rehearsed(number(told.get("when")), number(told.get("seconds")))


def remember(digest: str, seconds: float) -> None:
    """It went well."""
    with needed(folder()):
        folder().mkdir(parents=True, exist_ok=True)
        write_json(folder() / f"{digest}.json", asdict(Rehearsed(clock.now(), seconds)))
        (folder() / f"{digest}.log").unlink(missing_ok=True)


def keep_log(digest: str, text: str) -> Path:
    """It failed, and this is what its process has printed; where that is now."""
    with needed(folder()):
        folder().mkdir(parents=True, exist_ok=True)
        path = folder() / f"{digest}.log"
        path.write_text(text)
    return path
