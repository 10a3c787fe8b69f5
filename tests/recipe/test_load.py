"""A recipe from files: what it extends, and what the command line overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.recipes import (
    HEAD,
    OLD,
    SHIPPED,
    SMALL,
    TRAIN,
    WRITTEN,
    problems,
    refused,
    write,
)
from xrun.recipe.load import load_recipe


@pytest.mark.parametrize("path", [*SHIPPED, *OLD], ids=lambda path: path.name)
def test_recipe_loads(path: Path) -> None:
    """Every recipe that is shipped, and every one of an earlier version, is one."""
    assert load_recipe(path).version == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipe_names_its_schema(path: Path) -> None:
    """An editor with a YAML language server checks every shipped recipe."""
    assert "# yaml-language-server: $schema=recipe.schema.json\n" in path.read_text()


@pytest.mark.parametrize("name", ["missing.yaml", "", "folder", "a\0b", "x" * 5000])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    """A file that is not there, a folder, and a name that cannot be one are each one problem."""
    (tmp_path / "folder").mkdir()
    found = refused(f"{tmp_path}/{name}")
    assert len(found) == 1
    assert found[0].what.startswith("it cannot be read: ")


def test_a_recipe_that_is_not_there_is_told_what_is(tmp_path: Path) -> None:
    """The one that is nearly called so, those that are there, or the command that writes one."""
    path = tmp_path / "recipes" / "digit.yaml"
    assert refused(path)[0].hint == "`xrun init` writes a first recipe, recipes/my_first.yaml."
    path.parent.mkdir()
    path.with_name("words.yaml").touch()
    for typed in ("words", "words.yaml"):
        meant = path.with_name("words.yaml")
        assert refused(tmp_path / typed)[0].hint == f"Did you mean `{meant}`?"
    assert refused(path)[0].hint == "That folder has words.yaml."
    path.with_name("digits.yaml").touch()
    assert refused(path)[0].hint == f"Did you mean `{path.with_name('digits.yaml')}`?"


def test_a_key_in_a_recipe_s_place_is_told_its_option() -> None:
    """`xrun check RECIPE train.steps=3` has forgotten `-s`."""
    assert refused(Path("train.steps=3"))[0].hint == "To set a key: `-s train.steps=3`."
    assert refused(Path("a={b: 1}"))[0].hint == "To set a key: `-s 'a={b: 1}'`."


def test_both_suffixes(tmp_path: Path) -> None:
    """The file's suffix does not matter."""
    assert load_recipe(write(tmp_path, SMALL, "r.yml")) == load_recipe(
        write(tmp_path, SMALL, "r.yaml")
    )


# extends


def test_extends_merges(tmp_path: Path) -> None:
    """Mappings are merged, lists and values replaced, `key: null` is the default, and hardware is
    replaced whole."""
    child = load_recipe(WRITTEN / "v1-child.yaml")
    base = load_recipe(WRITTEN / "v1-full.yaml")
    assert (child.name, child.train.steps, child.train.compile, child.extends) == (
        "old-child",
        20000,
        False,
        None,
    )
    assert (child.train.optimizer.lr, child.train.optimizer.args) == (1e-4, {"betas": [0.9, 0.95]})
    assert (child.hardware.any_of, child.hardware.worlds) == ((), (2,))
    assert child.model == base.model


def test_another_name_takes_no_arguments_along(tmp_path: Path) -> None:
    """A different model, dataset or optimizer starts without the arguments of the one in the
    base."""
    write(
        tmp_path,
        HEAD + "train: {steps: 1, global_batch: 1, optimizer: {name: adamw, lr: 2e-3, args: {betas:"
        " [0.9, 0.95]}}}\n",
        "base.yaml",
    )
    (tmp_path / "models").mkdir()
    write(tmp_path, "def build(): ...\n", "models/other.py")
    child = load_recipe(
        write(
            tmp_path, "extends: base.yaml\nmodel: {name: other}\ntrain: {optimizer: {name: sgd}}\n"
        )
    )
    assert (child.model.args, child.train.optimizer.args, child.train.optimizer.lr) == (
        {},
        {},
        2e-3,
    )


def test_problem_lies_in_the_file_that_has_it(tmp_path: Path) -> None:
    """What is wrong in the base is told at its place in the base."""
    base = write(tmp_path, HEAD + TRAIN.replace("10", "ten"), "base.yaml")
    child = write(tmp_path, "extends: base.yaml\ntrain: {global_batch: none}\n")
    found = {
        (problem.path, problem.line, problem.column, problem.key) for problem in refused(child)
    }
    assert found == {
        (str(base), 5, 16, "train.steps"),
        (str(child), 2, 23, "train.global_batch"),
    }


@pytest.mark.parametrize("target", ["missing.yaml", ".", "/", "a\\0b", "~"])
def test_base_that_is_not_there(tmp_path: Path, target: str) -> None:
    """A base that is no file is a problem at `extends`."""
    found = problems(tmp_path, f'extends: "{target}"\n' + SMALL)
    assert len(found) == 1
    assert found[0].startswith("1:10: extends: there is no such file")


def test_circle(tmp_path: Path) -> None:
    """Recipes that extend each other are a problem and not an endless loop."""
    write(tmp_path, "extends: r.yaml\n", "base.yaml")
    path = write(tmp_path, "extends: ./base.yaml\n" + SMALL)
    (problem,) = refused(path)
    circle = "the recipes extend each other in a circle (got r.yaml)."
    assert str(problem) == f"{tmp_path}/base.yaml:1:10: extends: {circle}"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.optimizer.lr=3e-4", lambda recipe: recipe.train.optimizer.lr == 3e-4),
        ("train.steps=20", lambda recipe: recipe.train.steps == 20),
        ("train.clip_grad_norm=null", lambda recipe: recipe.train.clip_grad_norm is None),
        (
            "model.args.depth=3",
            lambda recipe: recipe.model.args["depth"] == 3 and recipe.model.args["hidden"] == 128,
        ),
        ("hardware.local.processes=2", lambda recipe: recipe.hardware.worlds == (2,)),
        ("hardware={local: {processes: 4}}", lambda recipe: recipe.hardware.worlds == (4,)),
        ("env.A='x=y'", lambda recipe: recipe.env == {"A": "x=y"}),
        ("train={seed: 3}", lambda recipe: recipe.train.seed == 3 and recipe.train.steps == 10),
        ("secrets=[HF_TOKEN]", lambda recipe: recipe.secrets == ("HF_TOKEN",)),
    ],
)
def test_override(tmp_path: Path, override: str, read: Any) -> None:
    """`a.b.c=VALUE` is on top of the file, and VALUE is YAML."""
    assert read(load_recipe(write(tmp_path, SMALL + "hardware: local\n"), [override]))
    assert read(load_recipe(write(tmp_path, SMALL), [override]))


def test_override_in_a_list() -> None:
    """Items of a list go by number, and the rest of the list stays."""
    recipe = load_recipe(
        WRITTEN / "v1-full.yaml", ["hardware.any_of.1.nodes=4", "hardware.any_of.0.clouds.1=azure"]
    )
    assert [candidate.nodes for candidate in recipe.hardware.any_of] == [2, 4, 4]
    assert recipe.hardware.any_of[0].clouds == ("gcp", "azure")


def test_override_of_the_kind_of_hardware() -> None:
    """`local` on the command line lets the candidates go."""
    assert (
        load_recipe(WRITTEN / "v1-full.yaml", ["hardware.local.processes=2"]).hardware.any_of == ()
    )
    assert load_recipe(WRITTEN / "v1-full.yaml", ["hardware=local"]).hardware.worlds == (1,)


def test_override_of_a_name_and_its_arguments(tmp_path: Path) -> None:
    """Another dataset with its arguments, in whatever order they are given."""
    base = SMALL.replace("{name: digits}", "{name: digits, args: {augment: true}}")
    for overrides in (
        ["dataset.name=old", "dataset.args.n=3"],
        ["dataset.args.n=3", "dataset.name=old"],
    ):
        (tmp_path / "datasets").mkdir(exist_ok=True)
        write(tmp_path, "def build(n): ...\n", "datasets/old.py")
        assert load_recipe(write(tmp_path, base), overrides).dataset.args == {"n": 3}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.optimizer.lr=abc", "train.optimizer.lr: must be a number (got abc)."),
        (
            "checkpoint.keep=",
            "checkpoint.keep: it has no value. `checkpoint.keep=null` sets the default.",
        ),
        ("train.step=3", "train.step: there is no such key. Did you mean `train.steps`?"),
        ("trian.steps=3", "trian: there is no such key. Did you mean `train`?"),
        ("train.steps", "an override is `key=value`, with dots between the parts of the key."),
        ("=3", "an override is `key=value`, with dots between the parts of the key."),
        ("train..steps=3", "an override is `key=value`, with dots between the parts of the key."),
        ("name.x=3", "name.x: `name` has no keys (got small)."),
        ("secrets.0=X", "secrets.0: `secrets` is a list, and it is empty (got 0)."),
        ("env.A=3", "env.A: must be text (got 3). Write '3' in quotes."),
        ("env={a: 1, a: 2}", "a: this key is already given. Remove one of the two."),
        ("train.steps=[", "train.steps: expected the node content, but found '<stream end>'."),
        ("train.steps=&a [*a]", "train.steps: it contains itself through an alias."),
    ],
)
def test_wrong_override(tmp_path: Path, override: str, sentence: str) -> None:
    """A wrong override is told like a wrong line, with the override in place of the file."""
    assert sentence in [
        str(problem).removeprefix(f"-s {override}: ")
        for problem in refused(write(tmp_path, SMALL + "secrets: []\n"), [override])
    ]


def test_wrong_number_of_an_item() -> None:
    """An item that a list does not have is a problem that names the list's length."""
    for number in ("5", "-1", "x", "٣"):
        override = f"hardware.any_of.{number}.nodes=2"
        what = f"`hardware.any_of` is a list, whose items are numbered from 0 to 2 (got {number})."
        assert [str(problem) for problem in refused(WRITTEN / "v1-full.yaml", [override])] == [
            f"-s {override}: hardware.any_of.{number}.nodes: {what}"
        ]
