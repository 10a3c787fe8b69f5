"""YAML 1.2 with positions: scalars, aliases, merge keys, and texts that are no recipe. Covers
`xrun.recipe.yaml_nodes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import ROOT
from support.recipes import (
    HEAD,
    SMALL,
    START,
    TRAIN,
    WRITTEN,
    problems,
    write,
)
from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe

WRONG = {case["case"]: case for case in yaml.safe_load((WRITTEN / "wrong_texts.yaml").read_text())}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
# What cannot well be written down in wrong_texts.yaml.
ODD: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", [f"the recipe is empty. {START}"]),
    "comment": ("# only", [f"the recipe is empty. {START}"]),
    "list": ("- a\n", [f"1:1: a recipe is a mapping. {START}"]),
    "null": ("null\n", [f"1:1: the recipe is empty. {START}"]),
    "NUL": ("name: x\0\n", ["1:8: the character U+0000 is not allowed here."]),
    "bell": ("name: a\nb: \x07\n", ["2:4: the character U+0007 is not allowed here."]),
    "not UTF-8": (b"name: x\ntask: \xff\n", ["2:7: it is not UTF-8 text here."]),
    "UTF-16": ("name: x\n".encode("utf-16"), ["1:1: it is not UTF-8 text here."]),
    "two documents": (
        SMALL + "---\nname: x\n",
        ["6:1: a second document starts here; a recipe is one."],
    ),
    "nested in brackets": (
        "name: " + "[" * 5000 + "]" * 5000,
        ["1:46: it is nested more than 40 deep."],
    ),
    "nested in lines": (
        "".join(" " * depth + "a:\n" for depth in range(600)),
        ["40:40: it is nested more than 40 deep."],
    ),
    "too large": ("#" * 300_000, ["it is larger than 256 KiB, which no recipe is."]),
    "alias bomb": (BOMB, ["1:24: e.0.6.8.8.8: its aliases expand to more than 20000 values."]),
    "huge YAML version": (
        "%YAML " + "9" * 5000 + ".1\n---\na: b\n",
        ["this is not YAML: it holds a number that is too large."],
    ),
    "5000 digits": (
        HEAD + TRAIN.replace("10", "9" * 5000),
        [f"5:16: train.steps: must be a whole number (got {'9' * 57}...)."],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_text_has_its_sentence(tmp_path: Path, case: str) -> None:
    """A text that is no recipe is refused at the place where it goes wrong, with exactly this
    sentence."""
    assert problems(tmp_path, WRONG[case]["recipe"]) == WRONG[case]["problems"]


@pytest.mark.parametrize("case", ODD)
def test_odd_bytes_have_their_sentence(tmp_path: Path, case: str) -> None:
    """Whatever bytes a file holds, the answer is one sentence about them."""
    text, expected = ODD[case]
    assert problems(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1:30", "1:30"),
        ("on", "on"),
        ("yes", "yes"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.", 1.0),
        ("+3", 3),
        ("-.5", -0.5),
        ("true", True),
        ("~", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("=", "="),
        ("[1, null]", [1, None]),
        ("{a: {b: 1.50}}", {"a": {"b": 1.5}}),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    """A value means what the YAML 1.2 core schema says, and not what YAML 1.1 made of it."""
    recipe = load_recipe(write(tmp_path, train(f"optimizer: {{args: {{x: {text}}}}}")))
    assert recipe.train.optimizer.args["x"] == value
    assert type(recipe.train.optimizer.args["x"]) is type(value)


def train(more: str) -> str:
    """A small recipe with more keys in `train`, in line 5."""
    return HEAD + "train: {steps: 10, global_batch: 8, " + more + "}\n"


def test_aliases_and_merge_keys(tmp_path: Path) -> None:
    """`&`, `*` and `<<` work; what stands in the mapping itself is stronger than what is merged
    into it."""
    more = (
        "    - &big {accelerators: 'A100:8', disk: 100}\n    - {<<: *big, disk: 200}\n    - {<<:"
        " [{nodes: 2}, *big]}\n"
    )
    path = write(
        tmp_path,
        f"{HEAD}train: {{steps: 1, global_batch: 16}}\ncheckpoint: {{store: hub}}\nhardware:\n "
        f" any_of:\n{more}",
    )
    first, second, third = load_recipe(path).hardware.any_of
    assert [str(one.accelerators) for one in (first, second, third)] == ["A100:8"] * 3
    assert (first.disk, second.disk, third.nodes) == (100, 200, 2)


def test_null_is_the_default(tmp_path: Path) -> None:
    """A key without a value is as if it were not there, and in `args` it is a null."""
    recipe = load_recipe(
        write(
            tmp_path,
            train("seed: null, evaluate:, optimizer: {args: {x: ~}}").replace(
                "evaluate:,", "evaluate: ,"
            ),
        )
    )
    assert (recipe.train.seed, recipe.train.evaluate.metric, recipe.train.optimizer.args) == (
        0,
        "loss",
        {"x": None},
    )


def test_a_file_of_python_is_told_as_that() -> None:
    """Somebody has typed the component instead of the recipe."""
    with pytest.raises(RecipeError, match="this one has the name of Python's"):
        load_recipe(ROOT / "models" / "vit.py")
