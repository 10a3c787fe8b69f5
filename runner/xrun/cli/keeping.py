"""The commands about what is kept of runs: export, rm."""

from __future__ import annotations

from pathlib import Path

import click

from ..bar import bar
from . import completion, options
from .sharing import need_yes

meant = click.argument(
    "target", type=options.RunType(), metavar="RUN|ADDRESS", shell_complete=completion.runs
)


@click.command()
@meant
@click.option("--csv", "kind", flag_value="csv", help="As comma-separated values (the default).")
@click.option("--parquet", "kind", flag_value="parquet", help="As Parquet (for FILE.parquet too).")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
def export(target: str, kind: str | None, file: Path | None) -> None:
    """Write the metrics of RUN as a table, a row for each step, to FILE (`-`: standard output) or
    RUN.csv here."""
    from ..run.folder import find_run
    from ..run.opened import is_run_id, open_run
    from ..run.table import export as write

    kind = kind or ("parquet" if file and file.suffix == ".parquet" else "csv")
    if is_run_id(target):
        said = write(target, find_run(target).newest_points(), kind, file)
    else:
        with bar(f"Fetching the points of {target}"):
            opened = open_run(target)
            points = opened.points()
        said = write(opened.run, points, kind, file)
    click.echo(said, err=file == Path("-"))  # the table itself may go to a pipe


@click.command()
@meant
@click.option("--here", is_flag=True, help="Only this machine's folder; a state elsewhere stays.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(target: str, here: bool, yes: bool) -> None:
    """Delete everything of RUN, here and in its store: checkpoints, logs, metrics, model."""
    from ..launcher.removal import removal, remove

    what = removal(target, only_here=here)
    for line in what.lines():
        click.echo(line)
    if what.folder is None and what.place is None:
        click.echo(f"Nothing of {what.run} can be deleted from here.")
        return
    if not yes:
        asked = f"Delete what is here of {what.run}?" if here else f"Delete {what.run} for good?"
        need_yes(asked, f"Nothing of {what.run} was deleted")
    remove(what)
    again = f" `xrun resume {what.stays}` goes on with it." if here else ""
    click.echo(f"Deleted {what.run}{' here' * here}: {what.freed} are free.{again}")


COMMANDS = (export, rm)
