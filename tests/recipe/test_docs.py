"""The schema, the docs and the template are made from the code, and are current. Covers
`xrun.recipe.template`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import ROOT
from support.recipes import (
    OLD,
    SHIPPED,
)
from xrun.errors import RecipeError
from xrun.recipe.diagnostics import PATTERNS
from xrun.recipe.docs import models_in, recipe_docs, schema
from xrun.recipe.load import load_recipe
from xrun.recipe.schema import Recipe
from xrun.recipe.template import write_template


def test_the_readme_shows_the_recipe_that_it_names() -> None:
    """Key for key."""
    text = (ROOT / "README.md").read_text()
    shown = text.partition("```yaml\n")[2].partition("```")[0]
    named = re.findall(r"It lies in \[(\S+)\]", text)
    assert [yaml.safe_load(shown)] == [yaml.safe_load((ROOT / n).read_text()) for n in named]


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
        named = shape.get("patternProperties", {}).values()
        if not all(fits(part, item, root) for part in named for item in value.values()):
            return False
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
    assert fits(schema(), value | {"files": {"/a": "s3://b", "/c": {"volume": "d"}}}, schema())
    assert not fits(schema(), value | {"files": {"/a": {"mode": "MUONT"}}}, schema())


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
