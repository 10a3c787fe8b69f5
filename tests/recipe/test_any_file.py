"""Whatever a file holds, the answer is a recipe, or a list of problems."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.mutations import OVERRIDES, mutated_bytes, mutated_nodes
from support.recipes import OLD, SHIPPED
from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.schema import Recipe


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "r.yaml"


def sweep(count: int) -> settings:
    """So many mutated recipes, the same ones each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.once
@sweep(1_000)
@given(seed=st.integers(0, 2**64))
def test_any_file_is_a_recipe_or_problems(scratch: Path, seed: int) -> None:
    """A thousand mutated recipes: each one loads, or is refused with problems that can be printed;
    nothing else ever happens."""
    load_mutated(scratch, seed)


@pytest.mark.soak
@sweep(50_000)
@given(seed=st.integers(0, 2**64))
def test_any_of_many_files_is_a_recipe_or_problems(scratch: Path, seed: int) -> None:
    """Fifty thousand of them."""
    load_mutated(scratch, seed)


def load_mutated(scratch: Path, seed: int) -> None:
    """One mutated recipe, and what came of it."""
    dice = random.Random(seed)
    text = dice.choice([*SHIPPED, *OLD]).read_bytes()
    mutate = dice.choice([mutated_bytes, mutated_nodes])
    scratch.write_bytes(mutate(text, dice))
    try:
        recipe = load_recipe(scratch, dice.sample(OVERRIDES, dice.choice([0, 0, 1, 2])))
    except RecipeError as error:
        said = error.problems
    else:
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
        return
    assert said
    assert all(problem.what and problem.path and str(problem).encode() for problem in said)
