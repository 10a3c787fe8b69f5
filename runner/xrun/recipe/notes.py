"""What is not wrong with a recipe, and yet is not as it says on this machine: a sentence each."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..component import project_root
from ..libraries import what_is_missing
from .location import target_there
from .needs import needs
from .schema import FileSource, Recipe


def notes(recipe: Recipe, path: Path) -> Iterator[str]:
    """Libraries that are not installed here, what a deadline or a wait for spot machines means, and
    what `absent_files` says; `path` is the recipe's."""
    if missing := what_is_missing(*needs(recipe)):
        yield missing
    hardware = recipe.hardware
    if (deadline := hardware.deadline) is not None:
        since = " from the first launch" if deadline.time is None else ""
        yield (
            f"hardware.deadline: {deadline}{since}; the run takes spot machines while on-demand"
            " machines could still finish it in time, then it takes those. Needs xrun's plugin in"
            " SkyPilot (`xrun setup sky`)."
        )
    elif hardware.may_wait:
        covers = ", if budget.usd covers the rest of the run" if recipe.budget.usd else ""
        yield (
            f"hardware.max_wait: without spot machines for {hardware.max_wait} it goes on"
            f" demand{covers}. Needs xrun's plugin in SkyPilot (`xrun setup sky`)."
        )
    yield from absent_files(recipe, project_root(path))


def absent_files(recipe: Recipe, project: Path) -> Iterator[str]:
    """The paths of `files` that a local run does not find. It makes none of them: they may lie
    anywhere, and only the components know whether they read them."""
    for target, each in recipe.files.items() if recipe.hardware.local else ():
        here = os.path.expanduser(target_there(target))
        if not os.path.exists(here):
            way = _way_out(each, here, project)
            yield f"files: {target} is for machines of clouds, and this machine has none. {way}"


def unheard(recipe: Recipe) -> Iterator[str]:
    """What nobody is told of where SkyPilot has no plugin of xrun's."""
    if recipe.alerts is not None and recipe.hardware.any_of:
        yield (
            "alerts: while the run has no machine (it waits for capacity), only xrun's plugin in"
            " SkyPilot can tell anybody; without it look with `xrun status`."
        )


def _way_out(each: FileSource, here: str, project: Path) -> str:
    if each.source is not None and (source := each.source.path(project)):
        return f"If the run reads it: {shlex.join(['ln', '-s', source, here])}"
    came = each.source or f"the volume {each.volume}"
    return f"If the run reads it, copy the data of {came} there first."
