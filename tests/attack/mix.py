"""What is tried, how often, and within which time: the one table of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cases, damage, disturbed, far, recipes, trained

Case = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of try: its share of all, how a seed draws a case, what plays it in a folder, and the
    seconds after which it hangs."""

    share: float
    draw: Callable[[random.Random], Case]
    play: Callable[[Case, Path], None]
    seconds: float
    what: str


KINDS = {
    "recipe": Kind(40, recipes.draw, recipes.play, 20, "xrun check of valid and broken recipes"),
    "model": Kind(26, cases.draw, trained.play, 60, "trained at a stretch, against the oracle"),
    "killed": Kind(18, cases.killed, trained.play, 90, "the same under SIGKILL and resumed"),
    "damage": Kind(16, damage.draw, damage.play, 90, "files of a run damaged, then read and run"),
    "signal": Kind(4, disturbed.draw, disturbed.play, 150, "signals to any process of a run"),
    "shared": Kind(5, cases.shared, trained.play, 120, "two processes, one killed"),
    "server": Kind(0.7, far.draw, far.play, 240, "faults of Hub and W&B, lost machines"),
    "command": Kind(0.4, disturbed.cold, disturbed.play, 240, "signals to the real command"),
}


def kind_of(seed: int) -> str:
    """The kind that a seed draws."""
    shares = [kind.share for kind in KINDS.values()]
    return random.Random(f"kind {seed}").choices(list(KINDS), shares)[0]
