"""A run's metrics on a split, measured afterwards by a process of its own: what is asked for, and
what came back."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import environment
from ..errors import LaunchError
from ..files import read_json
from ..libraries import TRAINING, require
from ..recipe.load import load_recipe
from ..run.folder import RunFolder, find_run
from ..run.identity import identity
from ..run.origin import Origin
from ..run.plan import Plan, make_plan
from .job import known_run, runs_of
from .local import alone

_MOST = 5
"""So many of a recipe's other runs are named."""
_COMPUTES = "xrun.training.measured"


@dataclass(frozen=True)
class Target:
    """Whose metrics: a run's checkpoint, or the model that it has exported (`of_model`)."""

    folder: RunFolder
    of_model: bool = False


@dataclass(frozen=True)
class Measured:
    """What one checkpoint, or the exported model, reaches on one split."""

    run: str
    step: int
    of: str
    split: str
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def target_of(name: str, overrides: Sequence[str] = ()) -> Target:
    """A run by its id or by its recipe with these overrides, or a finished run's model by its
    folder.

    Raises:
        LaunchError: there is no such run, or no run that the folder belongs to.
        RecipeError: the recipe is wrong.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return of_recipe(path, overrides)
    if not path.is_dir():
        return Target(find_run(name))
    folder = RunFolder(path.resolve().parent)
    if path.resolve() != folder.model or not folder.plan_file.exists():
        raise LaunchError(
            f"{name} is not a run's `model` folder, so its dataset and its task are not known.",
            "Give the run's id, or the folder in which the run has exported its model.",
        )
    return Target(folder, of_model=True)


def of_recipe(recipe: Path, overrides: Sequence[str], origin: Origin | None = None) -> Target:
    """The run that the recipe has here; `origin` is where it was fetched from.

    Raises:
        LaunchError: there is none.
        RecipeError: the recipe is wrong.
    """
    loaded, named = load_recipe(recipe, overrides), origin.url if origin else str(recipe)
    if loaded.sweep is not None:
        raise LaunchError(
            f"{named} has a sweep, which is a run for each trial, and this is about one.",
            f"Give the id of one; `xrun sweep table {named}` has them.",
        )
    meant = make_plan(loaded, recipe, overrides=overrides, origin=origin)
    if (known := known_run(meant)) is None:
        others = ", ".join(other.run for other in runs_of(meant)[:_MOST])
        raise LaunchError(
            f"{named} has no run here: it would be {meant.run}.",
            f"Its runs with other keys: {others}. Give the id of one."
            if others
            else "`xrun status` lists the runs.",
        )
    return Target(RunFolder(known.folder))


def is_of_other_code(plan: Plan) -> bool:
    """Whether the components have changed since the run was planned, so that what is measured is
    the run's weights by today's code. Raises ComponentError."""
    made = identity(plan.load_recipe(), Path(plan.project), plan.rule)
    return made is not None and made.digest != plan.digest


def measure(target: Target, split: str, step: int | str | None) -> Measured | int:
    """The metrics, or the exit code where the process has said why there are none.

    Raises:
        LaunchError: what trains is not installed here.
    """
    require(TRAINING)
    plan = target.folder.plan()
    wish = json.dumps({"split": split, "step": step, "of_model": target.of_model})
    with tempfile.TemporaryDirectory(prefix="xrun-evaluate-") as scratch:
        result = Path(scratch) / "result.json"
        done = subprocess.run(
            [*environment.PYTHON, "-m", _COMPUTES, target.folder.plan_file, wish, result],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a component prints is not the answer
            cwd=plan.project if os.path.isdir(plan.project) else None,
            env={
                **alone(os.environ),
                environment.PROJECT.name: plan.project,
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                **plan.env,
            },
            check=False,
        )
        found: dict[str, Any] | None = read_json(result, dict)
    if done.returncode or found is None:
        return done.returncode or 1
    return Measured(**found)
