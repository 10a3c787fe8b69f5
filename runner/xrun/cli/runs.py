"""The commands about runs: status, report, logs, cancel, sync,
export-model."""

from __future__ import annotations

import sys

import click

from ..files import json_text
from . import options


@click.command()
@options.as_json
def status(as_json: bool) -> None:
    """One line per run of this project."""
    from ..launcher.sky.status import with_jobs
    from ..run.folder import home_here, runs_in
    from .texts import status_line

    home = home_here()
    folders = runs_in(home)
    found = with_jobs(folders, [folder.describe() for folder in folders])
    if as_json:
        click.echo(json_text([each.to_json() for each in found], indent=1))
        return
    if not found:
        click.echo(f"No runs in {home}.")
    for each in found:
        click.echo(status_line(each))


@click.command()
@options.run_id
@options.as_json
def report(run_id: str, as_json: bool) -> None:
    """What happened to RUN: attempts, what was lost, metrics, weights."""
    from ..run.folder import find_run
    from .texts import report_text

    found = find_run(run_id).report()
    click.echo(json_text(found.to_json(), indent=1) if as_json else report_text(found))


@click.command()
@options.run_id
@click.option(
    "--attempt", type=int, help="The number of the attempt, from 1. Default: the last one."
)
@click.option("--rank", type=int, default=0, show_default=True, help="Which training process.")
@click.option("-f", "--follow", is_flag=True, help="On clouds: go on until the job has ended.")
def logs(run_id: str, attempt: int | None, rank: int, follow: bool) -> None:
    """What RUN's training processes have printed; on clouds what its newest attempt has."""
    from ..launcher.record import read_launch
    from ..run.folder import find_run

    folder = find_run(run_id)
    launch = read_launch(folder)
    if launch is None or launch.job is None or attempt is not None:
        click.echo(folder.log_text(attempt, rank), nl=False)
        return
    from ..launcher.sky.jobs import print_log

    print_log(launch.job, follow=follow)


@click.command()
@options.run_id
@click.option(
    "--save", is_flag=True, help="Let it save and stop by itself first, for some minutes."
)
def cancel(run_id: str, save: bool) -> None:
    """End RUN's job on a cloud and give its machines back. Its checkpoints stay; the same recipe
    goes on from them."""
    from ..launcher.sky.cancel import cancel as cancel_run
    from ..run.folder import find_run

    # It may have been launched from another machine.
    cancel_run(find_run(run_id, known=False), save=save, say=click.echo)


@click.command()
@options.run_id
def sync(run_id: str) -> None:
    """Send what Weights & Biases does not have yet of RUN's metrics; sending twice changes
    nothing."""
    from ..libraries import WANDB, require
    from ..run.folder import find_run
    from ..tracker.wandb.processes import send_all

    folder = find_run(run_id)
    require(WANDB)
    folder.check_newest()
    sys.exit(send_all(folder.path))


@click.command(name="export-model")
@options.run_id
@click.option("--best", "which", flag_value="best", help="The best evaluated weights.")
@click.option("--last", "which", flag_value="last", help="The last weights.")
def export_model(run_id: str, which: str | None) -> None:
    """Make RUN's model again from its last commit, and publish it where its store does that. For a
    run that has finished, whose export has failed or whose folder is gone.

    Without --best or --last: as `train.export` of its recipe says.
    """
    from ..launcher.export import export_model as export
    from ..libraries import TRAINING, require
    from ..run.folder import find_run

    folder = find_run(run_id)
    require(TRAINING)
    if code := export(folder, which or ""):
        sys.exit(code)
    step = (finished := folder.record().finished) and finished.exported_step
    click.echo(f"Exported step {step} of {run_id} to {folder.model}")


COMMANDS = (status, report, cancel, logs, sync, export_model)
