"""A file of any kind is answered within seconds: anything up to 256 KiB, and larger ones at once.

Covers `xrun.recipe.load` and `xrun.recipe.yaml_nodes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from xrun.errors import Problem, RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.yaml_nodes import MAX_BYTES

SECONDS = 8.0
"""Of one processor; a person's is faster than a busy machine's."""
BASE = """\
name: s
model: {name: mlp, args: {inputs: 8, hidden: 16, depth: 1, classes: 4}}
dataset: {name: digits}
task: classification
hardware: local
train: {steps: 100, global_batch: 8, micro_batch: 4}
"""


def many(one: str, by: str = "\n") -> str:
    """As many of these, numbered, as a file may hold."""
    made: list[str] = []
    size = 0
    while size < MAX_BYTES - len(BASE) - 200:
        made.append(one.format(len(made)))
        size += len(made[-1]) + len(by)
    return by.join(made)


KINDS = {
    "unknown keys": BASE + many("k{}: 1"),
    "few unknown keys": BASE + "\n".join(f"learning_rate{i}: 1" for i in range(9000)),
    "unknown keys of train": BASE.replace("micro_batch: 4", many("k{}: 1", ", ")[:100_000]) + "}",
    "duplicates": BASE + many("task: model"),
    "few duplicates": BASE + "task: model\n" * 9000,
    "arguments": BASE.replace("inputs: 8", ", ".join(f"input{i}: 1" for i in range(9000))),
    "wrong arguments": BASE.replace("inputs: 8", f"inputs: [{'1,' * 15000}]"),
    "candidates": BASE.replace(
        "hardware: local",
        "hardware: {any_of: [" + ", ".join(f"{{accelerators: A10{i}}}" for i in range(4000)) + "]}",
    ),
    "clouds": BASE.replace(
        "hardware: local",
        f"hardware: {{any_of: [{{clouds: [{', '.join(f'aws{i}' for i in range(15000))}]}}]}}",
    ),
    "secrets": BASE + f"secrets: [{', '.join(f'a{i}' for i in range(15000))}]",
    "the same secret": BASE + f"secrets: [{'TOKEN, ' * 15000}]",
    "environment": BASE + "env: {" + ", ".join(f"A{i}_KEY: x" for i in range(9000)) + "}",
    "a long list": BASE + "x: [" + "1," * 120_000 + "]",
    "aliases": BASE + "a: &a [" + "x," * 90 + "]\n" + "b: [" + "*a," * 60_000 + "]",
    "merges": "a: &a {}\nb: {<<: [" + "*a," * 9000 + "], " + "k: 1," * 9000 + "}\n" + BASE,
    "a bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    + BASE,
    "deep lists": BASE + "x: " + "[" * 120_000,
    "deep mappings": BASE + "x: " + "{a: " * 60_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(600)) + BASE,
    "dashes": "- " * 120_000,
    "questions": "? " * 120_000,
    "one long line": BASE + "x: " + "x" * 250_000,
    "one long quoted line": BASE + "x: '" + "''" * 120_000 + "'",
    "escapes": BASE + 'x: "' + "\\n" * 120_000 + '"',
    "folded lines": BASE + "x: >\n" + "  a\n\n" * 50_000,
    "empty lines": "\n" * 250_000 + BASE,
    "comments": "#\n" * 120_000 + BASE,
    "spaces": BASE + "x:" + " " * 250_000 + "1",
    "a huge number": BASE.replace("steps: 100", "steps: " + "9" * 250_000),
    "a huge fraction": BASE.replace("steps: 100", "steps: 1." + "9" * 250_000 + "e999999999"),
    "a prime batch": BASE.replace("global_batch: 8", "global_batch: 9007199254740881").replace(
        "micro_batch: 4", "micro_batch: 9007199254740880"
    ),
    "addresses": BASE + "x: " + "://" * 80_000,
    "an address": BASE + "x: https://" + "a:" * 100_000 + "@",
    "letters of a token": BASE + "x: " + "hf_" * 80_000,
    "anchors": BASE + many("k{0}: &a{0} 1"),
    "a path": BASE.replace("name: mlp", "name: " + "../" * 80_000),
    "one name": BASE + "x" * 250_000 + ": 1",
    "bytes": "\x00" * 250_000,
    "larger": BASE + "#" * 300_000,
    "much larger": BASE + "k: 1\n" * 10_000_000,
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
        text = f"extends: {number + 1}.yaml\n# {'x' * 60_000}\n" + BASE
        (tmp_path / f"{number}.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "0.yaml")
    assert [problem.what for problem in error.value.problems] == [
        "together with what extends it, it is larger than 256 KiB"
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
    path.write_text(BASE + "\n".join(f"k{i}: 1" for i in range(150)))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    *told, last = error.value.problems
    assert [problem.key for problem in told] == [f"k{i}" for i in range(100)]
    assert last.what == "and 50 more from here on"
