"""`Run`: a run in a program, as `xrun.start`, `xrun.open_run` and `xrun.list_runs` give it.

What goes wrong is an exception of `xrun.errors`, with the sentences that the commands print.
Nothing heavy is imported before it is needed: torch by `tensors` and `model`, pandas and pyarrow by
those of a table.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import (
    EX_TEMPFAIL,
    CloudUnavailable,
    LaunchError,
    Problem,
    RecipeError,
    Stopped,
    error_of,
)
from .run import compared
from .run.folder import RunFolder, as_typed, name_here
from .run.opened import OpenedRun
from .run.opened import open_run as opened_run
from .run.report import OVER, RunReport
from .run.table import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .launcher.sky.launch import Launch
    from .run.plan import Plan
    from .run.record import AttemptRecord

log = logging.getLogger("xrun")
_NEAR_SECONDS, _FAR_SECONDS = 0.2, 30.0
"""Between two looks at a run that is waited for, here and where a network has to be asked."""


@dataclass(frozen=True, repr=False)
class Run:
    """A run as it was when somebody looked: `report` has all that was known of it then. `now()` is
    the same run as it is now."""

    report: RunReport

    def __repr__(self) -> str:
        best = f", {compared.best(self.report)}" if self.report.best else ""
        return f"<Run {self.id}: {self.status}, step {compared.progress(self.report)}{best}>"

    @property
    def id(self) -> str:
        """The run's id."""
        return self.report.run

    @property
    def where(self) -> str:
        """What opens it from everywhere: its folder, or its address."""
        return self.report.folder

    @property
    def status(self) -> str:
        """`finished`, `running`, `stopped`, ...: see `RunReport`."""
        return self.report.status

    @property
    def step(self) -> int | None:
        """The step of its newest kept checkpoint; None before there is one."""
        return self.report.step

    @property
    def best(self) -> Mapping[str, Any] | None:
        """`metric`, `value` and `step` of the best evaluation; None before there is one."""
        return self.report.best

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """The recipe with all of its defaults; None where an older xrun has kept none."""
        return self.report.recipe

    @cached_property
    def metrics(self) -> Table:
        """Everything that was logged, a row for each logged step, with the columns `step`, `time`
        (seconds since 1970), `train/loss`, `val/loss`, ...; `metrics.pandas()` and
        `metrics.arrow()` make it a table of theirs. Of a run whose state is far away it goes up to
        its newest commit.

        Raises:
            XrunError: the run's store cannot be read now.
        """
        folder = self._folder
        points = folder.newest_points() if folder else self._opened().points()
        return Table.of(points)

    def tensors(self, step: int | str | None = None) -> dict[str, Tensor]:
        """The tensors of a kept checkpoint, verified and on the processor, each whole, in the shape
        and type in which it is trained: `model.NAME`, with a moving average also `ema.NAME`, and
        the optimizer's as `optimizer.NAME.KEY`. Frozen parameters are in no checkpoint.

        `step` is a checkpoint's (`report.checkpoints`), `best`, or None for the newest.

        Raises:
            LaunchError: torch is not installed, or nothing is committed.
            CheckpointError: no checkpoint of that step is kept, or it is damaged.
            StoreError: the run's store cannot be read now.
        """
        from .libraries import TRAINING, require

        require(replace(TRAINING, what="Reading a checkpoint"))
        from .checkpoint.tensor_file import TensorReader
        from .training.measured import chosen

        opened = self._opened()
        if not opened.record.checkpoints:
            raise LaunchError(f"{self.id} has committed no checkpoint yet.")
        checkpoint = chosen(opened.record.checkpoints, step, self.id)
        reader = TensorReader([opened.fetch(file) for file in checkpoint.files.values()])
        return {name: reader.read(name) for name in sorted(reader.names())}

    def model(self, project: str | os.PathLike[str] = "") -> nn.Module:
        """The finished model, in evaluation mode on the processor; fetched from where it was
        published if it is not here. `project` as for `xrun.load_model`.

        Raises:
            LaunchError: torch is not installed, or the run has no model.
            ComponentError: it cannot be loaded whole.
            StoreError: where it was published does not answer.
        """
        from .libraries import TRAINING, require

        require(replace(TRAINING, what="Loading a model"))
        from .training.exported import load_model

        return load_model(self._model_folder(), project)

    def _model_folder(self) -> Path:
        from .launcher.original import page_of

        here = self._folder.model if self._folder else None
        if here is not None and here.is_dir():
            return here
        if self.report.export_failed:
            hint = f"`xrun export-model {as_typed(self.id, self.where)}` tries again."
            raise LaunchError(f"{self.id} has no model: {self.report.export_failed}", hint)
        if self.status != "finished":
            what = f"{self.id} has no model yet: it is {self.status}"
            hint = "`tensors()` gives those of its newest checkpoint."
            raise LaunchError(f"{what}, at step {compared.progress(self.report)}.", hint)
        opened = self._opened()
        named = str((opened.record.recipe or {}).get("publish") or "")
        for place in (named, opened.address):
            page = page_of(place, whole=True) if "://" in place else None
            if page is not None and page.facts.run == self.id:
                return page.model
        typed = as_typed(self.id, self.where)
        hint = f"`xrun export-model {typed}` makes it again from its last commit."
        raise LaunchError(f"The model of {self.id} is not at {self.where}.", hint)

    def now(self) -> Run:
        """The run as it is now, with what it has logged since.

        Raises:
            XrunError: it cannot be read, or its job not be asked about, now.
        """
        return _here(self._folder, sure=True) if self._folder else open_run(self.where)

    def wait(self) -> Run:
        """Wait until it has ended, and return it as it is then. Ctrl-C ends the waiting alone.

        Raises:
            Stopped: it was asked to stop on this machine; it is no `Exception`.
            XrunError: it has failed, as the class says, or cannot be read now.
        """
        from .launcher.detached import outcome

        run = self._over()
        if run.status == "finished" and not run.report.export_failed:
            return run
        folder, last = run._folder, run.report.attempts[-1:]
        code, said = (outcome(folder) if folder else None) or (0, "")
        code = code or (last[0].code if last else None) or 1
        if folder is not None:
            _judge(folder, code, said, local=not folder.plan().on_clouds)
        raise error_of(code, _reason(run.id, run.where, last, code))

    def stop(self) -> Run:
        """Have it save and stop, and return it as it is then; starting it again goes on. On this
        machine it hears that at once, as by Ctrl-C; elsewhere as by `xrun cancel --save`.

        Raises:
            LaunchError: nothing of it runs.
            XrunError: it cannot be asked now.
        """
        from .launcher.cancel import cancel

        pid = self._folder.owner_pid() if self._folder else None
        if pid is None or pid == os.getpid():  # this program's own threads hear no signal
            typed = name_here(self.id, self.where) if self._folder else self.where
            cancel(typed, save=True, say=_say)
        else:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
        return self._over()

    def _over(self) -> Run:
        """The run once nobody trains it."""
        here, run = self._folder is not None and not self._folder.plan().on_clouds, self.now()
        while run.status not in OVER:
            time.sleep(_NEAR_SECONDS if here else _FAR_SECONDS)
            run = run.now()
        return run

    @property
    def _folder(self) -> RunFolder | None:
        """The run's own on this machine, where it has one."""
        folder = RunFolder(Path(self.where))
        return folder if "://" not in self.where and folder.plan_file.exists() else None

    def _opened(self) -> OpenedRun:
        return opened_run(self.where)


def open_run(address: str | os.PathLike[str]) -> Run:
    """The run that a person means: its id in the project that this process stands in, a folder,
    `hub://owner/name`, `s3://bucket/prefix/RUN`, or the URL of its model page.

    Raises:
        LaunchError: there is none, or this account may not read it.
        XrunError: it cannot be read now.
    """
    from .run.folder import find_run
    from .run.opened import is_run_id

    text = os.fspath(address)
    if is_run_id(text):
        return _here(find_run(text))
    return Run(opened_run(text).report(time.time()))


def list_runs(where: str | os.PathLike[str] = "") -> list[Run]:
    """The runs of the project that this process stands in, the newest first, or those of a place: a
    folder of runs, `s3://bucket/prefix`, `hub://me`. One that cannot be read says why in
    `report.error`.

    Raises:
        LaunchError: there is no such place, or this account may not look.
        StoreError: the place does not answer now.
    """
    from .launcher.sky.status import with_jobs
    from .run.folder import home_here, runs_in
    from .run.listing import list_runs, of_folders

    if where:
        return [Run(report) for report in list_runs(os.fspath(where))]
    folders = runs_in(home_here())
    found = with_jobs(folders, of_folders(folders, metrics=False))
    return [Run(replace(each.report, status=each.status)) for each in found]


def start(
    recipe: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    again: bool = False,
    fork: str = "",
    processes: int | None = None,
    local: bool = False,
    yes: bool = False,
    detach: bool = False,
) -> Run:
    """Train the run of this recipe with these keys changed, and return it at its end.

    The same call again goes on with the run, and with a finished one does nothing: what is called
    in a loop and interrupted is called once more. `again` makes another run of the same recipe,
    `fork` one that begins with the newest checkpoint of the run of this id. `processes` train on
    this machine, with `local` whatever the recipe's hardware says. On clouds nothing is launched
    without `yes`, since that costs money.

    `detach` returns the run as soon as it is launched: `now()` says how it is, `wait()` waits for
    its end, `stop()` ends it. On this machine a process of its own trains it, which goes on when
    this program has ended, and prints into `launcher.log` in the run's folder; the same call again
    returns the run that trains.

    Asked to stop (Ctrl-C, SIGTERM) it saves, and raises `errors.Stopped`, which is no `Exception`.

    Raises:
        RecipeError: the recipe is wrong, or has a sweep.
        LaunchError: it cannot be started from here.
        XrunError: the run has failed, as the class says.
    """
    plan = _planned(recipe, overrides or {}, processes, local=local)
    plan = _chosen(plan, again=again, fork=fork)
    folder = RunFolder(plan.folder)
    if detach and not plan.on_clouds:
        return _detached(plan)
    code, said = (_launched(plan, yes=yes, detach=detach), "") if plan.on_clouds else _trained(plan)
    _judge(folder, code, said, local=not plan.on_clouds)
    return _here(folder)


def _planned(
    recipe: str | os.PathLike[str],
    overrides: Mapping[str, Any],
    processes: int | None,
    *,
    local: bool,
) -> Plan:
    from .recipe.git_url import is_url
    from .recipe.load import HERE, load_recipe
    from .run.plan import make_plan

    text = os.fspath(recipe)
    if is_url(text):
        hint = "`xrun new URL` copies it into a project of yours; the command asks before it runs."
        what = "a program starts recipes of its own project"
        raise RecipeError([Problem(text, 0, 0, "", what, hint=hint)])
    if not isinstance(overrides, Mapping):
        what = "the keys to change are a dict, such as {'train.epochs': 3}"
        raise RecipeError([Problem(text, 0, 0, "", what, repr(overrides))])
    given = [f"{key}={_text(value)}" for key, value in overrides.items()]
    loaded = load_recipe(Path(text), [*given, HERE] if local else given)
    if loaded.sweep is not None:
        hint = "Give {'sweep': None} for the run without it; `xrun RECIPE` trains all trials."
        what = "this is about one run, and the recipe has a sweep"
        raise RecipeError([Problem(text, 0, 0, "sweep", what, hint=hint)])
    return make_plan(loaded, Path(text), overrides=given, processes=processes)


def _chosen(made: Plan, *, again: bool, fork: str) -> Plan:
    """The run that is meant, with the addresses that only a network tells."""
    from .launcher.job import choose_run
    from .launcher.preflight import place
    from .libraries import require
    from .recipe.needs import needs
    from .recipe.notes import absent_files

    recipe = made.load_recipe()
    require(*needs(recipe))
    meant = choose_run(made, again=again, fork=fork, asked=False)
    online = place(meant, chosen=again or bool(fork), another=again)
    notes = [] if meant.on_clouds else absent_files(recipe, Path(made.project))
    for note in (*online.warnings, *notes):
        log.warning("%s", note)
    return online.plan


def _trained(plan: Plan) -> tuple[int, str]:
    """The exit code, and the sentence that the last attempt has left."""
    from .launcher.job import launch
    from .launcher.local import LocalCloud

    with tempfile.TemporaryDirectory(prefix="xrun-") as folder:
        last_words = Path(folder) / "last_words"
        code = launch(plan, LocalCloud(last_words))
        return code, last_words.read_text() if last_words.exists() else ""


def _detached(plan: Plan) -> Run:
    """The run, once a process of its own trains it, whoever has started that."""
    from .launcher.detached import outcome, start_detached

    folder = RunFolder(plan.folder)
    if folder.owner_pid() is None:
        start_detached(plan)
    if folder.owner_pid() is None and (ended := outcome(folder)):
        _judge(folder, *ended, local=True)
    return _here(folder)


def _launched(plan: Plan, *, yes: bool, detach: bool) -> int:
    """The exit code of a managed job, or of the launch alone."""
    from .launcher.job import launch
    from .launcher.rehearsal.rehearse import rehearse
    from .launcher.sky.cloud import SkyCloud

    def confirm(about: Launch) -> None:
        if not yes:
            best = about.offers.best
            where = " ".join(filter(None, [best.cloud, best.region]))
            what = f"{plan.run} would be launched on {where} for ${best.hourly:.2f} an hour"
            hint = "Say yes=True to agree; `xrun plan` tells what it would cost in all."
            raise LaunchError(f"{what}, and nobody has agreed to that.", hint)
        if sys.platform == "linux":
            rehearse(about.plan, about.cargo, _say)

    return launch(plan, SkyCloud(confirm=confirm, detach=detach, say=_say))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _judge(folder: RunFolder, code: int, said: str, *, local: bool) -> None:
    """Raises what a run of this machine has ended with, where that is no success."""
    if code == EX_TEMPFAIL and local:
        safe = folder.what_is_safe() or "nothing was committed yet."
        raise Stopped(f"{folder.run} was asked to stop; {safe} The same call goes on.")
    if code:
        last = folder.record().attempts[-1:] if folder.plan_file.exists() else ()
        raise error_of(code, said or _reason(folder.run, folder.path, last, code))


def _reason(run: str, where: str | Path, last: Sequence[AttemptRecord], code: int) -> str:
    """What the record says of the last attempt's end, where the attempt itself did not."""
    reason = (last[0].reason if last else None) or f"It ended with exit code {code}."
    return f"{run}: {reason} `xrun logs {as_typed(run, where)}` has what it printed."


def _here(folder: RunFolder, *, sure: bool = False) -> Run:
    """A run of this machine; with `sure` CloudUnavailable where nobody can tell how its job is."""
    from .launcher.sky.status import with_jobs

    (found,) = with_jobs([folder], [folder.report()])
    if sure and found.status != "finished" and found.cloud and found.cloud.problem:
        raise CloudUnavailable(found.cloud.problem)
    return Run(replace(found.report, status=found.status))


def _text(value: Any) -> str:
    """A value as an override writes it."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What numpy and torch call a number, and a path."""
    return value.item() if hasattr(value, "item") else os.fspath(value)
