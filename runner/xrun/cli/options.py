"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from . import completion
from .sharing import RecipeType


@dataclass(frozen=True)
class Launching:
    """How a launch was asked for; all but `yes` matters on clouds only."""

    yes: bool = False
    detach: bool = False
    rehearsed: bool = False
    any_memory: bool = False


recipe = click.argument(
    "recipe", type=RecipeType(), metavar="RECIPE|URL", shell_complete=completion.recipes
)
agree = click.option("--yes", is_flag=True, help="Do not ask. A recipe by URL must name a commit.")
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
trial = click.option(
    "--trial",
    type=click.IntRange(1),
    metavar="N",
    help="The trial of this number, of a recipe with a sweep.",
)
local = click.option(
    "--local", is_flag=True, help="Train on this machine, whatever `hardware` says."
)

any_memory = click.option(
    "--any-memory", is_flag=True, help="On clouds: also machines with too little memory for a step."
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
