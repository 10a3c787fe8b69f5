"""What a run's id follows from: the digest of everything that changes its mathematics, made by a
numbered rule.

A run keeps its id, and the rule that made it, for ever. A new run gets the newest rule's; a recipe
finds the runs that an older rule has named by making that rule's digest as well. So what a rule
makes of a recipe never changes: keys that are added to the schema count where they are given, by
the newest rule, and an older one has no name for such a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from .. import component
from ..recipe.counted import TRAIN
from .code_digest import bytes_digest, code_digest
from .sources import sources

if TYPE_CHECKING:
    from ..recipe.schema import Recipe

NEWEST = 3
"""The rule that new runs get."""
_FREEZING = ("adapter", "frozen_modules", "frozen")
"""Keys of `model` that plans from before they were there lack."""
_LATER = {"gather": "fp32"}
"""Keys of `train` that they lack, and what the recipes of their runs mean."""
_RULE_1: dict[str, Any] = {
    "model": dict.fromkeys(("name", "args", "init_from", "trust_remote_code")),
    "dataset": dict.fromkeys(("name", "args")),
    "task": None,
    "train": dict.fromkeys(
        ("global_batch", "micro_batch", "precision", "clip_grad_norm", "seed", "ema")
    )
    | {
        "optimizer": dict.fromkeys(("name", "lr", "weight_decay", "args")),
        "schedule": dict.fromkeys(("name", "warmup_steps", "final")),
    },
}
"""The keys that rule 1 writes out, whether or not they are at their defaults."""


@dataclass(frozen=True)
class Identity:
    """`mathematics` is what the digest is made of, as JSON, with a hash for each component's file
    under `sources`."""

    rule: int
    digest: str
    mathematics: Mapping[str, Any]


def identity(recipe: Recipe, project: Path, rule: int = NEWEST) -> Identity | None:
    """What a rule makes of a recipe; None where it has no name for what the recipe asks for, so
    that no run of it can be meant.

    Never hardware, checkpoints, tracking, budget or the number of steps. Raises ComponentError.
    """
    make = {1: _rule_1, 2: _rule_2, 3: _rule_3}.get(rule)
    mathematics = make(recipe, project) if make else None
    if mathematics is None:
        return None
    return Identity(
        rule, blake3(json.dumps(mathematics, sort_keys=True).encode()).hexdigest(), mathematics
    )


def in_full(recipe: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """What changes the mathematics with defaults written out, for people to compare; `recipe` as a
    plan has it."""
    train = {
        name: value
        for name, value in recipe["train"].items()
        if name in TRAIN and value != _LATER.get(name, ...)
    }
    model = {n: value for n, value in recipe["model"].items() if value or n not in _FREEZING}
    return {
        "model": _trained(model),
        **{name: recipe[name] for name in ("dataset", "task")},
        "train": train,
        "sources": sources,
    }


def _rule_1(recipe: Recipe, project: Path) -> dict[str, Any] | None:
    """Every key of its time, and the components' files byte for byte."""
    if not _knows(_RULE_1, _given(recipe)):
        return None
    made = _picked(_RULE_1, recipe.model_dump(mode="json"))
    return {
        **made,
        "sources": {
            place: bytes_digest(place, source)
            for place, source in _sources(recipe, project, own=False)
        },
    }


def _rule_2(recipe: Recipe, project: Path) -> dict[str, Any]:
    """What is not at its default, and what the components compute: no comment, docstring or
    layout."""
    return _computed(recipe, project, own=False)


def _rule_3(recipe: Recipe, project: Path) -> dict[str, Any]:
    """The same with every module of the project's that the components import."""
    return _computed(recipe, project, own=True)


def _computed(recipe: Recipe, project: Path, *, own: bool) -> dict[str, Any]:
    made = _given(recipe)
    kinds: dict[str, component.Kind] = {"model": "models", "dataset": "datasets"}
    for part, kind in kinds.items():
        args = _given_args(kind, made[part]["name"], made[part].pop("args", {}), project)
        made[part] |= {"args": args} if args else {}
    return {
        **made,
        "sources": {
            place: code_digest(place, source)
            for place, source in _sources(recipe, project, own=own)
        },
    }


def _given(recipe: Recipe) -> dict[str, Any]:
    """The keys that change the mathematics and are not at their defaults, as JSON."""
    given = recipe.given()
    train = {name: value for name, value in given["train"].items() if name in TRAIN}
    return {
        "model": _trained(given["model"]),
        "dataset": given["dataset"],
        "task": given["task"],
        "train": train,
    }


def _trained(model: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's part about the model without what is only done with the finished one."""
    adapter = model.get("adapter")
    if adapter is None:
        return dict(model)
    return {**model, "adapter": {name: adapter[name] for name in adapter if name != "merge"}}


def _given_args(
    kind: component.Kind, name: str, args: Mapping[str, Any], project: Path
) -> dict[str, Any]:
    """The arguments that `build` would not have by itself."""
    parameters = component.signature(component.find(kind, name, project)).parameters
    defaults = {
        parameter.name: repr(_as_written(parameter.default))
        for parameter in parameters
        if parameter.is_literal
    }
    return {
        argument: value for argument, value in args.items() if defaults.get(argument) != repr(value)
    }


def _as_written(default: Any) -> Any:
    """A literal as a recipe would write it: YAML has no tuples."""
    if isinstance(default, tuple | list):
        return [_as_written(each) for each in default]
    if isinstance(default, dict):
        return {name: _as_written(each) for name, each in default.items()}
    return default


def _sources(recipe: Recipe, project: Path, *, own: bool) -> Iterator[tuple[str, bytes]]:
    """The files of the two components and of what they import."""
    yield from sources("models", recipe.model.name, project, own=own).items()
    yield from sources("datasets", recipe.dataset.name, project, own=own).items()


def _knows(keys: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether these keys are all there are in `given`, however deep."""
    return all(
        name in keys and (keys[name] is None or _knows(keys[name], value))
        for name, value in given.items()
    )


def _picked(keys: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: values[name] if inner is None else _picked(inner, values[name])
        for name, inner in keys.items()
    }
