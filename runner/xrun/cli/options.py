"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from . import completion
from .sharing import RecipeType

_CALLED = {
    **dict.fromkeys(("train", "start", "launch", "fit"), "run"),
    **dict.fromkeys(("ls", "list", "ps", "runs"), "status"),
    **dict.fromkeys(("show", "info", "describe"), "report"),
    **dict.fromkeys(("stop", "kill", "end"), "cancel"),
    **dict.fromkeys(("delete", "remove", "del"), "rm"),
    **dict.fromkeys(("validate", "lint"), "check"),
    **dict.fromkeys(("test", "eval"), "evaluate"),
    **dict.fromkeys(("tail", "follow"), "logs"),
    **dict.fromkeys(("diff",), "compare"),
    **dict.fromkeys(("cost", "price"), "receipt"),
    **dict.fromkeys(("continue", "restart"), "resume"),
}
"""What a command is called elsewhere."""


@dataclass(frozen=True)
class Launching:
    """How a launch was asked for; all but `yes` matters on clouds only."""

    yes: bool = False
    detach: bool = False
    rehearsed: bool = False
    any_memory: bool = False


class Commands(click.Group):
    """Commands that are found by what was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; a command that is not there is answered with the one that is near."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from ..errors import did_you_mean, nearest

            word = args[0]
            guess = did_you_mean(_CALLED.get(word, word), self.commands)
            if not guess and (near := nearest(word, _CALLED)):
                guess = did_you_mean(_CALLED[near], self.commands)
            told = f"{error.message} {guess}".rstrip()
            # click's own error has its own guess from 8.4 on, which knows no other names
            raise click.UsageError(told, error.ctx) from error


class RunType(click.ParamType):
    """A run's id or address. The path of a recipe means the run that it has here."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What was typed, or the run's id. Raises RecipeError, and LaunchError where the recipe has
        no run or several."""
        if "://" in value or not value.endswith((".yaml", ".yml")):
            return value
        from ..launcher.measure import of_recipe
        from ..run.folder import name_here

        folder = of_recipe(Path(value), ()).folder
        return name_here(folder.run, folder.path)


recipe = click.argument(
    "recipe", type=RecipeType(), metavar="RECIPE|URL", shell_complete=completion.recipes
)
agree = click.option("--yes", is_flag=True, help="Do not ask. A recipe by URL must name a commit.")
run_id = click.argument("run_id", type=RunType(), metavar="RUN", shell_complete=completion.runs)
address = click.argument(
    "address", type=RunType(), metavar="RUN|ADDRESS", shell_complete=completion.runs
)
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
