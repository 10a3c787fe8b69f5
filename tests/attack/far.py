"""Tries of a run whose state is on a Hub, some with Weights & Biases: faults of both servers, kills
and lost machines (`support.far_away`)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from loopback.hub import Hub
from loopback.wandb import Wandb
from support.far_away import FarAway
from support.far_away import play as play_schedule

from .lives import Wrong
from .started import started

Case = dict[str, Any]


def draw(dice: random.Random) -> Case:
    """A schedule's seed, and whether W&B is told."""
    return {"seed": dice.randrange(2**32), "wandb": dice.random() < 0.15}


def play(case: Case, folder: Path) -> None:
    """Play the schedule.

    Raises:
        Wrong: something was lost, doubled, or begun anew.
    """
    right = started().right
    with Hub(folder / "hub") as hub, Wandb(folder / "wandb") as wandb:
        far = FarAway(folder / "project", hub, wandb if case["wandb"] else None, "far")
        result = play_schedule(far, case["seed"], right)
    if result.wrong:
        raise Wrong("; ".join(result.wrong))
