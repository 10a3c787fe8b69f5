"""The commands that look at several runs: status, compare."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..bar import bar
from ..files import json_text
from . import completion, options

if TYPE_CHECKING:
    from ..launcher.sky.status import RunStatus

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


class Age(click.ParamType):
    """A time like `30m`, `12h`, `2d` or `1w`, in seconds."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """What was typed, as seconds."""
        if isinstance(value, float):
            return value
        try:
            seconds = float(value[:-1]) * _SECONDS[value[-1:]]
        except (ValueError, KeyError):
            seconds = -1.0
        if not 0 <= seconds < 1e12:
            self.fail(f"{value!r} is not a time like 30m, 12h, 2d or 1w.", param, ctx)
        return seconds


@click.command()
@click.argument(
    "where",
    type=options.RunType(),
    metavar="[WHERE]",
    default="",
    shell_complete=completion.runs,
)
@click.option("--running", is_flag=True, help="Only runs that are running.")
@click.option("--recipe", metavar="NAME", default="", help="Only runs of the recipe of this name.")
@click.option(
    "--since", type=Age(), metavar="TIME", help="Only runs seen within this time: 12h, 2d."
)
@options.as_json
def status(where: str, running: bool, recipe: str, since: float | None, as_json: bool) -> None:
    """One line per run: of this project, or of WHERE, which is a folder of runs,
    `s3://bucket/prefix`, `hub://me` (an account), a single run's or a sweep's id or address.

    Runs that are running come first, then those seen last; DIFFERS has the keys in which the runs
    of one recipe differ. The last line says what all of them have cost.
    """
    from .tables import room, say_coloured
    from .texts import COLOURS, status_lines, sums_text, why_not_text

    found = found_at(where, metrics=as_json)
    if not found:
        click.echo(none_text(where), err=True)
    kept = [each for each in found if _is_meant(each, running, recipe, since)]
    if as_json:
        click.echo(json_text([each.to_json() for each in kept], indent=1))
        return
    if found and not kept:
        click.echo(f"None of {len(found)} runs fits these options.", err=True)
    words = ["", *(each.status for each in kept)]
    for word, line in zip(words, status_lines(kept, time.time(), room()), strict=False):
        say_coloured(line, word, COLOURS.get(word, ""))
    for text in why_not_text(kept):
        click.echo(text)
    if not all(each.report.error for each in kept):
        click.echo(sums_text(kept))


def _is_meant(each: RunStatus, running: bool, recipe: str, since: float | None) -> bool:
    """Whether a run is one that was asked for. One that cannot be read may be of any age, and one
    out of reach may run, so both are shown."""
    report = each.report
    name = str((report.recipe or {}).get("name", report.run.rpartition("-")[0]))
    recent = since is None or report.error or report.last_seen >= time.time() - since
    alive = not running or each.runs or report.status == "unreachable"
    return bool(alive and recent) and recipe in ("", name)


def found_at(where: str, *, metrics: bool) -> list[RunStatus]:
    """The runs at a place, those that run first, then by their newest sign of life. "" is the
    project that the person stands in: its jobs are asked for, and without `metrics` it is what is
    quickly known. A sweep is its trials. Raises XrunError."""
    from ..launcher.sky.status import RunStatus, with_jobs
    from ..run.folder import home_here, runs_in
    from ..run.listing import list_runs, of_folders, sweeps_of
    from ..sweep.told import sweep_at

    if (at := sweep_at(where)) is not None:
        sweep, place = at
        among = found_at(place, metrics=metrics)
        reports = [each.report for each in among]
        own = {row.run for row in sweep.rows(reports, sweeps_of(reports))}
        return [each for each in among if each.report.run in own]
    if where:
        with bar(f"Asking {where}"):
            found = [RunStatus(each) for each in list_runs(where)]
    else:
        folders = runs_in(home_here())
        found = with_jobs(folders, of_folders(folders, metrics=metrics))
    return sorted(found, key=lambda each: (not each.runs, -each.report.last_seen, each.report.run))


def none_text(where: str) -> str:
    """That there are none."""
    from ..run.folder import home_here

    return f"No runs at {where}." if where else f"No runs in {home_here()}."


@click.command()
@click.argument(
    "addresses",
    type=options.RunType(),
    metavar="RUN|ADDRESS...",
    nargs=-1,
    required=True,
    shell_complete=completion.runs,
)
@options.as_json
def compare(addresses: tuple[str, ...], as_json: bool) -> None:
    """Compare runs: where their recipes and the files of their components differ, and their
    results."""
    from ..run import compared
    from .runs import one
    from .tables import room
    from .texts import compare_lines

    if len(set(addresses)) < 2:
        raise click.UsageError("Name at least two runs.")
    found = [one(address) for address in addresses]
    reports = [replace(each.report, status=each.status) for each in found]
    recipe = compared.of_recipes([report.recipe for report in reports])
    files, result = compared.of_sources(reports), compared.of_results(reports)
    names = [report.run for report in reports]
    if as_json:
        told = {"runs": names, "recipe": recipe, "files": files, "result": result}
        click.echo(json_text(told, indent=1))
        return
    for line in compare_lines(names, recipe, {**files, **result}, room()):
        click.echo(line)


COMMANDS = (status, compare)
