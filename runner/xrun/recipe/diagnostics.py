"""A tree of nodes -> `Recipe`, or everything that is wrong with it, in plain sentences at the
places where it was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args, get_origin

from pydantic_core import ValidationError

from ..errors import Problem, did_you_mean, nearest
from .accelerators import PATTERN as ACCELERATORS
from .base import Part
from .not_built import OTHER_NAMES
from .rules import broken
from .schema import Recipe
from .secret_text import is_alerts_address, looks_like_a_secret, without_secrets
from .yaml_nodes import FLOAT, Mark, Node

Loc = tuple[str | int, ...]
LONGEST_SHOWN = 60
MOST_PASSES = 10
MOST_PROBLEMS = 100
"""So many are told; nobody reads more."""
HARDWARE = "Write `local`, `{local: {processes: 4}}` or `{any_of: [{accelerators: A100}]}`."
WAYS_OUT: dict[Loc, str] = {
    ("version",): "A recipe of a later version needs a later xrun.",
    ("hardware",): HARDWARE,
}

# What stands in for a key that is missing or wrong, so that the rules about the other keys can
# still be asked.
STAND_INS: dict[str, Any] = {
    "name": "x", "project": "x", "task": "model", "model": {"name": "x"}, "dataset": {"name": "x"},
    "global_batch": 1, "train": {"global_batch": 1, "steps": 1}, "to": ["X"],
}  # fmt: skip
PHRASES = {
    "int_type": "a whole number", "int_from_float": "a whole number",
    "int_parsing": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "string_type": "text", "string_unicode": "text", "finite_number": "a finite number",
    "model_type": "a mapping",
    "dict_type": "a mapping", "tuple_type": "a list", "too_short": "a list that is not empty",
    "greater_than": "greater than {gt:g}", "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}", "less_than_equal": "at most {le}",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters long",
}  # fmt: skip
YAML_1_1_BOOLS = {
    "yes": True, "Yes": True, "y": True, "on": True, "On": True,
    "no": False, "No": False, "n": False, "off": False, "Off": False,
}  # fmt: skip
PATTERNS = {
    r"^[a-z][a-z0-9-]*$": "lower-case letters, digits and `-`, and start with a letter",
    r"^[a-z_][a-z0-9_]*$": "the name of a file: lower-case letters, digits and `_`",
    r"^[A-Z_][A-Z0-9_]*$": "the name of an environment variable: capital letters, digits and `_`",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "the name of an environment variable: letters, digits and `_`",
    r"^[A-Za-z][A-Za-z0-9_]*$": "the name of a class",
    r"^[^\x00-\x1f]+$": "one line of text",
    ACCELERATORS: "a name and a count, like `A100:8`",
}


def validate(tree: Node) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or its problems. Rules between keys are asked even if other keys are wrong."""
    data, wrong = tree.plain(), set[Loc]()
    problems: list[Problem] = []
    for _ in range(MOST_PASSES):
        try:
            recipe = Recipe.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            problems += rule_problems(broken(recipe), tree, wrong)
            return (None if problems else recipe), problems
        groups = grouped(details, tree)
        elsewhere = told_elsewhere(groups, tree)
        for loc, group in groups.items():
            # Where thousands of keys are wrong, each is found, and not each is worth a hint.
            enough = len(problems) >= MOST_PROBLEMS
            if loc not in elsewhere and (enough or not covered(loc, wrong, both_ways=True)):
                problems.append(plain(loc, tree) if enough else translate(loc, group, tree))
            wrong.add(loc if enough else suspected(loc, group))
            step_over(data, loc)
    return None, problems


def rule_problems(
    broken: Iterable[tuple[tuple[str, ...], Problem]], tree: Node, wrong: set[Loc]
) -> Iterator[Problem]:
    for reads, problem in broken:
        if not any(covered(tuple(key.split(".")), wrong, both_ways=True) for key in reads):
            mark = place(tree, loc_of(problem.key, tree))
            yield replace(problem, path=mark.path, line=mark.line, column=mark.column)


def loc_of(key: str, tree: Node) -> Loc:
    """The place that a dotted key means. A name that was written may hold dots: `files./a.txt`."""
    loc: Loc = ()
    while key:
        node = node_at(tree, loc)
        written = (name for name in node.mapping or () if f"{key}.".startswith(f"{name}."))
        name = max(written, key=len, default=key.partition(".")[0])
        loc += (int(name) if name.isdigit() and isinstance(node.value, list) else name,)
        key = key[len(name) + 1 :]
    return loc


def covered(loc: Loc, wrong: set[Loc], both_ways: bool = False) -> bool:
    """Whether a key lies at or under one that is wrong already, or, both ways, also above one."""
    return any(
        loc[: len(known)] == known or (both_ways and known[: len(loc)] == loc) for known in wrong
    )


def grouped(details: Iterable[Any], tree: Node) -> dict[Loc, list[Any]]:
    """Pydantic's errors by the key that they are about: it gives one for each alternative of a
    union, and a longer place."""
    groups: dict[Loc, list[Any]] = {}
    for detail in details:
        loc: Loc = detail["loc"]
        if detail["type"] != "missing":
            loc = existing(tree, loc)
        groups.setdefault(loc, []).append(detail)
    return groups


def told_elsewhere(groups: dict[Loc, list[Any]], tree: Node) -> set[Loc]:
    """Keys whose fault another problem tells: one that is missing because it is misspelt, and the
    number before a decimal comma."""
    unknown = [loc for loc, group in groups.items() if group[0]["type"] == "extra_forbidden"]
    meant = {tuple(key.split(".")) for loc in unknown if (key := meant_key(loc))}
    missing = {loc for loc, group in groups.items() if group[0]["type"] == "missing"}
    cut = {before for loc in unknown if (before := before_comma(loc, tree))}
    return (meant & missing) | cut


def before_comma(loc: Loc, tree: Node) -> Loc | None:
    """For the `001` of `{lr: 0,001}`, which YAML reads as a key of its own, the place of `lr`."""
    parent, name = node_at(tree, loc[:-1]), str(loc[-1])
    names = [*(parent.mapping or ())]
    if not name.isdigit() or name not in names[1:] or node_at(tree, loc).value is not None:
        return None
    before = (*loc[:-1], names[names.index(name) - 1])
    return before if type(node_at(tree, before).value) is int else None


def existing(tree: Node, loc: Loc) -> Loc:
    """The longest part of the place that was written."""
    node: Node | None = tree
    for depth, name in enumerate(loc):
        node = node.child(name) if node else None
        if node is None:
            return loc[:depth]
    return loc


def node_at(tree: Node, loc: Loc) -> Node:
    for name in existing(tree, loc):
        tree = tree.child(name) or tree
    return tree


def place(tree: Node, loc: Loc) -> Mark:
    """Where the value stands, or the nearest mapping around it."""
    return node_at(tree, loc).mark


def key_place(tree: Node, loc: Loc) -> Mark:
    """Where the key itself stands."""
    parent = node_at(tree, loc[:-1])
    return parent.keys.get(str(loc[-1]), place(tree, loc))


def suspected(loc: Loc, group: list[Any]) -> Loc:
    """The key that is wrong: for an unknown key the one that was probably meant."""
    if group[0]["type"] != "extra_forbidden":
        return loc
    meant = meant_key(loc)
    return tuple(meant.split(".")) if meant else loc


def step_over(data: Any, loc: Loc) -> None:
    """Take a wrong value out of the data, or put a stand-in where one must be."""
    *path, name = loc
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[int(part)] if isinstance(data, list) and data else None
    if isinstance(data, list):
        data[:] = []
    elif isinstance(data, dict) and name not in data:
        data[name] = STAND_INS[str(name)]
    elif isinstance(data, dict):
        del data[name]


def translate(loc: Loc, group: list[Any], tree: Node) -> Problem:
    """One problem from pydantic's errors about one key."""
    kind, key, node = group[0]["type"], ".".join(map(str, loc)), node_at(tree, loc)
    if kind == "missing":
        return node.mark.problem(key, "it is missing", hint=f"Add `{loc[-1]}`.")
    if kind == "extra_forbidden" and (before := before_comma(loc, tree)):
        cut = node_at(tree, before)
        what = "a decimal point is a point, and a comma begins another key"
        number = f"{cut.text},{loc[-1]}"
        way_out = f"Write `{number.replace(',', '.')}`."
        return cut.mark.problem(".".join(map(str, before)), what, number, way_out)
    if kind == "extra_forbidden":
        return key_place(tree, loc).problem(key, "there is no such key", hint=unknown_hint(loc))
    if kind == "secret" or is_alerts_address(key, node.text):
        secret = group[0]["msg"] if kind == "secret" else "addresses stand under `to`, by name"
        example = "ALERT_URL" if loc[0] == "alerts" else "HF_TOKEN"
        way_out = f"Write the name of an environment variable, such as `{example}`."
        return node.mark.problem(key, secret, hint=way_out)
    if group[0]["loc"][-1:] == ("[key]",):
        return key_place(tree, loc).problem(key, f"its name must be {phrase(group[0])}")
    phrases = list(dict.fromkeys(phrase(detail) for detail in group))
    what = phrases[0] if kind == "sentence" else "must be " + " or ".join(phrases)
    return node.mark.problem(key, what, shown(node), hint(group, node, loc))


def plain(loc: Loc, tree: Node) -> Problem:
    """A problem by its place alone."""
    return key_place(tree, loc).problem(".".join(map(str, loc)), "it is wrong")


def phrase(detail: Any) -> str:
    """What must stand there."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "`")
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"like {context['pattern']}")
    return PHRASES[kind].format(**context) if kind in PHRASES else str(detail["msg"])


def shown(node: Node) -> str:
    """The value as it was written, without secrets and not too long."""
    if isinstance(node.value, dict | list):
        return "a mapping" if isinstance(node.value, dict) else "a list"
    if node.value is None:
        return "nothing"
    text = " ".join(without_secrets(node.text).split()) or '""'
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def hint(group: list[Any], node: Node, loc: Loc) -> str:
    """The way out, where it can be told."""
    kinds, value, text = {detail["type"] for detail in group}, node.value, node.text
    if given := group[0].get("ctx", {}).get("hint"):
        return str(given)
    if "bool_type" in kinds and text in YAML_1_1_BOOLS:
        truth = "true" if YAML_1_1_BOOLS[text] else "false"
        return f"YAML 1.2 reads `{text}` as text. Write {truth}."
    if "literal_error" in kinds and isinstance(value, str):
        expected = " ".join(str(detail.get("ctx", {}).get("expected")) for detail in group)
        return did_you_mean(value, re.findall(r"'([^']+)'", expected))
    if "string_type" in kinds and text and not isinstance(value, dict | list | None):
        return (
            f"Write '{text}' in quotes." if not looks_like_a_secret(text) else "Put it in quotes."
        )
    if kinds & {"int_type", "float_type"} and isinstance(value, str):
        return number_hint(text)
    if (
        kinds & {"int_type", "int_from_float"}
        and isinstance(value, float)
        and value.is_integer()
        and abs(value) < 1e15
    ):
        return f"Write {int(value)}."
    if kinds & {"tuple_type"} and isinstance(value, str) and not looks_like_a_secret(text):
        return f"Write `[{text}]`."
    if (
        "model_type" in kinds
        and isinstance(value, str)
        and loc[-1] in ("model", "dataset", "optimizer", "schedule")
    ):
        return f"Write `{loc[-1]}: {{name: {shown(node)}}}`."
    return WAYS_OUT.get(loc, "")


def number_hint(text: str) -> str:
    """Why a text that looks like a number is none."""
    bare = text.replace("_", "").replace(",", "").lstrip("0")
    if FLOAT.fullmatch(text):
        return "Remove the quotes."
    return f"Write {bare}." if FLOAT.fullmatch(bare) else ""


def unknown_hint(loc: Loc) -> str:
    if meant := meant_key(loc):
        return f"Did you mean `{meant}`?"
    model = model_at(loc[:-1])
    return f"Known here: {', '.join(model.model_fields)}." if model else ""


def meant_key(loc: Loc) -> str:
    """The key that was probably meant: one of the same name elsewhere, of those of several that of
    `train`; what others call so; or a similar one here."""
    name, model = str(loc[-1]), model_at(loc[:-1])
    elsewhere = [key for key in all_keys(Recipe) if key.rpartition(".")[2] == name]
    if elsewhere:
        of_train = [key for key in elsewhere if key == f"train.{name}"]
        return (of_train or elsewhere)[0] if of_train or len(elsewhere) == 1 else ""
    if name.lower() in OTHER_NAMES:
        return OTHER_NAMES[name.lower()]
    near = nearest(name, model.model_fields) if model else None
    return ".".join(map(str, (*loc[:-1], near))) if near is not None else ""


def all_keys(model: type[Part], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe outside of lists."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = model_in(field.annotation)
        if inner and not (is_list(field.annotation) or is_mapping(field.annotation)):
            yield from all_keys(inner, f"{prefix}{name}.")


def model_at(loc: Loc) -> type[Part] | None:
    """The model of the mapping at this place; None where keys are free, as in `args`."""
    model: type[Part] | None = Recipe
    named: type[Part] | None = None  # what is under each name of a mapping with free names
    for name in (name for name in loc if not isinstance(name, int)):
        field = model.model_fields.get(name) if model else None
        below = model_in(field.annotation) if field else named
        free = field is not None and is_mapping(field.annotation)
        model, named = (None, below) if free else (below, None)
    return model


def is_list(annotation: Any) -> bool:
    """Whether an annotation such as `tuple[Candidate, ...] | None` may hold several."""
    return get_origin(annotation) is tuple or any(map(is_list, get_args(annotation)))


def is_mapping(annotation: Any) -> bool:
    """Whether an annotation such as `dict[str, FileSource]` has free names."""
    return get_origin(annotation) is dict or any(map(is_mapping, get_args(annotation)))


def model_in(annotation: Any) -> type[Part] | None:
    """The model that an annotation such as `tuple[Candidate, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((model for part in get_args(annotation) if (model := model_in(part))), None)
