"""Recipes as text, and what `xrun check` says about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.paths import FIXTURES, ROOT
from xrun.errors import Problem, RecipeError
from xrun.recipe.load import load_recipe

WRITTEN = FIXTURES / "recipes"
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
OLD = sorted(WRITTEN.glob("v1-*.yaml"))
HEAD = """\
name: small
model: {name: mlp, args: {inputs: 64, hidden: 128, depth: 2, classes: 10}}
dataset: {name: digits}
task: classification
"""
TRAIN = "train: {steps: 10, global_batch: 8}\n"
SMALL = HEAD + TRAIN
START = "It starts with keys such as `name: ...`."


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path | str, overrides: Sequence[str] = ()) -> list[Problem]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return list(error.value.problems)


def problems(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    """What `xrun check` says about a recipe, without the file's name."""
    path = write(folder, text)
    return [
        re.sub(f"^{re.escape(str(path))}: ?", "", str(problem))
        for problem in refused(path, overrides)
    ]
