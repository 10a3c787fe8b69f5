"""`xrun init --list` and `xrun init NAME`: the recipes that xrun brings along."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.paths import ROOT
from support.recipes import SHIPPED
from xrun import component
from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.shipped import Shipped, copy, find, shipped

pytestmark = pytest.mark.once


def test_all_of_them_are_offered_with_a_sentence() -> None:
    """By the names of their files, each with the first sentence of its comment."""
    assert [each.path for each in shipped()] == SHIPPED
    told = {each.name: each.sentence for each in shipped()}
    assert told["digits-mlp"] == (
        "The smoke test: a perceptron on scikit-learn's digits (1,437 to train on, 360 held out)."
    )
    assert all(len(text) > 30 and text.endswith(".") and "#" not in text for text in told.values())


@pytest.mark.parametrize("recipe", shipped(), ids=lambda recipe: recipe.name)
def test_a_copy_has_all_that_it_needs(recipe: Shipped, tmp_path: Path) -> None:
    """It is the same recipe, its components and data lie in the folder, and it can be copied there
    twice."""
    path = copy(recipe, tmp_path)
    assert (path.parent.parent, path.read_bytes()) == (tmp_path, recipe.path.read_bytes())
    found = load_recipe(path)
    assert component.find("models", found.model.name, tmp_path).parent.parent == tmp_path
    assert component.find("datasets", found.dataset.name, tmp_path).parent.parent == tmp_path
    assert copy(recipe, tmp_path) == path


def test_data_go_along(tmp_path: Path) -> None:
    """A file that an argument names."""
    copy(find("chat_lora"), tmp_path)
    data = "recipes/data/handbook.jsonl"
    assert (tmp_path / data).read_bytes() == (ROOT / data).read_bytes()


def test_nothing_is_overwritten_or_hidden(tmp_path: Path) -> None:
    """Another file in the way, a project around the folder, a name that nobody knows."""
    (tmp_path / "models").mkdir()
    own = tmp_path / "models" / "mlp.py"
    own.write_text("mine")
    with pytest.raises(RecipeError, match="there is another file already"):
        copy(find("digits-mlp"), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(RecipeError, match=f"xrun init digits {tmp_path}$"):
        copy(find("digits"), tmp_path / "sub")
    with pytest.raises(RecipeError, match="Did you mean `digits-mlp`"):
        find("digits-mpl")
