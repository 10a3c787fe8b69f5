"""YAML text -> `Recipe`: `extends`, overrides, and every problem at once at `file:line:column`."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import yaml

from ..component import (
    Kind,
    Signature,
    check_args,
    clone_around,
    find,
    project_root,
    signature,
)
from ..errors import ComponentError, Problem, RecipeError, nearest
from .diagnostics import (
    MOST_PROBLEMS,
    Loc,
    key_place,
    loc_of,
    model_at,
    node_at,
    number_hint,
    place,
    shown,
    validate,
)
from .location import Location, NoLocationError
from .not_built import with_what_is
from .paths import missing_paths
from .rules import BETRAYED
from .schema import Recipe
from .secret_text import assigns_a_secret, without_secrets
from .yaml_nodes import MAX_BYTES, Mark, Node, Unreadable, join, read_nodes

LONGEST_CHAIN = 10
HERE = "hardware.local={}"
"""The override that `--local` means: this machine, with the processes of a recipe that is local
already."""


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in this file, with what it extends below it and the overrides (`train.steps=10`)
    on top.

    Raises RecipeError with everything that is wrong, and nothing else, whatever the file holds.
    """
    problems: list[Problem] = []
    try:
        tree = whole_tree(os.fspath(path), overrides, problems)
    except Unreadable as error:
        raise RecipeError(in_order([*problems, error.problem])) from None
    recipe, wrong = validate(tree)
    problems += wrong
    project = project_root(os.fspath(path))
    problems += component_problems(tree, project)
    problems += file_problems(tree, project)
    problems += library_problems(tree, project)
    if recipe is None or problems:
        raise RecipeError([answered(problem, tree) for problem in in_order(problems)])
    return recipe.model_copy(update={"extends": None})


def answered(problem: Problem, tree: Node) -> Problem:
    """With the way out that holds where somebody asks for what is not there by design."""
    return with_what_is(problem, shown(node_at(tree, loc_of(problem.key, tree))))


def at_their_places(
    problems: Sequence[Problem], path: str, overrides: Sequence[str]
) -> list[Problem]:
    """Problems that were found later, each where its key is written."""
    marks = [place_of(problem.key, path, overrides) for problem in problems]
    return in_order(
        [
            mark.problem(problem.key, problem.what, problem.got, problem.hint)
            for mark, problem in zip(marks, problems, strict=True)
        ]
    )


def place_of(key: str, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Mark:
    """Where a key of a recipe that was loaded is written; its file where that has changed since."""
    try:
        tree = whole_tree(os.fspath(path), overrides, [])
    except Unreadable:
        return Mark(os.fspath(path))
    return place(tree, loc_of(key, tree))


def whole_tree(path: str, overrides: Sequence[str], problems: list[Problem]) -> Node:
    """The nodes of a recipe with what it extends and the overrides. Raises Unreadable."""
    tree = read_tree(path, (), problems)
    for override in by_name_first(overrides):
        tree = with_override(tree, override, problems)
    return without_nulls(tree)


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Each once, file by file from top to bottom, without secrets."""
    files = {path: index for index, path in enumerate(dict.fromkeys(p.path for p in problems))}
    betrayed = {problem.key for problem in problems if problem.what == BETRAYED}
    told = [shareable(replace(p, got="") if p.key in betrayed else p) for p in problems]
    every = sorted(
        dict.fromkeys(told),
        key=lambda problem: (files[problem.path], problem.line, problem.column),
    )
    first, rest = every[:MOST_PROBLEMS], len(every) - MOST_PROBLEMS
    if rest > 0:
        first.append(
            replace(first[-1], key="", what=f"and {rest} more from here on", got="", hint="")
        )
    return first


def shareable(problem: Problem) -> Problem:
    """The problem without a token that stands where a key or a value should be."""
    key, what, got, hint = map(
        without_secrets, (problem.key, problem.what, problem.got, problem.hint)
    )
    return replace(problem, key=key, what=what, got=got, hint=hint)


# Files


def read_tree(
    path: str, chain: tuple[str, ...], problems: list[Problem], room: int = MAX_BYTES
) -> Node:
    """The nodes of a file over those of the recipe that it extends, which have so many bytes
    together. Raises Unreadable."""
    text = read_bytes(path)
    if chain and len(text) > room:
        what = (
            f"together with the recipes that extend it, it is larger than {MAX_BYTES // 1024} KiB"
        )
        raise Unreadable(Mark(path).problem("", what))
    tree, found = read_nodes(text, path)
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
    return merge(read_base(path, base, chain, problems, room - len(text)), tree, ())


def read_bytes(path: str) -> bytes:
    try:
        # A pipe that nobody writes into is empty, and not waited for.
        with open(path, "rb", opener=without_waiting) as file:
            os.set_blocking(file.fileno(), True)
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what, hint = f"it cannot be read: {reason.lower()}", ""
        if isinstance(error, FileNotFoundError):
            hint = _near(Path(path))
        raise Unreadable(Mark(path).problem("", what, hint=hint)) from None


def _near(path: Path) -> str:
    """What was meant by a recipe that is not there."""
    if re.match(r"[a-z_]\w*(\.\w+)*=", str(path)):
        return f"To set a key: `-s {shlex.quote(str(path))}`."
    inner = path.parent / "recipes" / path.with_suffix(".yaml").name
    if inner.is_file():
        return f"Did you mean `{inner}`?"
    found = {each.stem: each.name for each in sorted(islice(path.parent.glob("*.y*ml"), 1000))}
    names = list(found.values())
    if near := nearest(path.stem, found):
        return f"Did you mean `{path.with_name(found[near])}`?"
    if names:
        return f"That folder has {', '.join(names[:8])}{', ...' if names[8:] else ''}."
    return "`xrun init` writes a first recipe, recipes/my_first.yaml."


def without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_base(
    path: str, base: Node, chain: tuple[str, ...], problems: list[Problem], room: int
) -> Node:
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
    clone = clone_around(Path(chain[0]).parent)
    if clone is not None and not Path(os.path.realpath(target)).is_relative_to(clone):
        what = "it leads out of the repository that the recipe was fetched from"
        raise Unreadable(base.mark.problem("extends", what, base.text))
    if os.path.realpath(target) in chain:
        raise Unreadable(
            base.mark.problem("extends", "the recipes extend each other in a circle", base.text)
        )
    if len(chain) > LONGEST_CHAIN:
        raise Unreadable(
            base.mark.problem(
                "extends", f"this is a chain of more than {LONGEST_CHAIN} recipes", base.text
            )
        )
    return read_tree(target, chain, problems, room)


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
    """What stays of the base's mapping: nothing of other hardware, of a different model or dataset,
    no half of a switch."""
    old, new = base.child("name"), over.child("name")
    renamed = bool(old and new and old.value != new.value)
    others = loc == ("hardware",) and (over.child("local") or over.child("any_of"))
    if others or (renamed and loc in (("model",), ("dataset",))):
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
    said = f"{override.partition('=')[0]}=***" if assigns_a_secret(override) else override
    mark = Mark("-s " + without_secrets(said))
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
    name, rest = dotted(tree, names) if loc == ("sweep", "parameters") else (names[0], names[1:])
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
    if not rest and loc != ("hardware",):
        return merge(tree, Node({name: value}, tree.mark, keys=keys), loc)
    before = tree.child(name) or Node(None, value.mark)
    below = (*loc, name)
    inner = put(before, rest, value, below) if rest else merge(before, value, below)
    others = tree.value
    if loc == ("hardware",) and name == "local":
        others = {}  # the other keys are for clouds
    elif loc == ("hardware",) and name == "any_of":
        others = {each: node for each, node in tree.value.items() if each != "local"}
    return replace(tree, value={**others, name: inner}, keys=keys | tree.keys)


def dotted(tree: Node, names: list[str]) -> tuple[str, list[str]]:
    """A name that has dots itself, as those of `sweep.parameters`, and the keys below it: all of it
    is the name, unless a part of it stands there already."""
    heads = (".".join(names[:count]) for count in range(len(names), 0, -1))
    name = next((head for head in heads if tree.child(head)), ".".join(names))
    return name, names[len(name.split(".")) :]


def put_in_list(tree: Node, names: list[str], value: Node, loc: Loc) -> Node:
    name, rest = names[0], names[1:]
    if not (name.isdecimal() and name.isascii() and len(name) < 6 and int(name) < len(tree.value)):
        numbers = f"whose items are numbered from 0 to {len(tree.value) - 1}"
        known = numbers if tree.value else "and it is empty"
        what = f"`{'.'.join(map(str, loc))}` is a list, {known}"
        raise Unreadable(value.mark.problem("", what, name))
    items = list(tree.value)
    items[int(name)] = put(items[int(name)], rest, value, (*loc, int(name))) if rest else value
    return replace(tree, value=items)


# Components and libraries


def library_problems(tree: Node, project: Path) -> Iterator[Problem]:
    """What is wrong with the libraries that the recipe names."""
    if node := tree.child("requirements"):
        from .requirements import requirement_problems  # takes its time, and most have none

        yield from requirement_problems(node, project)


def component_problems(tree: Node, project: Path) -> Iterator[Problem]:
    """What is wrong with the names and arguments of the two components."""
    for key, kind in (("model", "models"), ("dataset", "datasets")):
        section = tree.child(key)
        name = section.child("name") if section else None
        if section and name and isinstance(name.value, str) and name.value.isidentifier():
            args = section.child("args") or Node({}, name.mark)
            yield from one_component(key, cast(Kind, kind), name, args, project)


def file_problems(tree: Node, project: Path) -> Iterator[Problem]:
    """The files that should go along to machines of clouds, and are not here."""
    hardware, files = tree.child("hardware"), tree.child("files")
    on_clouds = hardware is not None and hardware.child("any_of") is not None
    for target, node in (files.mapping or {}).items() if files and on_clouds else ():
        source = node.child("source") or node
        path = local_path(source, project)
        if path is not None and not os.path.exists(path):
            hint = f"It is looked for at {path}."
            yield source.mark.problem(f"files.{target}", "it is not here", source.text, hint)


def local_path(source: Node, project: Path) -> str | None:
    """Where a source of `files` is here; None for a bucket, and for what is wrong in itself."""
    with contextlib.suppress(NoLocationError):
        if isinstance(source.value, str) and source.value:
            return Location.parse(source.value).path(project)
    return None


def one_component(key: str, kind: Kind, name: Node, args: Node, project: Path) -> Iterator[Problem]:
    try:
        build = signature(find(kind, name.value, project))
    except ComponentError as error:
        yield name.mark.problem(join(key, "name"), error.message, hint=error.hint)
        return
    if args.mapping is not None:
        found = args.plain()
        for problem in (*check_args(build, found), *missing_paths(build, found, project)):
            yield at_argument(join(key, "args"), problem, args, build)


def at_argument(key: str, problem: Problem, args: Node, build: Signature) -> Problem:
    """A problem of the arguments at its place: at the key of an unknown one, else at the value."""
    if not problem.key:
        return args.mark.problem(key, problem.what, hint=problem.hint)
    node, key = node_at(args, (problem.key,)), join(key, problem.key)
    if not problem.got:
        return key_place(args, (problem.key,)).problem(key, problem.what, hint=problem.hint)
    quoted = isinstance(node.value, str) and build.takes_number(problem.key)
    hint = number_hint(node.text) if quoted else problem.hint
    return node.mark.problem(key, problem.what, shown(node), hint)


def arguments_of(path: Path, part: str) -> list[str]:
    """What `build` of a recipe's `model` or `dataset` takes, by name; nothing where the recipe or
    the component cannot be read."""
    kind: Kind = "models" if part == "model" else "datasets"
    try:
        name = yaml.safe_load(read_bytes(os.fspath(path)))[part]["name"]
        build = signature(find(kind, name, project_root(path)))
    except (Unreadable, ValueError, TypeError, KeyError, yaml.YAMLError, ComponentError):
        return []
    return [each.name for each in build.parameters]
