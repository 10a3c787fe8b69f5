"""The recipes that come with xrun fit their components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    collate = getattr(train, "collate", torch.utils.data.default_collate)
    batch = collate([train[0], train[len(train) - 1]])
    inputs, labels = (batch["input_ids"], batch["labels"]) if isinstance(batch, dict) else batch
    output = build("models", model, **model_args)(inputs)
    logits = getattr(output, "logits", output)
    assert logits.shape[: labels.ndim] == labels.shape
    assert torch.isfinite(logits).all()
    assert logits.shape[-1] > labels.max()
