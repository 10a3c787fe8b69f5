"""YAML text -> `Recipe`: `extends`, overrides, and every problem at once at `file:line:column`."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from ..component import Kind, check_args, find, project_root, signature
from ..errors import ComponentError, Problem, RecipeError
from .base import Part
from .diagnostics import Loc, key_place, model_at, model_in, node_at, number_hint, shown, validate
from .rules import RULES, without_secrets
from .schema import Recipe
from .yaml_nodes import MAX_BYTES, Mark, Node, Unreadable, join, read_nodes

LONGEST_CHAIN = 10
DRAFT = "https://json-schema.org/draft/2020-12/schema"
RECIPES_MD = """\
# Recipes

This file is made from `runner/xrun/recipe/schema.py`: `make docs`.

```yaml
# yaml-language-server: $schema=recipe.schema.json
name: digits-vit
model:
  name: vit                       # models/vit.py
  args: {{image_size: 8, patch_size: 2, channels: 1, classes: 10}}
dataset:
  name: digits                    # datasets/digits.py
task: classification
hardware:
  any_of:                         # any one of these, spot or not
    - {{accelerators: "A100:8", clouds: [gcp, aws]}}
    - {{accelerators: "H100:4"}}
train:
  epochs: 50
  global_batch: 64                # the same on every machine
  micro_batch: 8
  precision: bf16
  optimizer: {{name: adamw, lr: 4e-3, weight_decay: 0.05}}
  schedule: {{name: cosine, warmup_steps: 100}}
  evaluate: {{every: 1 epochs, metric: accuracy}}
checkpoint: {{store: hub, every: 10m}}
secrets: [HF_TOKEN]
budget: {{usd: 20}}
```

`xrun check RECIPE` says everything that is wrong, each at `file:line:column`. The first line of the example gives editors with
a YAML language server completion and the same texts as below; `xrun schema` prints that schema.

A recipe is YAML 1.2: `3e-4` is a number, `yes` and `on` are text, `1:30` and dates are text, and a number with leading zeros or
underscores is none. Keys are given once; anchors, aliases and `<<` work; tags do not. `key: null` means the default.

## Overrides

`xrun RECIPE -s train.optimizer.lr=1e-3 -s hardware.any_of.0.nodes=2` puts values on top of the file's, parsed by the same rules;
items of a list go by number from 0. A mapping is merged, as in `extends`; a list is replaced.

## Recipes on top of others

`extends: base.yaml`, relative to the file it stands in, starts from another recipe. Mappings are merged key by key, lists and
single values are replaced, and `key: null` goes back to the default. Nothing is left half merged: `hardware` is replaced whole,
`model` and `dataset` are if their `name` differs, and so are an optimizer's `args`.

## Keys

{sections}
An interval is a number and a unit: `500 steps`, `1 epochs`, `90s`, `10m`, `2h`; the table says which of them a key takes.

## Rules

{rules}
"""


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in this file, with what it extends below it and the overrides (`train.steps=10`)
    on top.

    Raises RecipeError with everything that is wrong, and nothing else, whatever the file holds.
    """
    problems: list[Problem] = []
    try:
        tree = read_tree(os.fspath(path), (), problems)
    except Unreadable as error:
        raise RecipeError(in_order([*problems, error.problem])) from None
    for override in by_name_first(overrides):
        tree = with_override(tree, override, problems)
    tree = without_nulls(tree)
    recipe, wrong = validate(tree)
    problems += wrong
    problems += component_problems(tree, project_root(os.fspath(path)))
    if recipe is None or problems:
        raise RecipeError(in_order(problems))
    return recipe.model_copy(update={"extends": None})


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Each once, file by file from top to bottom, without secrets."""
    files = list(dict.fromkeys(problem.path for problem in problems))
    return sorted(
        dict.fromkeys(map(shareable, problems)),
        key=lambda problem: (files.index(problem.path), problem.line, problem.column),
    )


def shareable(problem: Problem) -> Problem:
    """The problem without a token that stands where a key or a value should be."""
    key, what, got, hint = map(
        without_secrets, (problem.key, problem.what, problem.got, problem.hint)
    )
    return replace(problem, key=key, what=what, got=got, hint=hint)


# Files


def read_tree(path: str, chain: tuple[str, ...], problems: list[Problem]) -> Node:
    """The nodes of a file over those of the recipe that it extends. Raises Unreadable."""
    tree, found = read_nodes(read_bytes(path), path)
    problems += found
    if tree.mapping is None:
        hint = "It starts with keys such as `name: ...`."
        raise Unreadable(
            tree.mark.problem(
                "",
                "a recipe is a mapping" if tree.value is not None else "the recipe is empty",
                hint=hint,
            )
        )
    base = tree.child("extends")
    if base is None or not isinstance(base.value, str) or not base.value:
        return tree
    return merge(read_base(path, base, chain, problems), tree, ())


def read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(Mark(path).problem("", f"it cannot be read: {reason.lower()}")) from None


def read_base(path: str, base: Node, chain: tuple[str, ...], problems: list[Problem]) -> Node:
    """The nodes of the recipe that this one extends, checked before it is opened."""
    target = os.path.normpath(os.path.join(os.path.dirname(path), base.value))
    chain = (*chain, os.path.realpath(path.replace("\0", "")))
    if "\0" in target or not os.path.isfile(target):
        raise Unreadable(
            base.mark.problem(
                "extends",
                "there is no such file",
                base.text,
                "The path is relative to this recipe.",
            )
        )
    if os.path.realpath(target) in chain:
        raise Unreadable(base.mark.problem("extends", "this goes in a circle", base.text))
    if len(chain) > LONGEST_CHAIN:
        raise Unreadable(
            base.mark.problem(
                "extends", f"this is a chain of more than {LONGEST_CHAIN} recipes", base.text
            )
        )
    return read_tree(target, chain, problems)


def merge(base: Node, over: Node, loc: Loc) -> Node:
    """Mappings are merged key by key; everything else replaces what the base has."""
    if base.mapping is None or over.mapping is None:
        return over
    values = kept(base, over, loc)
    keys = {name: mark for name, mark in base.keys.items() if name in values} | over.keys
    for name, node in over.mapping.items():
        values[name] = merge(values[name], node, (*loc, name)) if name in values else node
    return replace(over, value=values, keys=keys)


def kept(base: Node, over: Node, loc: Loc) -> dict[str, Node]:
    """What stays of the base's mapping: nothing of a different kind of hardware, model or dataset,
    no half of a switch."""
    old, new = base.child("name"), over.child("name")
    renamed = bool(old and new and old.value != new.value)
    if loc == ("hardware",) or (renamed and loc in (("model",), ("dataset",))):
        return {}
    dropped = "args" if renamed and loc == ("train", "optimizer") else None
    return {name: node for name, node in (base.mapping or {}).items() if name != dropped}


def without_nulls(tree: Node, loc: Loc = ()) -> Node:
    """`key: null` is the default, wherever the keys are a recipe's own; in `args` a null is a
    value."""
    if isinstance(tree.value, list):
        return replace(
            tree,
            value=[without_nulls(node, (*loc, index)) for index, node in enumerate(tree.value)],
        )
    model = model_at(loc)
    if tree.mapping is None or model is None:
        return tree
    items = [
        (name, node)
        for name, node in tree.mapping.items()
        if node.value is not None or name not in model.model_fields
    ]
    return replace(tree, value={name: without_nulls(node, (*loc, name)) for name, node in items})


# Overrides


def by_name_first(overrides: Sequence[str]) -> list[str]:
    """`model.name` before `model.args.x`: another name lets go of the arguments that the file
    has."""
    return sorted(overrides, key=lambda override: not override.partition("=")[0].endswith(".name"))


def with_override(tree: Node, override: str, problems: list[Problem]) -> Node:
    """The tree with one `a.b.c=VALUE` on top, or unchanged after saying what is wrong with it."""
    mark = Mark("-s " + without_secrets(override))
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        problems.append(
            mark.problem("", "an override is `key=value`, with dots between the parts of the key")
        )
    elif not text.strip():
        problems.append(
            mark.problem(key, "it has no value", hint=f"`{key}=null` sets the default.")
        )
    else:
        try:
            value, found = read_nodes(text, mark.path, positions=False)
            problems += found
            return put(tree, names, value, ())
        except Unreadable as error:
            problems.append(replace(error.problem, key=key))
    return tree


def put(tree: Node, names: list[str], value: Node, loc: Loc) -> Node:
    """The tree with a value at this key; raises Unreadable if there cannot be one."""
    if isinstance(tree.value, list):
        return put_in_list(tree, names, value, loc)
    name, rest = names[0], names[1:]
    if (
        tree.mapping is None
        and tree.value is not None
        and (loc, tree.value) != (("hardware",), "local")
    ):
        raise Unreadable(
            value.mark.problem("", f"`{'.'.join(map(str, loc))}` has no keys", tree.text)
        )
    tree = tree if tree.mapping is not None else Node({}, value.mark)
    keys = {name: value.mark}
    if not rest:
        return merge(tree, Node({name: value}, tree.mark, keys=keys), loc)
    inner = put(tree.child(name) or Node(None, value.mark), rest, value, (*loc, name))
    # `local` and `any_of` exclude each other, so naming one of them lets the other go.
    others = {} if loc == ("hardware",) else tree.value
    return replace(tree, value={**others, name: inner}, keys=keys | tree.keys)


def put_in_list(tree: Node, names: list[str], value: Node, loc: Loc) -> Node:
    name, rest = names[0], names[1:]
    if not (name.isdecimal() and name.isascii() and len(name) < 6 and int(name) < len(tree.value)):
        known = (
            f"whose items are numbered from 0 to {len(tree.value) - 1}"
            if tree.value
            else "and it is empty"
        )
        what = f"`{'.'.join(map(str, loc))}` is a list, {known}"
        raise Unreadable(value.mark.problem("", what, name))
    items = list(tree.value)
    items[int(name)] = put(items[int(name)], rest, value, (*loc, int(name))) if rest else value
    return replace(tree, value=items)


# Components


def component_problems(tree: Node, project: Path) -> Iterator[Problem]:
    """What is wrong with the names and arguments of the two components."""
    for key, kind in (("model", "models"), ("dataset", "datasets")):
        section = tree.child(key)
        name = section.child("name") if section else None
        if section and name and isinstance(name.value, str) and name.value.isidentifier():
            args = section.child("args") or Node({}, name.mark)
            yield from one_component(key, cast(Kind, kind), name, args, project)


def one_component(key: str, kind: Kind, name: Node, args: Node, project: Path) -> Iterator[Problem]:
    try:
        build = signature(find(kind, name.value, project))
    except ComponentError as error:
        yield name.mark.problem(join(key, "name"), error.message, hint=error.hint)
        return
    if args.mapping is not None:
        yield from (at_argument(key, problem, args) for problem in check_args(build, args.plain()))


def at_argument(key: str, problem: Problem, args: Node) -> Problem:
    """A problem of the arguments at its place: at the key of an unknown one, else at the value."""
    loc = (problem.key,) if problem.key else ()
    node = node_at(args, loc)
    quoted = isinstance(node.value, str) and re.search(r"int|float", problem.what) is not None
    mark = node.mark if problem.got or not loc else key_place(args, loc)
    hint = number_hint(node.text) if quoted and problem.got else problem.hint
    return mark.problem(
        f"{key}.args.{problem.key}".rstrip("."),
        problem.what,
        shown(node) if problem.got else "",
        hint,
    )


# What editors and readers see


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what people write; the docstring under a field is its
    description."""
    made = Recipe.model_json_schema()
    parts = made["$defs"] | {"Recipe": made}
    for name, part in parts.items():
        part.pop("title", None)
        part.pop("required", None)
        for key, field in part["properties"].items():
            field.pop("title", None)
            field["description"] = field_docs()[name][key]
    hardware = parts["Hardware"]
    hardware["properties"]["local"] = {
        "$ref": "#/$defs/Local",
        "description": field_docs()["Hardware"]["local"],
    }
    hardware["properties"]["any_of"] |= {"minItems": 1}
    hardware["oneOf"] = [{"required": ["local"]}, {"required": ["any_of"]}]
    made["properties"]["hardware"] |= {"anyOf": [{"const": "local"}, {"$ref": "#/$defs/Hardware"}]}
    made["properties"]["hardware"].pop("$ref")
    # What must be there may also come from the recipe that this one extends.
    return {
        "$schema": DRAFT,
        "title": "An xrun recipe",
        **made,
        "if": {"required": ["extends"]},
        "else": demands(Recipe),
    }


def demands(model: type[Part]) -> dict[str, Any]:
    """The keys without a default, of this model and of those in it."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    inner = {
        name: demands(part)
        for name, field in model.model_fields.items()
        if (part := model_in(field.annotation))
    }
    inner = {name: part for name, part in inner.items() if part}
    return ({"required": required} if required else {}) | ({"properties": inner} if inner else {})


@cache
def field_docs() -> dict[str, dict[str, str]]:
    """The docstring under each field. Read here and not by pydantic, which would do it at every
    start of the program."""
    module = ast.parse(
        Path(str(sys.modules[Recipe.__module__].__file__)).read_text(encoding="utf-8")
    )
    docs: dict[str, dict[str, str]] = {}
    for part in (node for node in module.body if isinstance(node, ast.ClassDef)):
        for field, text in pairwise(part.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                name, value = ast.unparse(field.target), ast.literal_eval(text.value)
                docs.setdefault(part.name, {})[name] = " ".join(value.split())
    return docs


def recipe_docs() -> str:
    """The text of docs/recipes.md, made from the models and the rules."""
    rules = "\n".join(f"* {' '.join((check.__doc__ or '').split())}" for _, check in RULES)
    sections = "\n".join(section(model, key) for key, model in models_in(Recipe))
    return RECIPES_MD.format(sections=sections, rules=rules)


def models_in(model: type[Part], key: str = "") -> Iterator[tuple[str, type[Part]]]:
    """Every model of a recipe with its dotted key, from the outside in."""
    yield key, model
    for name, field in model.model_fields.items():
        if inner := model_in(field.annotation):
            item = ".N" if "tuple" in str(field.annotation) else ""
            yield from models_in(inner, join(key, name) + item)


def section(model: type[Part], key: str) -> str:
    """A heading and a table: one row per key."""
    rows = [
        f"### `{key}`" if key else "### The recipe",
        "",
        *([model.__doc__ or "", ""] if key else []),
    ]
    rows += ["| key | type | default | meaning |", "|---|---|---|---|"]
    part = schema()["$defs"].get(model.__name__) or schema()
    for name, field in model.model_fields.items():
        shape = part["properties"][name]
        default = (
            "required"
            if field.is_required()
            else ""
            if "default" not in shape
            else written(shape["default"])
        )
        rows.append(
            f"| `{name}` | {type_of(shape)} | {default} |"
            f" {shape['description'].replace('|', chr(92) + '|')} |"
        )
    return "\n".join([*rows, ""])


def written(default: Any) -> str:
    """A default as a person would write it; nothing where the meaning tells it."""
    return (
        ""
        if default in (None, {}, [])
        else f"`{json.dumps(default) if not isinstance(default, str) else default}`"
    )


def type_of(shape: dict[str, Any]) -> str:
    """A JSON Schema in a word or two."""
    if "anyOf" in shape:
        return " or ".join(
            dict.fromkeys(type_of(part) for part in shape["anyOf"] if part != {"type": "null"})
        )
    if "const" in shape or "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape.get("enum", [shape.get("const")]))
    if shape.get("type") == "array":
        return f"list of {type_of(shape['items'])}"
    if "step" in shape.get("pattern", ""):
        return "interval"
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
    }
    return names.get(shape.get("type", ""), "mapping")
