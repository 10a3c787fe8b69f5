"""Recipes with a sweep on the command line: all of their trials, one of them, and `xrun sweep
status|table|best|stop`."""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..files import json_text
from . import options
from .options import Launching
from .sharing import Source, agreed, fetched
from .tables import Column, lines_of, room

if TYPE_CHECKING:
    from ..recipe.git_url import RecipeURL
    from ..run.plan import Plan
    from ..sweep.board import Board
    from ..sweep.trials import Trials


@dataclass(frozen=True)
class Wish:
    """What was typed to run a sweep, or one trial of it."""

    source: Source
    overrides: Sequence[str]
    local: bool
    processes: int | None
    launching: Launching

    @property
    def given(self) -> list[str]:
        """The overrides, `--local` among them."""
        return given_with(self.overrides, self.local)

    def trials(self) -> Trials:
        """What it is about. Raises RecipeError."""
        from ..sweep.trials import Trials

        return Trials.of(self.source.path, self.given, self.source.origin, self.processes)

    def command(self, number: int) -> list[str]:
        """What runs one trial, once everything has been asked."""
        from .. import environment

        settings = [part for override in self.overrides for part in ("-s", override)]
        size = ["--processes", str(self.processes)] if self.processes else []
        where = ["--local"] if self.local else []
        typed = ["run", self.source.typed, *settings, *where, *size, "--trial", str(number)]
        memory = ["--any-memory"] if self.launching.any_memory else []
        asked = ["--yes", "--no-rehearsal", *memory]
        return [*environment.PYTHON, "-m", "xrun", *typed, *asked]


def given_with(overrides: Sequence[str], local: bool) -> list[str]:
    """The overrides, what `--local` means among them."""
    from ..recipe.load import HERE

    return [*overrides, HERE] if local else list(overrides)


def one_run(source: Source, overrides: Sequence[str], trial: int | None) -> Sequence[str]:
    """The overrides by which a recipe means one run: those of a trial, where it has a sweep. Raises
    RecipeError where it is wrong."""
    from ..recipe.load import load_recipe
    from ..sweep.trials import Trials

    if load_recipe(source.path, overrides).sweep is None:
        refuse_trial(source, trial)
        return overrides
    if trial is None:
        what = "the recipe has a sweep, and this command is for one run"
        raise click.UsageError(f"{source.typed}: {what}: add --trial N. `xrun check` lists them.")
    trials = Trials.of(source.path, overrides, source.origin)
    if trials.are_open:  # its trials follow from results, which are on the board
        trials, _ = _placed(Wish(source, overrides, False, None, Launching()), reads=True)
    return trials.trial(trial).plan.overrides


def refuse_trial(source: Source, trial: int | None) -> None:
    """There is none in a recipe without a sweep. Raises UsageError."""
    if trial is not None:
        raise click.UsageError(f"--trial: {source.typed} has no sweep.")


def run_all(wish: Wish) -> int:
    """Every trial that is left; the exit code."""
    from ..launcher.cancel import cancel
    from ..libraries import BAYES, require
    from ..sweep.driver import Driver
    from ..sweep.proposal import propose

    trials, board = _placed(wish)
    if trials.sweep.method == "bayes":
        require(BAYES)
        trials.check()
        if not trials.values:
            trials = propose(trials, board)
    first = trials.trial(1)
    agreed(wish.source, first.plan, yes=wish.launching.yes)
    parallel = trials.sweep.parallel
    at_a_time = f", {parallel} at a time" if parallel > 1 else ""
    click.echo(f"Sweep {trials.id}: {trials.count} trials{at_a_time}, in {board.folder}")
    if trials.base.on_clouds and not board.standing().is_complete:
        _ask_once(wish, trials, board.folder)
    stop_job = functools.partial(cancel, save=True, say=click.echo)
    show = functools.partial(_show, trials)
    try:
        code = Driver(trials, board, wish.command, click.echo, stop_job, show).run()
    finally:
        if trials.base.on_clouds:
            _end_pool(trials, board)
    if code == 0:
        click.echo(f"{_best_text(trials, board)}\n  table    xrun sweep table {wish.source.typed}")
    else:
        click.echo(
            "Run the same command again: it goes on with the trials that are missing.", err=True
        )
    return code


def run_one(wish: Wish, number: int) -> int:
    """One trial, as far as it may go now; the exit code."""
    from ..launcher.job import launch
    from ..launcher.local import LocalCloud
    from ..launcher.preflight import place
    from ..sweep.trial import Course, follow_parent
    from .texts import start_text

    follow_parent()
    trials, board = _placed(wish)
    trial = trials.trial(number)
    agreed(wish.source, trial.plan, yes=wish.launching.yes)
    click.echo(f"Trial {number} of {trials.count}: {trial.words}")
    online = place(trial.plan, chosen=False)

    def train(plan: Plan) -> int:
        if plan.on_clouds:
            from ..launcher.sky.pool import Pool, is_there
            from .train import launch_on_clouds

            pool = Pool.of(board.folder)
            if pool is not None and not is_there(pool.name):
                click.echo(f"The {pool.words} is gone: this trial gets machines of its own.")
                pool = None
            return launch_on_clouds(plan, wish.launching, pool)
        click.echo(start_text(plan))
        cloud = LocalCloud()
        with cloud.signals():
            return launch(plan, cloud)

    return Course(trials, number, online.plan, board, train, click.echo).go()


def _placed(wish: Wish, *, reads: bool = False) -> tuple[Trials, Board]:
    """The trials and their board, where they are."""
    from ..launcher.preflight import place
    from ..libraries import require
    from ..recipe.needs import needs
    from ..sweep.board import Board

    trials = wish.trials()
    if not reads:
        require(*needs(trials.base.load_recipe()))
    own = trials.own_plan
    if own.address.durable:
        own = place(own, chosen=True).plan
        trials = trials.placed(own)
    board = Board(trials, own, reads=reads)
    if trials.sweep.method == "bayes":
        trials = trials.with_proposed(board.standing())
    return trials, board


def _show(trials: Trials) -> None:
    """Have Weights & Biases draw the trials, where it is told of them."""
    from ..libraries import VIEWS, what_is_missing
    from ..tracker.wandb.api import RunPath
    from ..tracker.wandb.processes import SweepView, save_view

    if trials.base.wandb is None or not trials.base.wandb.online:
        return
    if missing := what_is_missing(VIEWS):
        click.echo(missing)
        return
    at = RunPath.of(trials.own_plan)
    log = {key: each.log for key, each in trials.sweep.parameters.items()}
    there, said = save_view(SweepView(at.entity, at.project, trials.id, log, trials.metric))
    click.echo(f"Weights & Biases {'draws' if there else 'does not draw'} the trials: {said}")


def _ask_once(wish: Wish, trials: Trials, folder: Path) -> None:
    """Before anything is paid for: the rehearsal, the price and the question, about the first trial
    for all of them. Then the sweep's pool, where it has one."""
    from ..launcher.preflight import place
    from ..launcher.sky.launch import prepare
    from ..launcher.sky.pool import raised
    from .train import confirm

    click.echo(_machines(trials))
    first = place(trials.trial(1).plan, chosen=False).plan
    how = wish.launching
    about = prepare(first, os.environ, any_memory=how.any_memory)
    confirm(about, yes=how.yes, rehearsed=how.rehearsed)
    if trials.sweep.pool:
        raised(about, folder, trials.id, trials.sweep.pool, click.echo)


def _machines(trials: Trials) -> str:
    """Where the trials' jobs run, for people; the offer of the first trial follows."""
    if not trials.sweep.pool:
        return "Each trial is a managed job of its own; the first one is"
    times = "" if trials.sweep.pool == 1 else f"{trials.sweep.pool} times "
    return f"The trials share a pool, which stays until all are done: {times}what the first one has"


def _end_pool(trials: Trials, board: Board) -> None:
    """End the sweep's pool, if it has one that no trial is on; what prevents it is said."""
    from ..errors import XrunError
    from ..launcher.sky.pool import ended

    try:
        known = trials.with_proposed(board.standing())
        ended(board.folder, [each.plan.run for each in known.all()], click.echo)
    except XrunError as error:
        click.echo(f"The sweep's pool could not be ended: {error}", err=True)


def _best_text(trials: Trials, board: Board) -> str:
    standing = board.standing()
    number = standing.best
    if number is None:
        return "No trial has finished with a value."
    trial = trials.with_proposed(standing).trial(number)
    result = standing.result_of(number)
    value = f"{trials.metric} {result.value:.6g}" if result and result.value is not None else ""
    return f"Best: trial {number}, {value}, {trial.words}\n  run      {trial.plan.run}"


def table_of(
    recipe_path: Path, overrides: Sequence[str], width: int | None, *, priced: bool = True
) -> list[str]:
    """The trials of a recipe before anything is trained, `priced` what they would cost on clouds.
    Raises RecipeError where one is wrong."""
    from ..sweep.standing import Rules, Standing
    from ..sweep.table import cells, rows, space_text
    from ..sweep.trials import Trials

    trials = Trials.of(recipe_path, overrides)
    trials.check()
    dollars = [_dollars(trials)] if priced and trials.base.on_clouds else []
    if trials.are_open:
        return [*space_text(trials), *dollars]
    empty = Standing(Rules(len(trials.values), len(trials.parts)))
    found = list(rows(trials.all(), empty, costs=False))
    return [*_table(cells(trials, found, results=False), width), *dollars]


def _table(cells: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The trials in columns; where there is too little room, ids and values of text are cut, and
    hours and steps left out."""
    head, *rows = cells
    ranks = {"hours": 2, "step": 1}
    columns = [
        Column(name, rank=ranks.get(name, 0), cut=name not in ranks, names=name == "run")
        for name in head
    ]
    return lines_of(columns, rows, width)


def _dollars(trials: Trials) -> str:
    """What all trials would cost together, as far as that is known now. Nothing is measured."""
    from ..errors import XrunError
    from ..launcher.rehearsal.costing import known_cost
    from ..launcher.sky.client import NoClouds
    from ..launcher.sky.launch import prepare, priced_elsewhere
    from ..sweep.quote import sweep_quote

    plan = trials.trial(1).plan if trials.values else trials.base
    try:
        try:
            offers = prepare(plan).offers
        except NoClouds:
            offers = priced_elsewhere(plan, known_cost)
    except XrunError as error:
        return f"What they would cost is not known: {error}"
    best = next(iter((*offers.offers, *offers.elsewhere)), None)
    if best is None:
        return "What they would cost is not known: no price list can be had."
    kind = "spot" if best.use_spot else "on demand"
    where = f"{best.machines} on {best.infra}, {kind}, ${best.hourly:.2f} an hour"
    if best.quote is None:
        one_run = "--trial 1" if trials.values else "-s sweep=null"
        return f"Each on {where}; `xrun plan RECIPE {one_run}` measures how long one takes."
    whole, one = sweep_quote(trials, best.quote), best.quote.usd.likely
    low, likely, high = (f"${each:.2f}" for each in whole.usd)
    stop, limit = trials.sweep.stop, trials.sweep.budget.usd
    to_the_end = f"{whole.trials} trials of ${one:.2f}, each on {where}"
    early = f"; by {stop.method} {whole.lengths:.1f} of their lengths" if stop else ""
    over = " sweep.budget.usd ends it before." if limit and limit < whole.usd.likely else ""
    hours = f"{whole.hours.likely:.1f} hours"
    return f"{to_the_end}{early}: {likely} ({low} to {high}), {hours} of machines.{over}"


@click.group(cls=options.Commands)
def sweep() -> None:
    """Show the results of a recipe with a `sweep`."""


def _read(recipe: Path | RecipeURL, overrides: Sequence[str], local: bool) -> tuple[Trials, Board]:
    source = fetched(recipe, goes_on=overrides)
    return _placed(Wish(source, overrides, local, None, Launching()), reads=True)


@sweep.command()
@options.recipe
@options.overrides
@options.local
@options.as_json
def table(recipe: Path | RecipeURL, overrides: Sequence[str], local: bool, as_json: bool) -> None:
    """A row for each trial: its values, its run, how far it is, its metric, what it has cost."""
    from ..sweep.table import cells, rows

    trials, board = _read(recipe, overrides, local)
    found = list(rows(trials.all(), board.standing()))
    if as_json:
        click.echo(json_text([row.to_json() for row in found], indent=1))
        return
    for line in _table(cells(trials, found), room()):
        click.echo(line)


@sweep.command()
@options.recipe
@options.overrides
@options.local
@options.as_json
def status(recipe: Path | RecipeURL, overrides: Sequence[str], local: bool, as_json: bool) -> None:
    """Show how far the sweep is: its trials by state, its rungs, the best so far, what it has
    cost, and its pool of machines."""
    from ..launcher.sky.pool import Pool
    from ..sweep.spent import Spent
    from ..sweep.table import rows

    trials, board = _read(recipe, overrides, local)
    standing = board.standing()
    found = list(rows(trials.all(), standing))
    states = Counter(row.state for row in found)
    pool = Pool.of(board.folder)
    cost = sum((Spent(row.hours or 0.0, row.usd) for row in found), Spent())
    if as_json:
        told = {
            "sweep": trials.id,
            "trials": trials.count,
            "states": dict(states),
            "best": standing.best,
            "hours": cost.hours,
            "usd": cost.usd,
            "pool": None if pool is None else vars(pool),
        }
        click.echo(json_text(told, indent=1))
        return
    parts = [f"{count} {state}" for state, count in sorted(states.items())]
    if trials.are_open:
        parts.append(f"{trials.count - len(found)} not proposed yet")
    click.echo(f"{trials.id}: {trials.count} trials, {', '.join(parts)}")
    for rung in range(1, len(trials.parts)):
        here, at = len(standing.results.get(rung, {})), len(standing.at(rung))
        on = f", {len(standing.at(rung + 1))} go on" if standing.decisions.get(rung) else ""
        click.echo(f"  rung {rung}   {here} of {at or '?'} there{on}")
    usd = f", ${cost.usd:.2f}" if cost.usd is not None else ""
    click.echo(f"  cost     {cost.hours:.3f} hours{usd}")
    if pool is not None:
        click.echo(f"  machines {pool.words}; `xrun sweep stop {recipe}` ends it")
    click.echo(_best_text(trials, board))


@sweep.command()
@options.recipe
@options.overrides
@options.local
def stop(recipe: Path | RecipeURL, overrides: Sequence[str], local: bool) -> None:
    """Save and stop every trial that runs, and give the machines back, those of a pool too.

    `xrun RECIPE` goes on with the trials later. Exit code 3 if nothing runs."""
    from ..errors import LaunchError
    from ..launcher.cancel import cancel

    trials, board = _read(recipe, overrides, local)
    runs = [each.plan.run for each in trials.all()]
    stopped = _stop_command(board.folder)
    on_clouds = trials.base.on_clouds
    if on_clouds:
        from ..launcher.sky.jobs import jobs
        from ..launcher.sky.pool import Pool, ended

        stopped |= Pool.of(board.folder) is not None
        for run in {job.run for job in jobs(live=True)} & set(runs):
            cancel(run, save=True, say=click.echo)
            stopped = True
        if not ended(board.folder, runs, click.echo):
            raise LaunchError(f"The pool of {trials.id} is still there.", "Try again in a minute.")
    if not stopped:
        hint = f"`xrun sweep status {recipe}` tells how far it is."
        raise LaunchError(f"Nothing of the sweep {trials.id} runs.", hint)
    click.echo(f"The sweep {trials.id} has stopped. `xrun {recipe}` goes on with its trials.")


def _stop_command(folder: Path) -> bool:
    """End the command that runs a sweep on this machine, once its trials have saved; whether there
    was one."""
    import signal
    import time

    from ..lock import held_by

    pid = held_by(folder / "lock")
    if not pid:
        return False
    click.echo(f"Asked the command that runs it (process {pid}) to save and to stop.")
    os.kill(int(pid), signal.SIGTERM)
    while held_by(folder / "lock") is not None:
        time.sleep(0.1)
    return True


@sweep.command()
@options.recipe
@options.overrides
@options.local
@click.option(
    "--publish",
    metavar="hub|hub://OWNER/NAME",
    help="Publish the model there, as `publish` in a recipe does.",
)
@options.as_json
def best(
    recipe: Path | RecipeURL,
    overrides: Sequence[str],
    local: bool,
    publish: str | None,
    as_json: bool,
) -> None:
    """Show the best trial that has finished: its values, its run, its model.

    Exit code 3 if there is none yet."""
    from ..errors import LaunchError
    from ..run.folder import RunFolder
    from ..sweep.table import rows
    from ..sweep.trial import is_deleted

    trials, board = _read(recipe, overrides, local)
    standing = board.standing()
    if standing.best is None:
        hint = f"`xrun sweep status {recipe}` tells how far it is."
        raise LaunchError(f"No trial of {trials.id} has finished with a value.", hint)
    trial = trials.trial(standing.best)
    folder = RunFolder(trial.plan.folder)
    if is_deleted(trial.plan):
        what = f"The run {trial.plan.run} of the best trial, {trial.number}, was deleted."
        hint = f"Its result is still known. `xrun {recipe} --trial {trial.number}` trains it again."
        if publish is not None:
            raise LaunchError(what, hint)
        if not as_json:
            click.echo(f"{_best_text(trials, board)}\n  model    none. {what} {hint}")
            return
    if publish is not None:
        sys.exit(_published(trials, standing.best, publish))
    if as_json:
        (row,) = rows([trial], standing)
        click.echo(json_text({**row.to_json(), "model": str(folder.model)}, indent=1))
        return
    click.echo(f"{_best_text(trials, board)}\n  model    {folder.model}")


def _published(trials: Trials, number: int, where: str) -> int:
    """Make the model of a trial again and put it there; the exit code."""
    from ..launcher.export import export_model
    from ..launcher.preflight import place
    from ..libraries import TRAINING, require
    from ..run.folder import RunFolder

    require(TRAINING)
    meant = trials.trial(number, publish=where).plan
    plan = place(meant, chosen=False).plan
    folder = RunFolder(plan.folder)
    folder.write_plan(plan)
    code = export_model(folder)
    if code == 0:
        click.echo(f"Published the model of trial {number}, {plan.run}, at {plan.repository}")
    return code


COMMANDS = (sweep,)
