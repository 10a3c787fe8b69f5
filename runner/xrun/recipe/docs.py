"""What editors and readers see of a recipe: its JSON Schema, and docs/recipes.md, made from the
schema's classes and the rules."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from .base import Part
from .diagnostics import is_list, is_mapping, model_in
from .rules import RULES
from .schema import Recipe
from .yaml_nodes import join

DRAFT = "https://json-schema.org/draft/2020-12/schema"
RECIPES_MD = """\
# Recipes

A recipe is one YAML file that says what to train, on which data, on which machines, and for how
long. This page has every key; `make docs` makes it from `runner/xrun/recipe/schema.py`.

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

`xrun check RECIPE` lists everything that is wrong, each at `file:line:column`. By the first line of
the example an editor with a YAML language server completes keys and shows the texts below; `xrun
schema` prints the schema that it needs.

A recipe is YAML 1.2: `3e-4` is a number; `yes`, `on`, `1:30`, `007`, `1_000` and dates are texts.
Each key is given once. Anchors, aliases and `<<` work; tags do not. `key: null` means the default.

## Overrides

`xrun RECIPE -s train.optimizer.lr=1e-3 -s hardware.any_of.0.nodes=2` puts values on top of the
file's. They are read by the same rules; items of a list are counted from 0. A mapping is merged, as
with `extends`; a list is replaced.

## Recipes on top of others

`extends: base.yaml` starts from another recipe; the path is relative to the file that says so.
Mappings are merged key by key, lists and single values are replaced, and `key: null` goes back to
the default. What belongs together is replaced whole: `hardware` where it names machines, `model`
and `dataset` if their `name` differs, and so are an optimizer's `args`.

## Keys

{sections}
An interval is a number and a unit: `500 steps`, `1 epochs`, `90s`, `10m`, `2h`; the table says
which of them a key takes.

## Rules

{rules}
"""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what people write; the docstring under a field is its
    description."""
    made = Recipe.model_json_schema()
    parts = made["$defs"] | {"Recipe": made}
    for name, part in parts.items():
        part.pop("title", None)
        part.pop("required", None)
        part["description"] = " ".join(part["description"].split())
        for key, field in part["properties"].items():
            field.pop("title", None)
            field["description"] = field_docs()[name][key]
    _take_short_forms(made, parts)
    # What must be there may also come from the recipe that this one extends.
    return {
        "$schema": DRAFT,
        "title": "An xrun recipe",
        **made,
        "if": {"required": ["extends"]},
        "else": demands(Recipe),
    }


def _take_short_forms(made: dict[str, Any], parts: dict[str, Any]) -> None:
    """What is read before a type reads it: `hardware: local`, `tensorboard: true`, a text as the
    source of a file, and a list as what a key is in a sweep's trials."""
    hardware = parts["Hardware"]
    hardware["properties"]["local"] = {
        "$ref": "#/$defs/Local",
        "description": field_docs()["Hardware"]["local"],
    }
    hardware["properties"]["any_of"] |= {"minItems": 1}
    hardware["oneOf"] = [{"required": ["local"]}, {"required": ["any_of"]}]
    made["properties"]["hardware"] |= {"anyOf": [{"const": "local"}, {"$ref": "#/$defs/Hardware"}]}
    made["properties"]["hardware"].pop("$ref")
    tracking = parts["Tracking"]["properties"]
    tracking["tensorboard"]["anyOf"].insert(0, {"type": "boolean"})
    named = made["properties"]["files"]["patternProperties"]
    for pattern, source in named.items():
        named[pattern] = {"anyOf": [{"type": "string"}, source]}
    swept = parts["Sweep"]["properties"]["parameters"]["patternProperties"]
    for pattern, values in swept.items():
        swept[pattern] = {"anyOf": [{"type": "array"}, values]}


def demands(model: type[Part]) -> dict[str, Any]:
    """The keys without a default, of this model and of those in it."""
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    inner = {
        name: demands(part)
        for name, field in model.model_fields.items()
        if not is_mapping(field.annotation) and (part := model_in(field.annotation))
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
            free = (".PATH" if name == "files" else ".KEY") if is_mapping(field.annotation) else ""
            item = ".N" if is_list(field.annotation) else free
            yield from models_in(inner, join(key, name) + item)


def section(model: type[Part], key: str) -> str:
    """A heading and a table: one row per key."""
    rows = [
        f"### `{key}`" if key else "### The recipe",
        "",
        *([" ".join((model.__doc__ or "").split()), ""] if key else []),
    ]
    rows += ["| key | type | default | meaning |", "|---|---|---|---|"]
    part = schema()["$defs"].get(model.__name__) or schema()
    for name, field in model.model_fields.items():
        shape = part["properties"][name]
        default = "required" if field.is_required() else written(shape.get("default"))
        meaning = shape["description"].replace("|", r"\|")
        rows.append(f"| `{name}` | {type_of(shape)} | {default} | {meaning} |")
    return "\n".join([*rows, ""])


def written(default: Any) -> str:
    """A default as a person would write it; nothing where the meaning tells it."""
    if default in (None, {}, []):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def type_of(shape: dict[str, Any]) -> str:
    """A JSON Schema in a word or two."""
    if "anyOf" in shape:
        return " or ".join(
            dict.fromkeys(type_of(part) for part in shape["anyOf"] if part != {"type": "null"})
        )
    if "const" in shape or "enum" in shape:
        return ", ".join(f"`{value}`" for value in shape.get("enum", [shape.get("const")]))
    if shape.get("type") == "array":
        return f"list of {type_of(shape['items']) if shape['items'] else 'values'}"
    if "format" in shape:
        return str(shape["format"])
    names = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
    }
    return names.get(shape.get("type", ""), "mapping")
