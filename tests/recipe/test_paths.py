"""A path among the arguments of a component begins at the recipe's project, and is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe

DATASET = """\
from pathlib import Path

def build(root: str = "", file: Path | None = None, name: str = ""):
    pass
"""
RECIPE = """\
name: words
model: {name: mlp, args: {inputs: 4, hidden: 4, depth: 1, classes: 2}}
task: classification
train: {steps: 1, global_batch: 2}
dataset:
  name: words
  args: {%s: "%s"}
"""


def problems(project: Path, argument: str, value: str) -> list[str]:
    (project / "datasets").mkdir(exist_ok=True)
    (project / "recipes").mkdir(exist_ok=True)
    (project / "datasets/words.py").write_text(DATASET)
    recipe = project / "recipes/words.yaml"
    recipe.write_text(RECIPE % (argument, value))
    try:
        load_recipe(recipe)
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("argument", "value"),
    [("root", "./nowhere"), ("root", "../no"), ("root", "~/no/where"), ("file", "words.txt")],
)
def test_a_path_that_is_not_there_is_a_problem(tmp_path: Path, argument: str, value: str) -> None:
    (problem,) = problems(tmp_path, argument, value)
    assert problem.startswith(f"{tmp_path}/recipes/words.yaml:7:")
    assert f"dataset.args.{argument}: there is no such file or folder" in problem
    assert str(tmp_path) in problem.partition("got")[2]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("root", "corpus"), ("root", "./corpus"), ("file", "corpus/a.txt"), ("file", "/data/a"),
        ("root", "owner/name"), ("file", "s3://bucket/a"), ("root", "~nobody-here/x"),
        ("name", "a" * 300),
    ],
)  # fmt: skip
def test_what_is_there_or_no_path_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, value: str
) -> None:
    """Wherever the command is typed."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("x")
    monkeypatch.chdir("/")
    assert problems(tmp_path, argument, value) == []
