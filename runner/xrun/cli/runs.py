"""The commands about a run: report, receipt, evaluate, logs, cancel, sync, export-model."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..bar import bar
from ..files import json_text
from . import completion, options
from .sharing import fetched
from .sweeps import one_run

if TYPE_CHECKING:
    from ..launcher.sky.status import RunStatus
    from ..run.folder import RunFolder


@click.command()
@options.address
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="As a page for a browser, with curves, receipt, recipe and logs; `-`: standard output.",
)
@options.as_json
def report(address: str, html: Path | None, as_json: bool) -> None:
    """What happened to a run: attempts, what was lost, metrics, weights. ADDRESS: hub://owner/name,
    s3://bucket/prefix/RUN, a folder, or the URL of the model page."""
    from .pages import report_page
    from .texts import report_text

    if html is not None and as_json:
        raise click.UsageError("Use --html or --json, not both.")
    found = one(address)
    if html is not None:
        report_page(found, html)
    elif as_json:
        click.echo(json_text(found.to_json(), indent=1))
    else:
        click.echo(report_text(replace(found.report, status=found.status)))


def one(address: str) -> RunStatus:
    """What is known of a run of this project, or at an address."""
    from ..launcher.sky.status import RunStatus, with_jobs
    from ..run.folder import find_run
    from ..run.opened import is_run_id, open_run

    if not is_run_id(address):
        with bar(f"Asking {address}"):
            return RunStatus(open_run(address).report(time.time()))
    folder = find_run(address)
    (found,) = with_jobs([folder], [folder.report()])
    if found.cloud and found.cloud.problem:
        what = "The job's state, and what it costs until its next sign of life, are not known"
        click.echo(f"  note     {what}: {found.cloud.problem}", err=True)
    return found


@click.command()
@options.address
@click.option("--csv", "as_csv", is_flag=True, help="A row for each attempt, for spreadsheets.")
@options.as_json
def receipt(address: str, as_csv: bool, as_json: bool) -> None:
    """What a run has cost: dollars of each attempt (place, price and its date, hours), setup,
    waiting, what was lost, and what the same would have cost on demand.

    ADDRESS: hub://owner/name, s3://bucket/prefix/RUN, a folder, or the URL of the model page.
    """
    from .texts import receipt_text

    if as_csv and as_json:
        raise click.UsageError("Use --csv or --json, not both.")
    found = one(address).report.receipt
    if as_json:
        click.echo(json_text(found.to_json(), indent=1))
    elif as_csv:
        click.echo(found.csv().decode().replace("\r\n", "\n"), nl=False)
    else:
        click.echo(receipt_text(found))


@click.command()
@options.address
@click.option(
    "--attempt", type=int, help="The number of the attempt, from 1. Default: the last one."
)
@click.option("--rank", type=int, default=0, show_default=True, help="The training process.")
@click.option("-f", "--follow", is_flag=True, help="Follow until the run or its job ends.")
def logs(address: str, attempt: int | None, rank: int, follow: bool) -> None:
    """Print what a run's training processes have printed: on clouds those of the newest attempt, at
    an address what is kept with the state."""
    from ..launcher.record import read_launch
    from ..run.opened import located, open_run

    folder = located(address)[1]
    if folder is None or not folder.plan_file.exists():
        if follow:
            raise click.UsageError("--follow is for a run that was launched from this machine.")
        click.echo(open_run(address).log_text(attempt, rank), nl=False)
        return
    launch = read_launch(folder)
    if launch is None and follow and attempt is None:
        _follow(folder, rank)
        return
    if launch is None or launch.job is None or attempt is not None:
        click.echo(folder.log_text(attempt, rank), nl=False)
        return
    from ..launcher.sky.jobs import print_log

    print_log(launch.job, follow=follow)


def _follow(folder: RunFolder, rank: int) -> None:
    """What a run on this machine prints, until it has ended."""
    from ..run.following import follow

    printed = False
    for text in follow(folder, rank):
        printed = True
        click.echo(text, nl=False)
        sys.stdout.flush()
    if not printed:  # there may be something in its store
        click.echo(folder.log_text(None, rank), nl=False)


@click.command()
@options.address
@click.option(
    "--save", is_flag=True, help="First give the run some minutes to save and stop by itself."
)
def cancel(address: str, save: bool) -> None:
    """End a run: cancel its job on a cloud and give the machines back. The checkpoints stay, and
    the same recipe goes on from them.

    If this account's SkyPilot has no job of the run, the running attempt is asked through the
    store to save and to stop.
    """
    from ..launcher.cancel import cancel as cancel_run

    cancel_run(address, save=save, say=click.echo)


@click.command()
@options.address
def sync(address: str) -> None:
    """Send the metrics of a run on this machine to Weights & Biases, as far as they are missing
    there, and write TensorBoard's files anew, whichever of the two the recipe names.

    Doing it twice changes nothing."""
    from ..libraries import WANDB, require
    from ..run.folder import find_run
    from ..run.opened import is_run_id
    from ..tracker.wandb.processes import send_all

    folder = find_run(address) if is_run_id(address) else _on_this_machine(address)
    plan = folder.plan()
    if plan.tensorboard is not None:
        _write_events(folder, plan.tensorboard)
    if plan.tensorboard is None or plan.wandb is not None:
        require(WANDB)
        folder.check_newest()
        sys.exit(send_all(folder.path))


def _on_this_machine(address: str) -> RunFolder:
    """The folder of the run at an address. Raises LaunchError."""
    from ..errors import LaunchError
    from ..run.opened import open_run

    opened = open_run(address)
    if opened.beside is None or not opened.beside.plan_file.exists():
        raise LaunchError(
            f"This machine has no metrics of {opened.run} to send; those at {opened.address} were"
            " sent by the machines that trained it.",
            f"Nothing was sent. `xrun resume {address}` makes the run's folder here and sends what"
            " is missing.",
        )
    return opened.beside


@click.command(name="export-model")
@options.run_id
@click.option("--best", "which", flag_value="best", help="The best evaluated weights.")
@click.option("--last", "which", flag_value="last", help="The last weights.")
def export_model(run_id: str, which: str | None) -> None:
    """Make the model of a finished RUN (its id, or its folder) again from its last commit, because
    the export failed or the model's folder is gone. If the run's store publishes models, this one
    is published too.

    Without --best or --last: the weights that `train.export` of the recipe names.
    """
    from ..launcher.clone import bring_back
    from ..launcher.export import export_model as export
    from ..libraries import TRAINING, require
    from ..run.folder import RunFolder, find_run
    from ..run.opened import is_run_id

    folder = find_run(run_id) if is_run_id(run_id) else RunFolder(Path(run_id).absolute())
    folder.plan()
    require(TRAINING)
    bring_back(folder.plan(), click.echo)
    if code := export(folder, which or ""):
        sys.exit(code)
    step = (finished := folder.record().finished) and finished.exported_step
    click.echo(f"Exported step {step} of {folder.run} to {folder.model}")


def _write_events(folder: RunFolder, where: Path) -> None:
    """The whole run's points, wherever it is trained, as TensorBoard reads them."""
    from ..files import refusal
    from ..libraries import TENSORBOARD, require
    from ..tracker.tensorboard.events import write_all

    require(TENSORBOARD)
    if folder.owner_pid():
        click.echo(f"{folder.run} is being trained here now, and TensorBoard's files grow with it.")
        return
    try:
        write_all(where, folder.newest_points())
    except OSError as error:
        raise refusal(error, str(where)) from error
    click.echo(f"TensorBoard: tensorboard --logdir {where}")


@click.command()
@click.argument("target", metavar="RUN|RECIPE|URL|MODEL", shell_complete=completion.runs)
@options.overrides
@click.option(
    "--split", default="test", show_default=True, help="A split that the dataset's build() returns."
)
@click.option(
    "--step",
    type=options.Step(),
    metavar="N|best",
    help="The step of a kept checkpoint. Default: the newest.",
)
@options.trial
@options.as_json
def evaluate(
    target: str,
    overrides: Sequence[str],
    split: str,
    step: int | str | None,
    trial: int | None,
    as_json: bool,
) -> None:
    """Evaluate a run or an exported model on a split of its dataset.

    Name the run by RUN, by its RECIPE or by the URL of that (`-s` as for the run); MODEL is the
    folder `runs/RUN/model`. On `val` the numbers are those of training. The run is not changed,
    and may train meanwhile.
    """
    from dataclasses import asdict

    from ..launcher.clone import bring_back
    from ..launcher.measure import Measured, is_of_other_code, measure, of_recipe, target_of
    from ..recipe.git_url import RecipeURL, is_url
    from .texts import measured_text

    if is_url(target) or target.endswith((".yaml", ".yml")):
        recipe = RecipeURL.parse(target) if is_url(target) else Path(target)
        source = fetched(recipe, goes_on=overrides)
        meant = of_recipe(source.path, one_run(source, overrides, trial), source.origin)
    else:
        meant = target_of(target, overrides)
    if meant.of_model and step is not None:
        raise click.UsageError("--step is for a run: an exported model is of one step only.")
    bring_back(meant.folder.plan(), functools.partial(click.echo, err=True))
    if is_of_other_code(meant.folder.plan()):
        note = "the project's code has changed since: today's code evaluates the run's weights."
        click.echo(f"  note     {note}", err=True)
    found = measure(meant, split, step)
    if not isinstance(found, Measured):
        sys.exit(found)
    click.echo(json_text(asdict(found), indent=1) if as_json else measured_text(found))


COMMANDS = (report, receipt, evaluate, cancel, logs, sync, export_model)
