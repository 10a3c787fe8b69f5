"""Options that several commands share."""

from __future__ import annotations

from typing import Any

import click

from . import completion
from .sharing import RecipeType

recipe = click.argument(
    "recipe", type=RecipeType(), metavar="RECIPE|URL", shell_complete=completion.recipes
)
agree = click.option("--yes", is_flag=True, help="Do not ask; a recipe by URL names its commit.")
run_id = click.argument("run_id", metavar="RUN", shell_complete=completion.runs)
address = click.argument("address", metavar="RUN|ADDRESS", shell_complete=completion.runs)
overrides = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe.",
    shell_complete=completion.keys,
)
local = click.option(
    "--local", is_flag=True, help="On this machine, whatever the recipe's hardware says."
)


class Step(click.ParamType):
    """A step's number, or `best`."""

    name = "step"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """What was typed, as a value."""
        return "best" if value == "best" else click.IntRange(0).convert(value, param, ctx)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
