"""The commands about what a run has left: reproduce, verify."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import LaunchError
from ..files import json_text
from . import options
from .sharing import says_yes

if TYPE_CHECKING:
    from ..launcher.laid_out import Copy
    from ..launcher.reproduce import Verdict

_address = click.argument("address", type=options.RunType(), metavar="ADDRESS|MODEL_PAGE|FOLDER")


@click.command()
@_address
@click.option("--to", type=click.IntRange(1), metavar="STEP", help="Stop after this step.")
@click.option("--here", is_flag=True, help="Use the versions installed here.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The folder of the second run. Default: a temporary one.",
)
@click.option("--yes", is_flag=True, help="Do not ask before somebody's code is run.")
@options.as_json
def reproduce(
    address: str, to: int | None, here: bool, folder: Path | None, yes: bool, as_json: bool
) -> None:
    """Train a run again from what it has left behind, with the versions that it was made with, and
    compare the samples and the loss of each step bit for bit.

    The original is not touched. Exit code 1 if anything differs.
    """
    from ..launcher import reproduce as again
    from ..launcher.laid_out import laid_out
    from ..launcher.original import original
    from ..run.folder import project_here

    meant = original(address)
    place = (folder or Path(tempfile.mkdtemp(prefix="xrun-reproduce-"))).absolute()
    copy = laid_out(meant, place, project_here())
    _tell(copy)
    if not (yes or says_yes("Run it?")):
        what = f"Nothing of {meant.facts.run} was run: you have not agreed to it."
        raise LaunchError(what, f"Read {place}, and agree with --yes.")
    say = lambda text: click.echo(text, err=True)  # noqa: E731
    verdict = again.reproduce(copy, say, to=to, here=here)
    click.echo(json_text(verdict.to_json(), indent=1) if as_json else _text(verdict))
    sys.exit(0 if verdict.differs is None else 1)


def _tell(copy: Copy) -> None:
    """What would be run, before it is."""
    original = copy.original
    click.echo(f"  run      {original.facts.run}, {original.where}", err=True)
    click.echo(f"  code     {copy.code or 'what xrun ships'}", err=True)
    if copy.other:
        click.echo(f"           {copy.other}", err=True)
    for place in copy.files:
        click.echo(f"           {copy.folder / place}", err=True)
    for name, commit in original.lock.hub.items():
        click.echo(f"  fetches  {name} at {commit[:12]}", err=True)
    click.echo(f"  recipe   {copy.recipe}", err=True)


def _text(verdict: Verdict) -> str:
    if verdict.differs is None:
        told = f"same bits up to step {verdict.step} ({verdict.compared} logged steps compared)."
        return f"{verdict.run}: {told}\nThe second run is in {verdict.folder}"
    lines = [
        f"{verdict.run}: step {verdict.differs} differs; same bits up to step {verdict.step}.",
        *(f"  {each}" for each in verdict.what[:4]),
        "Different here:" if verdict.because else "All versions that are known are the same here.",
        *(f"  {each}" for each in verdict.because),
        f"The second run is in {verdict.folder}",
    ]
    return "\n".join(lines)


@click.command()
@_address
@options.as_json
def verify(address: str, as_json: bool) -> None:
    """Check the hashes of a model and of a run's committed checkpoints; nothing is run.

    Exit code 5 if a file is not as it was committed.
    """
    from ..errors import CheckpointCorrupt
    from ..launcher.verify import verify as check

    found = check(address)
    if as_json:
        click.echo(json_text(found.to_json(), indent=1))
    elif not found.wrong:
        count, how = len(found.checked), "exported" if found.no_state else "committed"
        files = "1 file is as it was" if count == 1 else f"{count} files are as they were"
        click.echo(f"{found.where}: {files} {how}.")
    if found.no_state and not as_json:
        click.echo(f"  note     only the model was checked: {found.no_state}", err=True)
    if found.no_model and not as_json:
        again = f"`xrun export-model {shlex.quote(address)}` makes it again"
        told = f"the checkpoints were checked alone ({found.no_model}); {again}"
        click.echo(f"  note     {told}", err=True)
    for each in () if as_json else found.wrong:
        click.echo(each, err=True)
    sys.exit(CheckpointCorrupt.exit_code if found.wrong else 0)


COMMANDS = (reproduce, verify)
