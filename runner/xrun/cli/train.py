"""The commands that train a recipe, or say what training it would be: run, resume, plan,
rehearse, drill."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..bar import bar
from ..files import json_text
from . import options
from .options import Launching
from .sharing import Source, agreed, fetched, need_yes
from .sweeps import Wish, given_with, one_run, refuse_trial, run_all, run_one

if TYPE_CHECKING:
    from ..launcher.sky.launch import Costing, Launch
    from ..launcher.sky.pool import Pool
    from ..recipe.git_url import RecipeURL
    from ..run.plan import Plan


@click.command(short_help="Train a recipe (also: xrun RECIPE).")
@options.recipe
@options.overrides
@options.local
@options.agree
@click.option(
    "--run",
    "run_id",
    metavar="ID",
    default="",
    help="The run to start or go on with. Default: follows from the recipe. Nearly the id of a run"
    " here is refused; --new says that it is meant.",
)
@click.option(
    "--processes", type=click.IntRange(1), help="Training processes. Default: as the recipe says."
)
@click.option(
    "--new",
    is_flag=True,
    help="Start a new run although the recipe has others here; typed again, go on with it.",
)
@click.option("--again", is_flag=True, help="Start another run although this very recipe has one.")
@click.option(
    "--fork", metavar="RUN", default="", help="Start a new run from RUN's newest checkpoint."
)
@click.option(
    "--other-data",
    is_flag=True,
    help="Go on although the dataset has changed; the run is marked as not exact.",
)
@click.option("--detach", is_flag=True, help="On clouds: do not follow the log.")
@click.option(
    "--no-rehearsal", is_flag=True, help="On clouds: launch without having rehearsed it here."
)
@options.any_memory
@options.trial
def run(
    recipe: Path | RecipeURL,
    overrides: Sequence[str],
    local: bool,
    yes: bool,
    run_id: str,
    processes: int | None,
    new: bool,
    again: bool,
    fork: str,
    other_data: bool,
    detach: bool,
    no_rehearsal: bool,
    any_memory: bool,
    trial: int | None,
) -> None:
    """Train RECIPE. The same command again goes on where it stopped; for a finished run it does
    nothing. A recipe with a `sweep` trains all its trials, or one with --trial.

    Ctrl-C saves and stops: press it once. On clouds it only ends the log.
    """
    from .. import streams
    from ..launcher.job import choose_run, forked_from, left_behind
    from ..libraries import require
    from ..recipe.needs import needs
    from .texts import left_text

    streams.patient()
    launching = Launching(yes, detach, not no_rehearsal, any_memory)
    source = fetched(recipe, goes_on=None if again or fork else overrides, yes=yes)
    made = replace(_plan(source, overrides, run_id, fork, processes, local), other_data=other_data)
    if made.recipe["sweep"] is not None:
        flags = {"--run": run_id, "--new": new, "--again": again, "--fork": fork}
        flags |= {"--detach": detach, "--other-data": other_data}
        if other := [flag for flag, given in flags.items() if given]:
            raise click.UsageError(f"{other[0]} is for one run, and this recipe has a sweep.")
        wish = Wish(source, overrides, local, processes, launching)
        sys.exit(run_all(wish) if trial is None else run_one(wish, trial))
    refuse_trial(source, trial)
    require(*needs(made.load_recipe()))
    meant = choose_run(made, given=bool(run_id), new=new, again=again, fork=fork)
    agreed(source, meant, yes=yes)
    if before := forked_from(meant):
        told = f"{meant.run} was a fork of {before}; now it begins at step 0"
        click.echo(f"  note     {told}", err=True)
    command = functools.partial(_command, source, overrides, local)
    if again and (left := left_behind(made)) is not None:
        click.echo(f"  note     {left_text(left, command(left))}", err=True)
    _go(meant, command, launching, chosen=again or bool(fork), another=again)


@click.command()
@options.address
@options.overrides
@options.local
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--processes", type=click.IntRange(1), help="Training processes. Default: the recipe's."
)
@click.option("--detach", is_flag=True, help="On clouds: do not follow the log.")
@click.option(
    "--no-rehearsal", is_flag=True, help="On clouds: launch without having rehearsed it here."
)
@options.any_memory
def resume(
    address: str,
    overrides: Sequence[str],
    local: bool,
    yes: bool,
    processes: int | None,
    detach: bool,
    no_rehearsal: bool,
    any_memory: bool,
) -> None:
    """Go on with a run by its id or address, from this project's checkout. The recipe comes from
    the run's record, and is written to recipes/RUN.yaml.

    `-s` may change where and for how long the run trains; `-s checkpoint.team=OWNER` names the team
    that the run belongs to.
    """
    from .. import streams
    from ..launcher.resume import plan_to_resume
    from ..libraries import require
    from ..recipe.needs import needs
    from ..run.opened import open_run

    streams.patient()
    given = given_with(overrides, local)
    with bar(f"Asking {address}"):
        opened = open_run(address)
    meant = plan_to_resume(opened, given, processes)
    require(*needs(meant.load_recipe()))
    source = Source(Path(meant.recipe_path), meant.recipe_path)
    command = functools.partial(_command, source, overrides, local)
    launching = Launching(yes, detach, not no_rehearsal, any_memory)
    _go(meant, command, launching, chosen=False)


def _go(
    meant: Plan,
    command: Callable[[Plan], str],
    launching: Launching,
    *,
    chosen: bool,
    another: bool = False,
) -> None:
    """Launch the run that is meant, and end with its exit code; `command` goes on with it."""
    from ..launcher.job import launch
    from ..launcher.local import LocalCloud
    from ..launcher.preflight import place
    from ..recipe.notes import absent_files
    from ..run.folder import RunFolder
    from .texts import outcome_text, start_text

    online = place(meant, chosen=chosen, another=another)
    for link in online.links:
        click.echo(f"  see      {link}")
    for warning in online.warnings:
        click.echo(f"  {warning}", err=True)
    if online.plan.on_clouds:
        sys.exit(launch_on_clouds(online.plan, launching))
    for note in absent_files(online.plan.load_recipe(), Path(online.plan.project)):
        click.echo(f"  note     {note}", err=True)
    click.echo(start_text(online.plan))
    cloud = LocalCloud()
    with cloud.signals():
        code = launch(online.plan, cloud)
        if text := outcome_text(RunFolder(online.plan.folder), code, command(online.plan)):
            click.echo(text, err=code != 0)
    sys.exit(code)


def launch_on_clouds(plan: Plan, how: Launching, pool: Pool | None = None) -> int:
    """Launch a plan whose addresses are known, once somebody has agreed; its exit code."""
    from ..launcher.job import launch
    from ..launcher.sky.cloud import SkyCloud

    _interruptible()  # it ends the log, or the rehearsal, only
    ask = functools.partial(confirm, yes=how.yes, rehearsed=how.rehearsed)
    cloud = SkyCloud(
        confirm=ask, detach=how.detach, say=click.echo, any_memory=how.any_memory, pool=pool
    )
    return launch(plan, cloud)


def confirm(about: Launch, *, yes: bool, rehearsed: bool) -> None:
    """What comes before anything is paid for: the rehearsal of this very launch, its price, and the
    question."""
    from .offers import offers_text

    if rehearsed:
        _rehearse_before(about)
    click.echo(offers_text(about.offers, about.plan.load_recipe()))
    if not yes:
        need_yes("Launch?", "Nothing was launched")


def _rehearse_before(launch: Launch) -> None:
    """Rehearse what is about to be launched; what fails ends it."""
    from ..errors import RehearsalFailed
    from ..launcher.rehearsal.rehearse import rehearse

    if sys.platform != "linux":
        click.echo("  not rehearsed: that needs Linux")
        return
    try:
        rehearse(launch.plan, launch.cargo, click.echo)
    except RehearsalFailed as error:
        error.hint = f"{error.hint} Nothing was launched; --no-rehearsal launches it all the same."
        raise


def _interruptible() -> None:
    """Ctrl-C, and a request to end, are exceptions from now on: what was started ends as well."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


@click.command(short_help="Train RECIPE in miniature here, before money is spent.")
@options.recipe
@options.overrides
@click.option("--again", is_flag=True, help="Even if it went well before and nothing changed.")
@options.trial
@options.agree
def rehearse(
    recipe: Path | RecipeURL, overrides: Sequence[str], again: bool, trial: int | None, yes: bool
) -> None:
    """Train RECIPE in miniature on this machine's processors: the files that would travel, with the
    libraries that would be installed.

    Build, one step, one evaluation, one save, a restore in a new process, one more step, the
    export, and loading it again. The exit code is the one that the run would have ended with.
    """
    from .. import streams
    from ..launcher.bundle import pack
    from ..launcher.project import refuse_what_stays
    from ..launcher.rehearsal import rehearse as rehearsal
    from ..launcher.requirements import lock

    streams.patient()
    _interruptible()
    source = fetched(recipe, yes=yes)
    overrides = one_run(source, overrides, trial)
    unlocked = _plan(source, overrides, "", "", None, local=False)
    agreed(source, unlocked, yes=yes)
    made = lock(unlocked)
    if made.on_clouds:
        refuse_what_stays(made)
    rehearsal.rehearse(made, pack(made, []), click.echo, again=again)


@click.command()
@options.recipe
@options.overrides
@options.local
@click.option("--processes", type=click.IntRange(1))
@options.trial
@options.as_json
@click.option(
    "--sky", is_flag=True, help="Print the task for SkyPilot and the command that launches it."
)
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Whether to build the model and try a step by its shapes, which takes a while once."
    " Default: on clouds.",
)
@options.any_memory
def plan(
    recipe: Path | RecipeURL,
    overrides: Sequence[str],
    local: bool,
    processes: int | None,
    trial: int | None,
    as_json: bool,
    sky: bool,
    measure: bool | None,
    any_memory: bool,
) -> None:
    """Print what RECIPE would do, and do nothing: on clouds the machines, what the run would cost
    there and whether it fits."""
    from ..launcher.job import known_run

    source = fetched(recipe, goes_on=overrides)
    meant = one_run(source, given_with(overrides, local), trial)
    new = _plan(source, meant, "", "", processes, local=False)
    known = known_run(new)
    made = known or new
    # Of a recipe from elsewhere nothing is executed, so that nobody is asked whether it may be.
    costing = _costing(measure if made.on_clouds else bool(measure), source.clone is None)
    if not made.on_clouds:
        size = ["--processes", str(processes)] if processes else []
        which = ["--trial", str(trial)] if trial is not None else []
        typed = _typed(source, overrides, local, [*size, *which])
        _plan_here(made, known is not None, typed, as_json, costing if measure else None)
        return
    from ..launcher.sky.client import NoClouds
    from ..launcher.sky.launch import prepare, priced_elsewhere
    from .offers import offers_json, offers_text

    try:
        launch = prepare(made, costing=costing, any_memory=any_memory, elsewhere=True)
        made, offers = launch.plan, launch.offers
    except NoClouds as error:
        if sky:
            raise
        offers = priced_elsewhere(made, costing)
        if not offers.elsewhere:
            raise
        offers = replace(offers, notes=(str(error),))
    if sky:
        launch.write()
        click.echo(launch.text())
    elif as_json:
        told = {"run": made.run, **offers_json(offers), "plan": json.loads(made.to_json())}
        click.echo(json.dumps(told, indent=1))
    else:
        click.echo(offers_text(offers, made.load_recipe()))


def _costing(measure: bool | None, own: bool) -> Costing:
    from ..launcher.rehearsal.costing import Lacks, known_cost, measured_cost

    if not own:
        hint = "`xrun new URL` copies it into a project of yours."
        return lambda *_: Lacks("Nothing of a recipe from elsewhere is executed for a plan", hint)
    if measure is False:
        return known_cost
    return functools.partial(measured_cost, say=lambda text: click.echo(text, err=True))


def _plan_here(made: Plan, begun: bool, typed: str, as_json: bool, costing: Costing | None) -> None:
    """What would be done on this machine, and what has to be typed for it."""
    from ..run.cost import Cost
    from .plans import cost_text, plan_text

    found = None
    if costing is not None:
        from ..launcher.bundle import pack
        from ..launcher.requirements import lock

        locked = lock(made)
        found = costing(locked, pack(locked, []))
    cost = found if isinstance(found, Cost) else None
    if as_json:
        told = json.loads(made.to_json())
        if found is not None:
            told |= {"cost": cost.to_json() if cost else None, "lacks": "" if cost else str(found)}
        click.echo(json.dumps(told, indent=1, sort_keys=True))
        return
    click.echo(plan_text(made, begun, typed))
    if cost is not None:
        click.echo("\n".join(cost_text(cost, made.load_recipe(), made.processes)))
    elif found is not None:
        click.echo(f"step      {found}")


@click.command()
@options.recipe
@options.overrides
@click.option(
    "--kills", type=click.IntRange(0), default=20, show_default=True, help="How many real SIGKILLs."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Chooses the moments of the kills."
)
@click.option("--resize", is_flag=True, help="Change the number of processes after each kill.")
@click.option(
    "--processes", type=click.IntRange(1), help="Training processes of the undisturbed run."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The folder of the two runs. Default: a temporary one, which goes if nothing differs.",
)
@options.trial
@options.agree
@options.as_json
def drill(
    recipe: Path | RecipeURL,
    overrides: Sequence[str],
    kills: int,
    seed: int,
    resize: bool,
    processes: int | None,
    folder: Path | None,
    trial: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Train RECIPE twice, once undisturbed and once under real SIGKILLs, and compare every loss and
    the final weights.

    Exit code 1 on any difference.
    """
    from .. import drill as drills
    from .. import streams

    streams.patient()
    _interruptible()
    source = fetched(recipe, yes=yes)
    overrides = one_run(source, overrides, trial)
    if source.clone is not None:
        agreed(source, _plan(source, overrides, "", "", processes, local=True), yes=yes)
    place = folder or Path(tempfile.mkdtemp(prefix="xrun-drill-"))
    try:
        result = drills.drill(
            source.path,
            overrides,
            kills=kills,
            seed=seed,
            resize=resize,
            processes=processes,
            folder=place,
            say=lambda text: click.echo(text, err=True),
        )
    except KeyboardInterrupt:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
        raise
    if folder is None and result.equal:  # what differs, or has failed, somebody will look into
        shutil.rmtree(place)
        result.folder = ""
    click.echo(json_text(result.to_json(), indent=1) if as_json else result.text())
    sys.exit(0 if result.equal else 1)


COMMANDS = (run, resume, plan, rehearse, drill)


def _plan(
    source: Source,
    overrides: Sequence[str],
    run_id: str,
    fork: str,
    processes: int | None,
    local: bool,
) -> Plan:
    from ..recipe.load import load_recipe
    from ..run.plan import make_plan

    recipe = source.path
    loaded = load_recipe(recipe, given_with(overrides, local))
    return make_plan(
        loaded,
        recipe,
        overrides=overrides,
        run=run_id,
        fork=fork,
        processes=processes,
        origin=source.origin,
    )


def _command(source: Source, overrides: Sequence[str], local: bool, plan: Plan) -> str:
    """What goes on with this very run, whatever flags it was started with."""
    size = ["--processes", str(plan.processes)] if plan.processes > 1 else []
    return _typed(source, overrides, local, ["--run", plan.run, *size])


def _typed(source: Source, overrides: Sequence[str], local: bool, more: Sequence[str]) -> str:
    """A command about this recipe, as a shell takes it."""
    import shlex

    settings = [part for override in overrides for part in ("-s", override)]
    return shlex.join(["xrun", source.typed, *settings, *["--local"] * local, *more])
