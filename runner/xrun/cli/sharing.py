"""Recipes by URL on the command line: what was typed, where its file is, and the question before a
stranger's code is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipe.git_url import RecipeURL, is_url

if TYPE_CHECKING:
    from ..launcher.clone import Clone
    from ..run.origin import Origin
    from ..run.plan import Plan


class RecipeType(click.Path):
    """A recipe's path, or its URL."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What was typed, as a value. Raises RecipeError for a URL that names no recipe."""
        if isinstance(value, str) and is_url(value):
            return RecipeURL.parse(value)
        return super().convert(value, param, ctx)


@dataclass(frozen=True)
class Source:
    """A recipe's file here; `clone` is the repository that it was fetched with, `typed` what names
    it on a command line."""

    path: Path
    typed: str
    clone: Clone | None = None

    @property
    def origin(self) -> Origin | None:
        """Where it was fetched from."""
        return self.clone.origin if self.clone else None


def fetched(
    recipe: Path | RecipeURL, *, goes_on: Sequence[str] | None = None, yes: bool = False
) -> Source:
    """The recipe's file; see `launcher.clone.cloned`. With `yes`, which nobody will be asked for,
    the URL names the commit. Raises XrunError."""
    if isinstance(recipe, Path):
        return Source(recipe, str(recipe))
    from ..launcher.clone import cloned

    if yes and not recipe.commit:
        raise _without_commit(recipe)
    clone = cloned(recipe, _say, goes_on=None if goes_on is None else tuple(goes_on))
    return Source(clone.recipe, recipe.typed, clone)


def agreed(source: Source, plan: Plan, *, yes: bool) -> None:
    """Afterwards somebody has agreed to what the plan of a fetched recipe would do.

    Raises:
        LaunchError: nobody has.
    """
    if source.clone is None:
        return
    from ..errors import LaunchError
    from ..launcher.consent import agree, demands, has_agreed

    told = demands(plan, source.clone)
    if has_agreed(source.clone, told):
        return
    origin = source.clone.origin
    _say(f"{origin.repository} at {origin.commit}: {origin.path} would")
    for line in told:
        _say(line)
    if not (yes or says_yes("Do you trust this commit with that?")):
        what = f"Nothing of {origin.repository} was run: you have not agreed to it."
        hint = f"Read {source.path}. With '{origin.url}', `--yes` agrees without a question."
        raise LaunchError(what, hint)
    agree(source.clone, told)


def says_yes(question: str) -> bool:
    """Whether the person at the terminal says yes; without one the answer is no."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        _say("")
        return False


def need_yes(question: str, otherwise: str) -> None:
    """Ask the person at the terminal.

    Raises:
        LaunchError: nobody has said yes; `otherwise` is what that means.
    """
    from ..errors import LaunchError

    if not says_yes(question):
        raise LaunchError(
            f"{otherwise}: you have not agreed to it.", "`--yes` agrees without a question."
        )


def _without_commit(url: RecipeURL) -> Exception:
    from ..errors import Problem, RecipeError
    from ..launcher.clone import located

    origin = located(url)
    what = f"--yes agrees to one commit, and this URL names {origin.revision}"
    hint = f"Type '{origin.url}', which is where it is now."
    return RecipeError([Problem(url.typed, 0, 0, "", what, hint=hint)])


def _say(text: str) -> None:
    click.echo(text, err=True)
