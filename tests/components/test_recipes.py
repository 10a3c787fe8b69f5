"""The recipes that come with xrun fit their components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from support.components import (
    NEEDS_THE_HUB,
    RECIPES,
    build,
)
from support.paths import ROOT
from xrun.component import check_args, signature
from xrun.data.loader import Fetch
from xrun.data.sampler import MicroBatch
from xrun.training.objective import Objective


def parts(recipe: Path) -> list[tuple[Any, str, dict[str, Any]]]:
    content = yaml.safe_load(recipe.read_text())
    return [
        (kind + "s", content[kind]["name"], content[kind].get("args", {}))
        for kind in ("model", "dataset")
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_arguments_in_every_recipe_fit_its_components(recipe: Path) -> None:
    """What a shipped recipe gives to `build` is what `build` takes."""
    for kind, name, args in parts(recipe):
        assert check_args(signature(ROOT / kind / f"{name}.py"), args) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_model_takes_its_datasets_batch(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Components build from their recipe's arguments and fit together, unless they need the Hub."""
    (_, model, model_args), (_, dataset, dataset_args) = parts(recipe)
    if {model, dataset} & NEEDS_THE_HUB:
        pytest.skip("needs the Hub")
    monkeypatch.chdir(ROOT)  # the project, in whose folder ranks run
    train = build("datasets", dataset, **dataset_args)["train"]
    task = yaml.safe_load(recipe.read_text())["task"]
    two = MicroBatch(0, 0, 0, 0, np.array([0, len(train) - 1]), 2)
    objective = Objective(build("models", model, **model_args), task).eval()
    sums = objective(Fetch(train, 0)[two][1], 2)
    assert {"loss"} <= sums.keys()
    assert all(torch.isfinite(value).all() for value in sums.values())
