"""What of a recipe's libraries this environment lacks, and the command that installs it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from ..component import project_root
from ..errors import Problem
from .load import place_of
from .requirements import KEY, applies, installed, wanted
from .schema import Recipe


def missing(requirements: Sequence[str]) -> list[str]:
    """Those that are not installed here in a version that would do."""
    return [text for text in requirements if not _is_here(Requirement(text))]


def missing_problem(
    requirements: Sequence[str], path: str, overrides: Sequence[str] = ()
) -> Problem | None:
    """All that is missing, as one problem at the place where the recipe names them; None where
    nothing is."""
    lacking = missing(requirements)
    if not lacking:
        return None
    what = f"not installed here: {', '.join(map(_told, lacking))}"
    hint = f"Type `{shlex.join(['pip', 'install', *lacking])}`."
    return place_of(KEY, path, overrides).problem(KEY, what, hint=hint)


def missing_of(recipe: Recipe, path: Path, overrides: Sequence[str] = ()) -> Problem | None:
    """The same for a recipe that was loaded. Raises RecipeError as `wanted` does."""
    if not recipe.requirements:
        return None
    named = wanted(recipe.requirements, project_root(path), str(path))
    return missing_problem(named, str(path), overrides)


def _is_here(parsed: Requirement) -> bool:
    if not applies(parsed, {"extra": ""}):
        return True
    here = installed(parsed.name)
    return bool(here) and parsed.specifier.contains(here, prereleases=True)


def _told(text: str) -> str:
    here = installed(Requirement(text).name)
    return f"{text} ({here} is)" if here else text
