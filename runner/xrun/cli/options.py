"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

recipe = click.argument("recipe", type=click.Path(path_type=Path))
run_id = click.argument("run_id", metavar="RUN")
overrides = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe.",
)
local = click.option(
    "--local", is_flag=True, help="On this machine, whatever the recipe's hardware says."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
