"""The command that makes pages for a browser: page. `xrun report --html` makes one of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .overview import found_at, none_text

if TYPE_CHECKING:
    from ..launcher.sky.status import RunStatus
    from ..pages.contents import Shown
    from ..pages.sheet import Sheet

_LOCAL_SECONDS, _FAR_SECONDS = 2.0, 30.0
"""Between two looks at what is here, and at what is far away."""


@click.command()
@click.argument("where", metavar="[FOLDER|ADDRESS]", default="")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=Path("runs.html"),
    show_default=True,
    metavar="FILE",
    help="Write the page to FILE; `-`: standard output.",
)
@click.option("--serve", is_flag=True, help="Serve the page to this machine, and keep it current.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="With --serve: the port. Default: a free one.",
)
def page(where: str, output: Path, serve: bool, port: int) -> None:
    """Show runs as one page for a browser: curves over steps, time and dollars, attempts, receipts,
    recipes, logs, sweeps. WHERE is a folder of runs, `s3://bucket/prefix`, `hub://me`, or the
    address of a single run or of a sweep. Default: all runs of this project.

    The file needs no network and no other file: send it to whoever may see the runs. --serve shows
    the same at an address of this machine alone, until Ctrl-C.
    """
    from ..errors import LaunchError

    found = found_at(where, metrics=True)
    if serve:
        _serve(where, found, port)
    elif found:
        write(_shown(where, found), output)
    else:
        raise LaunchError(none_text(where), "`xrun RECIPE` makes one.")


def write(shown: Shown, output: Path) -> None:
    """Make the file, and say what is in it. Raises StoreError where it cannot be written."""
    from ..files import write_named
    from ..pages.page import page_of

    made = page_of(shown, follow=lambda all_: _followed(all_, len(shown.reports)))
    if output == Path("-"):
        sys.stdout.buffer.write(made.html)
    else:
        write_named(output, made.html)
    runs = f"{len(shown.reports)} run{'' if len(shown.reports) == 1 else 's'}"
    size = len(made.html) / 1e6
    told = f"{runs}, {size:.1f} MB: {'standard output' if output == Path('-') else output}"
    click.echo(told, err=output == Path("-"))
    if made.shown < made.logged:
        thinned = (
            f"The page has {made.shown:,} of {made.logged:,} points: of each stretch the least"
        )
        click.echo(f"{thinned} and the greatest. `xrun export RUN --csv` has all.", err=True)


def report_page(status: RunStatus, output: Path) -> None:
    """The page of one run."""
    from ..pages.contents import Shown

    report = replace(status.report, status=status.status)
    write(Shown(report.run, [report]), output)


def _shown(where: str, found: list[RunStatus]) -> Shown:
    """These runs in their order, with the sweeps there. Raises XrunError."""
    from ..pages.contents import Shown
    from ..run.folder import project_here
    from ..run.listing import boards_at, sweeps_of
    from ..sweep.told import ToldSweep, sweep_at

    reports = [replace(each.report, status=each.status) for each in found]
    if (at := sweep_at(where)) is not None:
        return Shown(at[0].id, reports, [at[0]], sweeps_of(reports), opens=at[0].id)
    sweeps = [told for head in boards_at(where) if (told := ToldSweep.of(head)) is not None]
    title = f"Runs at {where}" if where else f"Runs of {project_here().name}"
    return Shown(title, reports, sweeps, sweeps_of(reports) if sweeps else {})


def _serve(where: str, found: list[RunStatus], port: int) -> None:
    """Until somebody ends it."""
    from ..pages.live import Live, address_of, serve

    far = "://" in where or any(each.cloud for each in found)
    live = Live(
        lambda: _shown(where, found_at(where, metrics=True)),
        _FAR_SECONDS if far else _LOCAL_SECONDS,
    )
    server = serve(live, port)
    click.echo(address_of(server))
    click.echo("This machine alone can reach it, with that whole address. Ctrl-C ends it.")
    sys.stdout.flush()
    server.serve_forever()


def _followed(sheets: Iterable[Sheet], count: int) -> Iterator[Sheet]:
    """With a bar on a terminal, where it takes a while."""
    from tqdm import tqdm

    from ..terminal import bare

    stream: Any = bare(sys.stderr)
    yield from tqdm(
        sheets,
        "reading runs",
        total=count,
        unit=" runs",
        delay=2,
        leave=False,
        file=stream,
        disable=not stream.isatty(),
    )


COMMANDS = (page,)
