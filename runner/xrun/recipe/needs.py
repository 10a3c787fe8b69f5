"""What a recipe needs of this machine: the libraries by which it trains here or is launched from
here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..libraries import (
    ALERTS,
    BAYES,
    BUCKET,
    HUB,
    LAUNCHING,
    METRICS,
    PEFT,
    QUANTIZED,
    TENSORBOARD,
    TRAINING,
    WANDB,
    Need,
)
from .metrics import over_the_split
from .schema import Recipe


def needs(recipe: Recipe) -> Iterator[Need]:
    """Machines of a cloud bring their own libraries: a launch needs SkyPilot, and for state or a
    model on the Hub its client, which asks whose token it is."""
    where = TRAINING if recipe.hardware.local else LAUNCHING
    yield where
    store = recipe.checkpoint.store
    if store.durable:
        need = BUCKET if store.in_bucket else replace(HUB, extra=where.extra)
        yield replace(need, what=f"`checkpoint.store: {store}`")
    if recipe.publish is not None:
        yield replace(HUB, extra=where.extra, what=f"`publish: {recipe.publish}`")
    if recipe.hardware.local and recipe.model.adapter is not None:
        yield PEFT
    if recipe.hardware.local and recipe.model.quantized:
        yield QUANTIZED
    if recipe.sweep is not None and recipe.sweep.method == "bayes":
        yield BAYES
    evaluate = recipe.train.evaluate
    if recipe.hardware.local and over_the_split(recipe.task, evaluate.metric, evaluate.metrics):
        yield METRICS
    wandb = recipe.tracking.wandb
    if recipe.hardware.local and wandb is not None and wandb.mode == "online":
        yield replace(WANDB, what="`tracking.wandb`")
    if recipe.hardware.local and recipe.tracking.tensorboard is not None:
        yield TENSORBOARD
    if recipe.hardware.local and recipe.alerts is not None:
        yield ALERTS
