"""A file of any kind is answered within seconds: anything up to 256 KiB, and larger ones at once.

Covers `xrun.recipe.load` and `xrun.recipe.yaml_nodes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.mutations import SMALL
from xrun.errors import Problem, RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.yaml_nodes import MAX_BYTES

SECONDS = 8.0
"""Of one processor; a person's is faster than a busy machine's."""


def many(one: str, by: str = "\n") -> str:
    """As many of these, numbered, as a file may hold."""
    made: list[str] = []
    size = 0
    while size < MAX_BYTES - len(SMALL) - 200:
        made.append(one.format(len(made)))
        size += len(made[-1]) + len(by)
    return by.join(made)


KINDS = {
    "unknown keys": SMALL + many("k{}: 1"),
    "few unknown keys": SMALL + "\n".join(f"learning_rate{i}: 1" for i in range(9000)),
    "unknown keys of train": SMALL.replace("micro_batch: 4", many("k{}: 1", ", ")[:100_000]) + "}",
    "duplicates": SMALL + many("task: model"),
    "few duplicates": SMALL + "task: model\n" * 9000,
    "arguments": SMALL.replace("inputs: 8", ", ".join(f"input{i}: 1" for i in range(9000))),
    "wrong arguments": SMALL.replace("inputs: 8", f"inputs: [{'1,' * 15000}]"),
    "candidates": SMALL.replace(
        "hardware: local",
        "hardware: {any_of: [" + ", ".join(f"{{accelerators: A10{i}}}" for i in range(4000)) + "]}",
    ),
    "clouds": SMALL.replace(
        "hardware: local",
        f"hardware: {{any_of: [{{clouds: [{', '.join(f'aws{i}' for i in range(15000))}]}}]}}",
    ),
    "secrets": SMALL + f"secrets: [{', '.join(f'a{i}' for i in range(15000))}]",
    "the same secret": SMALL + f"secrets: [{'TOKEN, ' * 15000}]",
    "environment": SMALL + "env: {" + ", ".join(f"A{i}_KEY: x" for i in range(9000)) + "}",
    "files": SMALL + f"files: {{{many('/a/b/c{}: x', ', ')}}}",
    "deep files": SMALL + f"files: {{{', '.join('a/' * i + ': x' for i in range(1, 400))}}}",
    "a long list": SMALL + "x: [" + "1," * 120_000 + "]",
    "aliases": SMALL + "a: &a [" + "x," * 90 + "]\n" + "b: [" + "*a," * 60_000 + "]",
    "merges": "a: &a {}\nb: {<<: [" + "*a," * 9000 + "], " + "k: 1," * 9000 + "}\n" + SMALL,
    "a bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    + SMALL,
    "deep lists": SMALL + "x: " + "[" * 120_000,
    "deep mappings": SMALL + "x: " + "{a: " * 60_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(600)) + SMALL,
    "dashes": "- " * 120_000,
    "questions": "? " * 120_000,
    "one long line": SMALL + "x: " + "x" * 250_000,
    "one long quoted line": SMALL + "x: '" + "''" * 120_000 + "'",
    "escapes": SMALL + 'x: "' + "\\n" * 120_000 + '"',
    "folded lines": SMALL + "x: >\n" + "  a\n\n" * 50_000,
    "empty lines": "\n" * 250_000 + SMALL,
    "comments": "#\n" * 120_000 + SMALL,
    "spaces": SMALL + "x:" + " " * 250_000 + "1",
    "a huge number": SMALL.replace("steps: 100", "steps: " + "9" * 250_000),
    "a huge fraction": SMALL.replace("steps: 100", "steps: 1." + "9" * 250_000 + "e999999999"),
    "a prime batch": SMALL.replace("global_batch: 8", "global_batch: 9007199254740881").replace(
        "micro_batch: 4", "micro_batch: 9007199254740880"
    ),
    "addresses": SMALL + "x: " + "://" * 80_000,
    "an address": SMALL + "x: https://" + "a:" * 100_000 + "@",
    "letters of a token": SMALL + "x: " + "hf_" * 80_000,
    "anchors": SMALL + many("k{0}: &a{0} 1"),
    "a path": SMALL.replace("name: mlp", "name: " + "../" * 80_000),
    "one name": SMALL + "x" * 250_000 + ": 1",
    "bytes": "\x00" * 250_000,
    "larger": SMALL + "#" * 300_000,
    "much larger": SMALL + "k: 1\n" * 10_000_000,
}


def problems_of(path: Path) -> Sequence[Problem]:
    try:
        load_recipe(path)
    except RecipeError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_is_answered_within_seconds(tmp_path: Path, kind: str) -> None:
    """With a recipe, or at most a hundred problems and how many more there are."""
    path = tmp_path / "recipe.yaml"
    path.write_text(KINDS[kind])
    assert (path.stat().st_size <= MAX_BYTES) == ("larger" not in kind)
    began = time.process_time()
    problems = problems_of(path)
    assert time.process_time() - began < SECONDS
    assert len(problems) <= 101
    assert max([0, *map(len, map(str, problems))]) < 2000


def test_a_chain_is_as_large_as_one_file(tmp_path: Path) -> None:
    """Recipes that extend one another are read to 256 KiB together."""
    for number in range(5):
        text = f"extends: {number + 1}.yaml\n# {'x' * 60_000}\n" + SMALL
        (tmp_path / f"{number}.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "0.yaml")
    assert [problem.what for problem in error.value.problems] == [
        "together with the recipes that extend it, it is larger than 256 KiB"
    ]
    assert error.value.problems[0].path == str(tmp_path / "4.yaml")


def test_a_pipe_that_nobody_writes_into_is_empty(tmp_path: Path) -> None:
    """It is not waited for."""
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="the recipe is empty"):
        load_recipe(tmp_path / "recipe.yaml")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """A hundred problems in the order of the file, and the number of the others."""
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL + "\n".join(f"k{i}: 1" for i in range(150)))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    *told, last = error.value.problems
    assert [problem.key for problem in told] == [f"k{i}" for i in range(100)]
    assert last.what == "and 50 more from here on"
