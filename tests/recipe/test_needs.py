"""A recipe needs of this machine what it asks for, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipes import SMALL, write
from xrun.recipe.load import load_recipe
from xrun.recipe.needs import needs

CLOUD = "hardware={any_of: [{accelerators: T4}]}"
TRAIN = "torch accelerate safetensors numpy"


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], [(TRAIN, "train")]),
        (["tracking.wandb.project=p"], [(TRAIN, "train"), ("wandb", "train")]),
        (["train.evaluate.metric=f1"], [(TRAIN, "train"), ("torchmetrics", "train")]),
        (["train.evaluate.metrics=[accuracy]"], [(TRAIN, "train")]),
        (
            ["train.evaluate.metric=f1", CLOUD, "checkpoint.store=hub"],
            [("sky", "cloud"), ("huggingface_hub", "cloud")],
        ),
        (["tracking.wandb={project: p, mode: offline}"], [(TRAIN, "train")]),
        (["tracking.tensorboard=true"], [(TRAIN, "train"), ("tensorboard", "tensorboard")]),
        (["tracking.tensorboard=false"], [(TRAIN, "train")]),
        (
            [CLOUD, "checkpoint.store=hub", "tracking.tensorboard=true"],
            [("sky", "cloud"), ("huggingface_hub", "cloud")],
        ),
        (["alerts.to=[HOOK]"], [(TRAIN, "train"), ("apprise", "alerts")]),
        (
            [CLOUD, "checkpoint.store=hub", "alerts.to=[HOOK]"],
            [("sky", "cloud"), ("huggingface_hub", "cloud")],
        ),
        (["checkpoint.store=hub"], [(TRAIN, "train"), ("huggingface_hub", "train")]),
        (["checkpoint.store=s3://bucket/x"], [(TRAIN, "train"), ("obstore", "bucket")]),
        ([CLOUD, "checkpoint.store=gs://bucket/x"], [("sky", "cloud"), ("obstore", "bucket")]),
        (
            [CLOUD, "checkpoint.store=hub", "tracking.wandb.project=p"],
            [("sky", "cloud"), ("huggingface_hub", "cloud")],
        ),
    ],
)
def test_needs(tmp_path: Path, overrides: list[str], wanted: list[tuple[str, str]]) -> None:
    """What a machine of a cloud needs comes with it; points that wait for `xrun sync` need no
    wandb."""
    recipe = load_recipe(write(tmp_path, SMALL), overrides)
    assert [(" ".join(need.modules), need.extra) for need in needs(recipe)] == wanted
