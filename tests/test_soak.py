"""The long drills (`make soak`): what a person would run for an afternoon before trusting a
change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import RECIPES
from xrun.drill import drill
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.plan import make_plan

pytestmark = pytest.mark.soak


HERE = [path for path in sorted(RECIPES.glob("*.yaml")) if load_recipe(path).hardware.local]
"""The shipped recipes that any machine trains; the others rent GPUs and read from the Hub."""
SHORTER = {"text_gpt": ["train.steps=200"]}
"""Instead of 500: it takes minutes."""


@pytest.mark.parametrize("recipe", [path.stem for path in HERE])
def test_twenty_kills_change_no_bit(recipe: str, tmp_path: Path) -> None:
    """Twenty kills of a shipped recipe, with a save every 20 steps for them to interrupt, change no
    logged value and no bit of the weights."""
    overrides = ["checkpoint.every=20 steps", *SHORTER.get(recipe, [])]
    result = drill(RECIPES / f"{recipe}.yaml", overrides, kills=20, folder=tmp_path, say=print)
    assert (result.kills.total(), result.differences) == (20, [])


def test_kills_and_resizes_change_no_bit(tmp_path: Path) -> None:
    """Another number of processes after every kill of the small vision transformer changes no bit
    either."""
    result = drill(RECIPES / "digits.yaml", kills=5, resize=True, folder=tmp_path, say=print)
    assert (result.kills.total(), result.differences, result.largest_difference) == (5, [], 0.0)


def test_four_processes_with_several_buckets(tmp_path: Path) -> None:
    """Four processes with more than 5 MB of gradients, where DDP rebuilds its buckets, end in the
    same bits."""
    overrides = ["model.args.hidden=1280", "train.steps=300", "checkpoint.every=20 steps"]
    result = drill(
        RECIPES / "digits_mlp.yaml", overrides, kills=8, processes=4, folder=tmp_path, say=print
    )
    assert (result.kills.total(), result.differences) == (8, [])


def test_two_hundred_kills_change_no_bit(tmp_path: Path) -> None:
    """Two hundred kills, about half an hour on 2 cores, change no bit."""
    overrides = ["train.steps=6000", "checkpoint.every=50 steps"]
    result = drill(
        RECIPES / "digits_mlp.yaml", overrides, kills=200, seed=1, folder=tmp_path, say=print
    )
    assert (result.kills.total(), result.differences) == (200, [])


@pytest.mark.parametrize(
    ("name", "metric", "least", "most"),
    [
        ("image_folder", "val/accuracy", 0.97, 1.0),
        ("table_regression", "val/r2", 0.34, 0.4),
        ("diffusion", "val/loss", 0.35, 0.37),
    ],
)
def test_recipes_reach_what_they_say(
    name: str, metric: str, least: float, most: float, tmp_path: Path
) -> None:
    """The number in the recipe's first lines, on any processor to a percent or two."""
    recipe = RECIPES / f"{name}.yaml"
    command = [sys.executable, "-m", "xrun", str(recipe), "--yes"]
    subprocess.run(command, env={**os.environ, "XRUN_HOME": str(tmp_path)}, check=True)
    plan = make_plan(load_recipe(recipe), recipe, environ={"XRUN_HOME": str(tmp_path)})
    assert least <= RunFolder(plan.folder).metrics_now()[metric] <= most
