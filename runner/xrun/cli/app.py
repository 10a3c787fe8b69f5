"""The command line: parses and prints, no logic.

`xrun RECIPE` is `xrun run RECIPE`; the other commands are named. Everything that a command needs is
imported by it, so that `xrun --help` and `xrun check` answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..recipe.schema import Recipe
    from ..run.plan import Plan


class _Group(click.Group):
    """A recipe's path in place of a command means `run`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        looks_like_recipe = args[0].endswith((".yaml", ".yml")) or Path(args[0]).is_file()
        if looks_like_recipe and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xrun")
def cli() -> None:
    """Train from one YAML recipe, survive every kill, end with the same weights.

    \b
    xrun recipes/digits.yaml          train; the same command again goes on
    xrun check recipes/*.yaml         all problems at file:line:column
    xrun drill recipes/digits.yaml    prove that kills change nothing
    """


_overrides = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@cli.command(short_help="Train a recipe (also: xrun RECIPE).")
@click.argument("recipe", type=click.Path(path_type=Path))
@_overrides
@click.option("--local", is_flag=True, help="On this machine, whatever the recipe's hardware says.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--run",
    "run_id",
    metavar="ID",
    default="",
    help="The run to start or go on with. Default: follows from the recipe.",
)
@click.option(
    "--processes", type=click.IntRange(1), help="Training processes. Default: the recipe's."
)
@click.option("--new", is_flag=True, help="A new run, even if the recipe has runs already.")
@click.option(
    "--fork", metavar="RUN", default="", help="A new run that starts from RUN's newest checkpoint."
)
@click.option("--detach", is_flag=True, help="On clouds: do not follow the log.")
def run(
    recipe: Path,
    overrides: Sequence[str],
    local: bool,
    yes: bool,
    run_id: str,
    processes: int | None,
    new: bool,
    fork: str,
    detach: bool,
) -> None:
    """Train RECIPE. The same command again goes on where it stopped; a finished run does nothing.

    Ctrl-C saves and stops; a second Ctrl-C while it saves is not needed. On clouds it only ends the
    log.
    """
    from ..launcher.job import choose_run, launch
    from ..launcher.local import LocalCloud

    plan = _plan(recipe, overrides, run_id, fork, processes, local)
    plan = _placed(
        choose_run(plan, given=bool(run_id), new=new, fork=fork), chosen=new or bool(fork)
    )
    if plan.recipe["hardware"]["any_of"]:
        sys.exit(_launch_on_clouds(plan, yes, detach))
    click.echo(
        f"Run {plan.run}: {plan.processes} process{'es' if plan.processes > 1 else ''} on this"
        f" machine, in {plan.folder}"
    )
    code = launch(plan, LocalCloud())
    _say_outcome(plan, code, _command(recipe, overrides, local, plan))
    sys.exit(code)


@cli.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@_overrides
@_as_json
@click.option(
    "--online",
    is_flag=True,
    help="Ask the Hub and Weights & Biases too: accounts, permissions, names, revisions.",
)
def check(recipes: Sequence[Path], overrides: Sequence[str], as_json: bool, online: bool) -> None:
    """Check recipes: every problem at once, as file:line:column. Exit code 2 if there is one, 3 for
    an account's."""
    from ..errors import LaunchError, RecipeError
    from ..recipe.load import load_recipe

    problems: list[Any] = []
    account: list[Any] = []
    for path in recipes:
        try:
            recipe = load_recipe(path, overrides)
            account += _online_problems(recipe, path) if online else []
            if not as_json and not any(problem.path == str(path.resolve()) for problem in account):
                click.echo(f"{path}: {recipe.name} is fine.")
        except RecipeError as error:
            problems += error.problems
    problems += account
    if as_json:
        click.echo(json.dumps([vars(problem) for problem in problems], indent=1))
    else:
        for problem in problems:
            click.echo(str(problem), err=True)
    sys.exit(
        0
        if not problems
        else LaunchError.exit_code
        if len(problems) == len(account)
        else RecipeError.exit_code
    )


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@_overrides
@click.option("--local", is_flag=True, help="On this machine, whatever the recipe's hardware says.")
@click.option("--processes", type=click.IntRange(1))
@_as_json
@click.option(
    "--sky", is_flag=True, help="Print the task for SkyPilot and the command that launches it."
)
def plan(
    recipe: Path,
    overrides: Sequence[str],
    local: bool,
    processes: int | None,
    as_json: bool,
    sky: bool,
) -> None:
    """Print what RECIPE would do, and do nothing: on clouds the machines and their prices, on this
    machine the plan as JSON."""
    made = _plan(recipe, overrides, "", "", processes, local)
    if not made.recipe["hardware"]["any_of"]:
        click.echo(made.to_json(), nl=False)
        return
    from ..launcher.sky.cloud import job_text
    from ..launcher.sky.offers import find_offers
    from ..launcher.throughput import known_throughput
    from .offers import offers_json, offers_text

    offers = find_offers(made, known_throughput(made))
    if sky:
        click.echo(job_text(made, offers))
    else:
        told = {"run": made.run, **offers_json(offers), "plan": json.loads(made.to_json())}
        click.echo(json.dumps(told, indent=1) if as_json else offers_text(offers))


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@_overrides
@click.option(
    "--kills", type=click.IntRange(0), default=20, show_default=True, help="How many real SIGKILLs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the moments.")
@click.option("--resize", is_flag=True, help="Another number of processes after each kill.")
@click.option(
    "--processes", type=click.IntRange(1), help="Training processes of the undisturbed run."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the two runs go. Default: a temporary folder.",
)
@_as_json
def drill(
    recipe: Path,
    overrides: Sequence[str],
    kills: int,
    seed: int,
    resize: bool,
    processes: int | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Train RECIPE twice, once undisturbed and once under real SIGKILLs, and compare every loss and
    the final weights.

    Exit code 1 on any difference.
    """
    from .. import drill as drills

    result = drills.drill(
        recipe,
        overrides,
        kills=kills,
        seed=seed,
        resize=resize,
        processes=processes,
        folder=folder,
        say=lambda text: click.echo(text, err=True),
    )
    click.echo(json.dumps(result.to_json(), indent=1) if as_json else result.text())
    sys.exit(0 if result.equal else 1)


@cli.command()
@_as_json
def status(as_json: bool) -> None:
    """One line per run of this project."""
    from ..launcher.sky.status import with_jobs
    from ..run.folder import describe, runs_in
    from .status import status_line

    folders = runs_in(_home())
    reports = with_jobs(folders, [describe(folder) for folder in folders])
    if as_json:
        click.echo(json.dumps(reports, indent=1))
        return
    if not reports:
        click.echo(f"No runs in {_home()}.")
    for report in reports:
        click.echo(status_line(report))


@cli.command()
@click.argument("run_id", metavar="RUN")
@_as_json
def report(run_id: str, as_json: bool) -> None:
    """What happened to RUN: attempts, what was lost, metrics, weights."""
    from .status import report_text

    facts = _folder(run_id).report()
    click.echo(json.dumps(facts, indent=1) if as_json else report_text(facts))


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--save", is_flag=True, help="Let it save and stop by itself first, for some minutes."
)
def cancel(run_id: str, save: bool) -> None:
    """End RUN's job on a cloud and give its machines back. Its checkpoints stay; the same recipe
    goes on from them."""
    from ..launcher.sky.cancel import cancel as cancel_run
    from ..run.folder import RunFolder
    from ..run.plan import check_run_id

    check_run_id(run_id)
    cancel_run(
        RunFolder(_home() / run_id), save=save, say=click.echo
    )  # it may have been launched from another machine


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--attempt", type=int, help="The number of the attempt, from 1. Default: the last one."
)
@click.option("--rank", type=int, default=0, show_default=True, help="Which training process.")
@click.option("-f", "--follow", is_flag=True, help="On clouds: go on until the job has ended.")
def logs(run_id: str, attempt: int | None, rank: int, follow: bool) -> None:
    """What RUN's training processes have printed; on clouds what its newest attempt has."""
    from ..launcher.record import read_launch

    launch = read_launch(_folder(run_id))
    if launch is None or launch.job is None or attempt is not None:
        click.echo(_folder(run_id).log_text(attempt, rank), nl=False)
        return
    from ..launcher.sky.jobs import print_log

    print_log(launch.job, follow=follow)


@cli.command()
@click.argument("run_id", metavar="RUN")
def sync(run_id: str) -> None:
    """Send what Weights & Biases does not have yet of RUN's metrics; sending twice changes
    nothing."""
    from ..tracker.wandb.processes import send_all

    sys.exit(send_all(_folder(run_id).path))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from ..recipe.docs import schema as recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=1))


@cli.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("recipes/my_first.yaml"))
def init(path: Path) -> None:
    """Write a commented recipe to start from."""
    from ..recipe.template import write_template

    write_template(path)
    click.echo(f"Wrote {path}. Next: xrun check {path}, then xrun {path}")


def main() -> None:
    """The `xrun` command: the one place where an error becomes a line and an exit code."""
    from ..errors import XrunError

    try:
        cli(prog_name="xrun")
    except XrunError as error:
        click.echo(f"{'' if error.exit_code == 2 else 'xrun: '}{error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader has gone, as `| head` does
        sys.exit(0)


def _plan(
    recipe: Path,
    overrides: Sequence[str],
    run_id: str,
    fork: str,
    processes: int | None,
    local: bool,
) -> Plan:
    from ..recipe.load import load_recipe
    from ..run.plan import make_plan

    loaded = load_recipe(recipe, [*overrides, "hardware=local"] if local else overrides)
    return make_plan(
        loaded, recipe, overrides=overrides, run=run_id, fork=fork, processes=processes
    )


def _launch_on_clouds(plan: Plan, yes: bool, detach: bool) -> int:
    from ..launcher.job import launch
    from ..launcher.sky.cloud import SkyCloud
    from .offers import offers_text

    def confirm(offers: Any) -> None:
        click.echo(offers_text(offers))
        if not yes:
            click.confirm("Launch?", abort=True)

    return launch(plan, SkyCloud(confirm=confirm, detach=detach, say=click.echo))


def _placed(plan: Plan, *, chosen: bool) -> Plan:
    """The plan with the addresses that only the Hub can tell, once it is certain that the run may
    write there.

    `chosen`: the person has said that it is a new run.
    """
    from ..launcher.preflight import check_online, refuse

    clouds = bool(plan.recipe["hardware"]["any_of"])
    if not clouds and not plan.store and not plan.recipe["tracking"]["wandb"]:
        return plan
    unknown = not chosen and not (plan.folder / "plan.json").exists()
    online = check_online(plan.load_recipe(), plan, everything=clouds, unknown_here=unknown)
    plan = refuse(online)
    for link in online.links:
        click.echo(f"  see      {link}")
    return plan


def _online_problems(recipe: Recipe, path: Path) -> Sequence[Any]:
    from ..launcher.preflight import check_online
    from ..run.plan import make_plan

    return check_online(recipe, make_plan(recipe, path)).problems


def _say_outcome(plan: Plan, code: int, command: str) -> None:
    from ..run.folder import RunFolder

    folder = RunFolder(plan.folder)
    if code == 0:
        metrics = folder.report()["metrics"]
        told = ", ".join(
            f"{name} {value:.4g}"
            for name, value in sorted(metrics.items())
            if name.startswith("val/")
        )
        click.echo(f"Finished {plan.run}{': ' + told if told else ''}")
        click.echo(
            f"  model    {folder.model}\n  metrics  {folder.metrics}\n  report   xrun report"
            f" {plan.run}"
        )
    elif code == 75:
        click.echo(f"Stopped; the state is safe. Go on with: {command}", err=True)


def _command(recipe: Path, overrides: Sequence[str], local: bool, plan: Plan) -> str:
    """What goes on with this very run, whatever flags it was started with."""
    import shlex

    settings = [part for override in overrides for part in ("-s", override)]
    size = ["--processes", str(plan.processes)] if plan.processes > 1 else []
    return shlex.join(
        ["xrun", str(recipe), *settings, *(["--local"] if local else []), "--run", plan.run, *size]
    )


def _home() -> Path:
    from ..component import project_root
    from ..run.plan import default_home

    return default_home(project_root(Path.cwd() / "recipes" / "any.yaml"))


def _folder(run_id: str) -> Any:
    from ..run.folder import RunFolder
    from ..run.plan import check_run_id

    check_run_id(run_id)
    folder = RunFolder(_home() / run_id)
    folder.plan()
    return folder
