"""The `xrun` command: which commands there are, and how an error becomes a line and an exit code.

`xrun RECIPE` is `xrun run RECIPE`; the other commands are named. Everything that a command needs is
imported by it, so that `xrun --help` and `xrun check` answer at once.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from . import (
    again,
    completion,
    keeping,
    options,
    overview,
    pages,
    recipes,
    runs,
    setup,
    sweeps,
    train,
    watching,
)

if TYPE_CHECKING:
    from ..errors import XrunError


class _Group(options.Commands):
    """A recipe's path in place of a command means `run`, and so does every other path: `run` says
    what is wrong with it."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        named = word.endswith((".yaml", ".yml")) or "/" in word or word.startswith(".")
        if (named or Path(word).is_file()) and word not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """See click, which would end with 1; of a drill that says that two runs differ."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            from ..errors import Interrupted

            what = f"Ctrl-C has ended `xrun {ctx.invoked_subcommand}` before it was done."
            hint = "What is committed stays. The same command does it again."
            raise Interrupted(what, hint) from None
        except click.UsageError as error:
            extra = re.fullmatch(r"Got unexpected extra arguments? \((\S+=.*)\)", error.message)
            if extra is not None:  # as other tools take them
                error.message += f". To set a key of the recipe: -s {extra[1].split()[0]}"
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """A command, or a recipe."""
        found = super().shell_complete(ctx, incomplete)
        own = completion.recipes(ctx, self.params[0], incomplete)
        return [*found, *(each for each in own if each.type == "plain" or not found)]


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xrun")
def cli() -> None:
    """Train from one YAML recipe, survive every kill, end with the same weights.

    \b
    xrun recipes/digits.yaml          train; the same command again goes on
    xrun check recipes/*.yaml         all problems at file:line:column
    xrun drill recipes/digits.yaml    prove that kills change nothing
    """


for _group in (
    train,
    sweeps,
    recipes,
    overview,
    runs,
    pages,
    watching,
    again,
    keeping,
    setup,
    completion,
):
    for _command in _group.COMMANDS:
        cli.add_command(_command)


def main() -> None:
    """The one place where an error becomes a line and an exit code.

    Until a command says otherwise SIGINT and SIGTERM end it at once: nothing was begun.
    """
    from .. import environment, streams
    from ..errors import XrunError
    from ..files import refusal

    streams.polite()
    environment.name_the_user()
    try:
        cli(prog_name="xrun", color=True)  # click takes nothing away: what it is given is text
    except XrunError as error:
        _refuse(error)
    except OSError as error:
        _refuse(refusal(error, "The current folder"))


def _refuse(error: XrunError) -> NoReturn:
    click.echo(f"{'' if error.exit_code == 2 else 'xrun: '}{error}", err=True)
    sys.exit(error.exit_code)
