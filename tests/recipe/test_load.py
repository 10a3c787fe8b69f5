"""Whatever a recipe file holds, the answer is a Recipe, or a list of problems at the places where
they were written."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.paths import FIXTURES, ROOT
from xrun.errors import Problem, RecipeError
from xrun.recipe.diagnostics import PATTERNS
from xrun.recipe.docs import models_in, recipe_docs, schema
from xrun.recipe.load import load_recipe
from xrun.recipe.schema import Recipe
from xrun.recipe.template import write_template

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
WRONG = {case["case"]: case for case in yaml.safe_load((WRITTEN / "wrong_texts.yaml").read_text())}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
START = "It starts with keys such as `name: ...`."
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


@pytest.mark.parametrize("path", [*SHIPPED, *OLD], ids=lambda path: path.name)
def test_recipe_loads(path: Path) -> None:
    """Every recipe that is shipped, and every one of an earlier version, is one."""
    assert load_recipe(path).version == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipe_names_its_schema(path: Path) -> None:
    """An editor with a YAML language server checks every shipped recipe."""
    assert "# yaml-language-server: $schema=recipe.schema.json\n" in path.read_text()


# Scalars


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


# Everything at once


def test_everything_is_found_at_once(tmp_path: Path) -> None:
    """Wrong values, unknown keys, broken rules and wrong components are told together, from top to
    bottom."""
    text = """\
name: Small
model: {name: mlp, args: {inputs: 64, classes: ten}}
dataset: {name: digit}
task: classification
hardware: {any_of: [{accelerators: A100, spot: true}]}
train:
  step: 10
  global_batch: 8
  sharding: fsdp
  ema: 0.9
  precision: fp8
  precision: fp32
"""
    found = refused(write(tmp_path, text))
    assert [(problem.line, problem.column, problem.key) for problem in found] == [
        (1, 7, "name"),
        (2, 48, "model.args.classes"),
        (3, 17, "dataset.name"),
        (5, 48, "hardware.any_of.0.spot"),
        (7, 3, "train.step"),
        (7, 3, "train.micro_batch"),
        (10, 8, "train.ema"),
        (11, 14, "train.precision"),
        (12, 3, "train.precision"),
    ]


def test_a_rule_is_not_asked_about_a_wrong_key(tmp_path: Path) -> None:
    """A misspelt `steps` is one problem, and not also the lack of `steps`."""
    assert [
        problem.key
        for problem in refused(write(tmp_path, HEAD + "train: {stesp: 3, global_batch: 8}\n"))
    ] == ["train.stesp"]


def test_secrets_are_never_printed(tmp_path: Path) -> None:
    """A token that somebody wrote into a recipe or an override does not appear in the problems."""
    token = "hf_" + "abcdefgh" * 4
    text = (
        SMALL
        + f"secrets: [{token}]\nenv: {{HF_TOKEN: {token}, X: {token}}}\nbudget: {token}\nchekpoint:"
        f" {token}\n"
    )
    assert token not in "\n".join(
        problems(tmp_path, text, f"secrets.0={token}", f"name={token}", f"task.{token}=1")
    )


# Files


@pytest.mark.parametrize("name", ["missing.yaml", "", "folder", "a\0b", "x" * 5000])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    """A file that is not there, a folder, and a name that cannot be one are each one problem."""
    (tmp_path / "folder").mkdir()
    found = refused(f"{tmp_path}/{name}")
    assert len(found) == 1
    assert found[0].what.startswith("it cannot be read: ")


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
    assert [str(problem) for problem in refused(path)] == [
        f"{tmp_path}/base.yaml:1:10: extends: this goes in a circle (got r.yaml)."
    ]


# Overrides


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


# The schema and the docs


def test_docs_are_current() -> None:
    """docs/recipes.md is what the models say; `make docs` makes it again."""
    assert (ROOT / "docs" / "recipes.md").read_text() == recipe_docs(), "run: make docs"


def test_schema_is_current() -> None:
    """recipes/recipe.schema.json is what the models say; `make docs` makes it again."""
    assert (ROOT / "recipes" / "recipe.schema.json").read_text() == json.dumps(
        schema(), indent=1
    ) + "\n", "run: make docs"


def test_schema_holds_every_field() -> None:
    """Every field of every model is in the schema and in the docs, with its meaning, and nothing
    else is."""
    made, text = schema(), recipe_docs()
    for key, model in models_in(Recipe):
        part = made["$defs"].get(model.__name__, made)
        assert part["properties"].keys() == model.model_fields.keys()
        assert part["additionalProperties"] is False
        assert all(field["description"].endswith(".") for field in part["properties"].values())
        assert not key or f"### `{key}`" in text


def test_every_pattern_has_words() -> None:
    """A pattern is never shown to a person: each has words."""
    assert set(patterns_in(Recipe.core_schema)) == PATTERNS.keys()


def patterns_in(schema: Any) -> Iterator[str]:
    """Every pattern of a schema of pydantic-core, at any depth."""
    if isinstance(schema, dict):
        if schema.get("type") == "str" and "pattern" in schema:
            yield schema["pattern"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from patterns_in(part)


def fits(shape: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Whether a value is valid by a JSON Schema, for the words that ours uses."""
    if "$ref" in shape:
        shape = root["$defs"][shape["$ref"].rpartition("/")[2]] | {
            name: part for name, part in shape.items() if name != "$ref"
        }
    if "anyOf" in shape and not any(fits(part, value, root) for part in shape["anyOf"]):
        return False
    if "oneOf" in shape and sum(fits(part, value, root) for part in shape["oneOf"]) != 1:
        return False
    if (
        "if" in shape
        and not fits(shape["if"], value, root)
        and not fits(shape["else"], value, root)
    ):
        return False
    kinds: dict[str, Any] = {
        "integer": int,
        "number": (int, float),
        "string": str,
        "boolean": bool,
        "object": dict,
        "array": list,
        "null": type(None),
    }
    if "type" in shape and (
        not isinstance(value, kinds[shape["type"]])
        or (isinstance(value, bool) and shape["type"] != "boolean")
    ):
        return False
    if value not in shape.get("enum", [value]) or ("const" in shape and value != shape["const"]):
        return False
    if isinstance(value, str) and not re.search(shape.get("pattern", ""), value):
        return False
    if isinstance(value, list):
        return all(fits(shape.get("items", {}), item, root) for item in value)
    if isinstance(value, dict):
        known = shape.get("properties", {})
        extra = shape.get("additionalProperties", True)
        return (
            shape.get("required", [])
            == [name for name in shape.get("required", []) if name in value]
            and all(fits(known[name], item, root) for name, item in value.items() if name in known)
            and (extra is not False or value.keys() <= known.keys())
        )
    return True


@pytest.mark.parametrize("path", [*SHIPPED, *OLD], ids=lambda path: path.name)
def test_schema_takes_what_loads(path: Path) -> None:
    """An editor finds nothing wrong with a recipe that loads, and something with one that has an
    unknown key."""
    # PyYAML reads YAML 1.1, in which these two differ from what is meant.
    text = re.sub(r"\b(\d)e-(\d)", r"\1.0e-\2", path.read_text()).replace("compile: null, ", "")
    value = yaml.safe_load(text)
    assert fits(schema(), value, schema())
    assert not fits(schema(), value | {"trian": {}}, schema())


def test_template_is_a_recipe(tmp_path: Path) -> None:
    """`xrun init` writes a recipe that loads, named after its file, and overwrites nothing."""
    for name, expected in (
        ("recipes/My First.yaml", "my-first"),
        ("2nd.yaml", "my-2nd"),
        ("x" * 60 + ".yaml", "x" * 28),
        ("é.yaml", "my"),
    ):
        write_template(tmp_path / name)
        assert load_recipe(tmp_path / name).name == expected
    with pytest.raises(RecipeError, match="there is a file already"):
        write_template(tmp_path / "2nd.yaml")


# Whatever a file holds

TOKENS = [
    b":",
    b"- ",
    b"\n",
    b" ",
    b"  ",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/object:os.system ",
    b"!",
    b"|",
    b">",
    b"'",
    b'"',
    b"#",
    b"%YAML 1.1\n",
    b"---\n",
    b"...\n",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\U00110000",
    b'"\\ud800"',
    b"? ",
    b"~",
    b"null",
    b"true",
    b"on",
    b"1e999",
    b".nan",
    b"0x",
    b"1:30",
    b"2024-01-01",
    b"9" * 400,
    b"-1",
    b"0",
    b"A100:0",
    b"local",
    b"auto",
    b"1 epochs",
    b"extends: r.yaml\n",
    b"extends: .\n",
    b"env: {A: 1}\n",
    b"secrets: [a=b]\n",
    b"hardware: {any_of: [{}, 3]}\n",
    b"[" * 60,
    b"\xe2\x80\xa8",
    b"=",
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    7,
    10**30,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "a\0b",
    "local",
    "auto",
    "hub",
    "s3://x",
    "1 epochs",
    "10m",
    [],
    [None],
    [[]],
    {},
    {"name": "vit"},
    {"": 1},
    {"any_of": [{"accelerators": "A100:3"}]},
    {"local": {"processes": 3}},
    "../../etc",
    "é" * 50,
]
KEYS = [
    "name",
    "args",
    "any_of",
    "local",
    "spot",
    "micro_batch",
    "nodes",
    "trian",
    "",
    "a.b",
    "<<",
    "no",
    "3",
    "extends",
    "secrets",
    "env",
    "é",
]


def mutated_bytes(text: bytes, dice: random.Random) -> bytes:
    """The text with pieces cut, doubled, moved or put in."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text) + 1)
        end = min(len(text), start + dice.choice([0, 0, 1, 2, 8, 40]))
        piece = dice.choice(
            [
                b"",
                dice.choice(TOKENS),
                dice.choice(TOKENS),
                text[start:end] * 2,
                bytes([dice.randrange(256)]),
            ]
        )
        text = text[:start] + piece + text[end:]
    return text


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree, as its container and its key there."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else []
    )
    return [place for key, value in items for place in [(tree, key), *places(value)]]


@cache
def loaded(text: bytes) -> Any:
    return yaml.safe_load(text)


def mutated_nodes(text: bytes, dice: random.Random) -> bytes:
    """The recipe with values replaced, keys renamed, and keys taken away or added."""
    tree = copy.deepcopy(loaded(text))
    for _ in range(dice.randint(1, 3)):
        container, key = dice.choice(places(tree) or [({}, "x")])
        value = container.pop(key) if isinstance(container, dict) else container[key]
        new_key = (
            dice.choice([key, key, key, dice.choice(KEYS)]) if isinstance(container, dict) else key
        )
        if not isinstance(container, dict) or dice.random() < 0.9:
            container[new_key] = (
                copy.deepcopy(dice.choice([value, *VALUES])) if dice.random() < 0.8 else value
            )
    return yaml.dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


OVERRIDES = [
    "train.steps=3",
    "train.steps=x",
    "hardware.any_of.0.nodes=2",
    "name.x=1",
    "a=",
    "=",
    "model={}",
    "model.args=3",
    "hardware=local",
    "hardware.local=3",
    "extends=x",
    "train=null",
    "env.a.b=1",
    "secrets.0=x",
    "dataset.name=digits",
    "train.optimizer.name=sgd",
    "checkpoint.store='hub'",
    "x" * 300 + "=[",
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "r.yaml"


@pytest.mark.once
@settings(
    max_examples=10_000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**64))
def test_any_file_is_a_recipe_or_problems(scratch: Path, seed: int) -> None:
    """10,000 mutated recipes: each one loads, or is refused with problems that can be printed;
    nothing else ever happens."""
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
