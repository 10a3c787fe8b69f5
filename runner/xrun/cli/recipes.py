"""The commands about recipes: check, init, new, alert, schema."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..bar import bar
from . import completion, options
from .sharing import RecipeType, Source, fetched
from .sweeps import table_of
from .tables import room

if TYPE_CHECKING:
    from ..errors import Problem
    from ..recipe.git_url import RecipeURL
    from ..recipe.schema import Recipe


@click.command()
@click.argument(
    "recipes",
    nargs=-1,
    required=True,
    type=RecipeType(),
    metavar="RECIPE|URL...",
    shell_complete=completion.recipes,
)
@options.overrides
@options.as_json
@click.option(
    "--online",
    is_flag=True,
    help="Ask the Hub and Weights & Biases too: accounts, permissions, names, revisions.",
)
def check(
    recipes: Sequence[Path | RecipeURL], overrides: Sequence[str], as_json: bool, online: bool
) -> None:
    """Check recipes: every problem at once, as file:line:column. Exit code 2 if there is one, 3 if
    only an account lacks something."""
    from ..errors import LaunchError, RecipeError
    from ..recipe.load import load_recipe
    from ..recipe.notes import notes
    from ..run.plan import check_deadline, check_folder, check_tracking

    wrong: list[Problem] = []
    refused: list[Problem] = []
    missing: list[Problem] = []
    for typed in recipes:
        try:
            source = fetched(typed)
            path = source.path
            recipe = load_recipe(path, overrides)
            check_tracking(recipe, path, overrides)
            check_deadline(recipe, path, overrides, time.time())
            check_folder(recipe, path, overrides)
            _refuse_what_stays(recipe, path, overrides)
            missing += _missing_libraries(recipe, path, overrides)
            width = room()
            inside = None if width is None else width - 2
            swept, priced = recipe.sweep is not None, not as_json
            trials = table_of(path, overrides, inside, priced=priced) if swept else []
            of_account = _online_problems(recipe, source) if online else ()
            refused += of_account
            if not as_json and not of_account:
                click.echo(f"{source.typed}: {recipe.name} is fine.")
                for note in notes(recipe, path):
                    click.echo(f"  note: {note}")
                for row in trials:
                    click.echo(f"  {row}")
        except RecipeError as error:
            wrong += error.problems
    problems = [*wrong, *refused]
    if as_json:
        click.echo(json.dumps([vars(problem) for problem in problems], indent=1))
    else:
        for told in [
            *(f"{each} Machines of clouds install it by themselves." for each in missing),
            *problems,
        ]:
            click.echo(str(told), err=True)
    if problems:
        sys.exit(RecipeError.exit_code if wrong else LaunchError.exit_code)


def _refuse_what_stays(recipe: Recipe, path: Path, overrides: Sequence[str]) -> None:
    """Raises RecipeError for what a cloud's machine would not have of the project."""
    if recipe.hardware.any_of:
        from ..launcher.project import refuse_what_stays
        from ..run.plan import make_plan

        refuse_what_stays(make_plan(recipe, path, overrides=overrides))


def _missing_libraries(recipe: Recipe, path: Path, overrides: Sequence[str]) -> Iterator[Problem]:
    """What this environment lacks of the recipe's requirements: raised where the recipe trains
    here, told where machines install it."""
    if not recipe.requirements:
        return
    from ..errors import RecipeError
    from ..recipe.missing import missing_of

    if problem := missing_of(recipe, path, overrides):
        if recipe.hardware.local:
            raise RecipeError([problem])
        yield problem


def _online_problems(recipe: Recipe, source: Source) -> Sequence[Problem]:
    from ..launcher.job import known_run
    from ..launcher.preflight import check_online
    from ..run.plan import make_plan

    new = make_plan(recipe, source.path, origin=source.origin)
    known = known_run(new)
    with bar("Asking the Hub and Weights & Biases"):
        return check_online(recipe, known or new, unknown_here=known is None).problems


@click.command()
@click.argument("name", metavar="[NAME | PATH]", default="recipes/my_first.yaml")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--list", "as_list", is_flag=True, help="List the recipes that come with xrun.")
def init(name: str, folder: Path | None, as_list: bool) -> None:
    """Write a commented recipe to PATH, or a recipe that comes with xrun (--list) into FOLDER, with
    its components and data."""
    from ..libraries import TRAINING, what_is_missing
    from ..recipe.shipped import copy, find, shipped
    from ..recipe.template import write_template

    if as_list:
        for each in shipped():
            click.echo(f"{each.name:<20} {each.sentence}")
        return
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if folder is not None:
            raise click.UsageError("FOLDER is for a NAME only: a PATH says already where to write.")
        path = Path(name)
        write_template(path)
    else:
        path = copy(find(name), folder or Path())
    click.echo(f"Wrote {path}. Next: xrun check {path}, then xrun {path}")
    if missing := what_is_missing(TRAINING):
        click.echo(missing)


@click.command()
@click.argument("url", type=RecipeType())
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def new(url: Path | RecipeURL, folder: Path | None) -> None:
    """Copy the recipe at URL into FOLDER or the project here, with its components, the modules that
    they import, and the files that it names. Nothing is overwritten, and nothing executed."""
    from ..launcher.copies import copy

    source = fetched(url)
    if source.clone is None:
        hint = "To copy a recipe that comes with xrun: xrun init NAME. A local one: cp."
        raise click.UsageError(f"{url} is not a URL. {hint}")
    made = copy(source.clone, folder)
    for path in made.files:
        click.echo(f"  {path}")
    click.echo(f"Copied from {source.clone.origin.url}; its licence is that repository's.")
    click.echo(f"Next: xrun check {made.recipe}, then xrun {made.recipe}")


@click.command()
@options.recipe
@options.overrides
@click.option("--test", is_flag=True, help="Send one message to each address.")
def alert(recipe: Path | RecipeURL, overrides: Sequence[str], test: bool) -> None:
    """Show whom RECIPE's `alerts` tell of what.

    With --test each address gets a message; if one does not arrive, the reason is printed and the
    exit code is 3."""
    from ..alerts.teller import try_out
    from ..errors import LaunchError
    from ..libraries import ALERTS, require
    from ..recipe.load import load_recipe

    source = fetched(recipe)
    loaded = load_recipe(source.path, overrides)
    if loaded.alerts is None:
        hint = "Add `alerts: {to: [ALERT_URL]}`, and set ALERT_URL to an address of apprise's."
        raise LaunchError(f"{source.typed} names nobody under `alerts`.", hint)
    if not test:
        click.echo(f"{', '.join(loaded.alerts.to)}: {', '.join(loaded.alerts.on)}")
        return
    require(ALERTS)
    outcomes = try_out(loaded.alerts.to, loaded.name)
    for name, why in outcomes.items():
        click.echo(f"{name}: {why or 'arrived.'}", err=bool(why))
    if any(outcomes.values()):
        sys.exit(LaunchError.exit_code)


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from ..recipe.docs import schema as recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=1))


COMMANDS = (check, init, new, alert, schema)
