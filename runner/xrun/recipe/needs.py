"""What a recipe needs of this machine: the libraries by which it trains here or is launched from
here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..libraries import HUB, LAUNCHING, METRICS, TRAINING, WANDB, Need
from .metrics import over_the_split
from .schema import Recipe


def needs(recipe: Recipe) -> Iterator[Need]:
    """Machines of a cloud bring their own libraries: a launch needs SkyPilot, and for state on the
    Hub its client, which asks whose token it is."""
    where = TRAINING if recipe.hardware.local else LAUNCHING
    yield where
    if recipe.checkpoint.durable:
        yield replace(HUB, what=f"`checkpoint.store: {recipe.checkpoint.store}`", extra=where.extra)
    evaluate = recipe.train.evaluate
    if recipe.hardware.local and over_the_split(recipe.task, evaluate.metric, evaluate.metrics):
        yield METRICS
    wandb = recipe.tracking.wandb
    if recipe.hardware.local and wandb is not None and wandb.mode == "online":
        yield replace(WANDB, what="`tracking.wandb`")
