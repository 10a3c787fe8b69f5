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


LIMIT = 1600
"""Megabytes of data (RLIMIT_DATA) that a process may have, libraries included. A part of weights,
gradients and two moments is 1,008 MB, the largest layer 50 MB."""
LARGE = ["model.args={vocab: 256, context: 16, width: 1024, depth: 20, heads: 16}"]
LARGE += ["dataset.args={context: 16, val_fraction: 0}", "hardware={local: {processes: 4}}"]
LARGE += ["train.steps=3", "train.schedule.warmup_steps=1", "train.evaluate={}"]
LARGE += ["train.global_batch=4", "train.micro_batch=1", "checkpoint.every=1 steps"]


def limited(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of xrun that has only so much memory for each of its processes."""
    shell = ["sh", "-c", 'ulimit -d "$0"; exec "$@"', str(LIMIT << 10)]
    command = [*shell, sys.executable, "-m", "xrun", *words]
    environment = {**os.environ, "XRUN_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def test_three_gigabytes_over_four_processes(tmp_path: Path) -> None:
    """A state of 3 GB, which is 4 GB with its gradients, is trained, saved, killed, restored and
    exported by four processes that each have room for 1.6: what one could not even begin."""
    recipe = str(RECIPES / "text_gpt.yaml")
    more = [word for each in LARGE for word in ("-s", each)]
    alone = limited(tmp_path, recipe, "--yes", "--run", "whole", *more)
    assert alone.returncode == 7, alone.stderr
    assert "can't allocate memory" in alone.stderr
    words = ["--kills", "1", "--processes", "4", "--folder", str(tmp_path / "drill")]
    sharded = limited(tmp_path, "drill", recipe, *words, *more, "-s", "train.sharding=fsdp")
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    assert "EQUAL" in sharded.stdout
