"""`Run`: a run in a program, as `xrun.start`, `xrun.open_run` and `xrun.list_runs` give it.

What goes wrong is an exception of `xrun.errors`, with the sentences that the commands print.
Nothing heavy is imported before it is needed: torch by `tensors` and `model`, pandas and pyarrow by
those of a table.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EX_TEMPFAIL, LaunchError, Problem, RecipeError, Stopped, error_of
from .run import compared
from .run.folder import RunFolder, as_typed
from .run.opened import OpenedRun
from .run.opened import open_run as opened_run
from .run.report import RunReport
from .run.table import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .launcher.sky.launch import Launch
    from .run.plan import Plan

log = logging.getLogger("xrun")


@dataclass(frozen=True, repr=False)
class Run:
    """A run as it was when somebody looked: `report` has all that was known of it then. Open it
    once more for what has happened since."""

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
    """Train the run of this recipe with these keys changed, to its end, and return it.

    The same call again goes on with the run, and with a finished one does nothing: what is called
    in a loop and interrupted is called once more. `again` makes another run of the same recipe,
    `fork` one that begins with the newest checkpoint of the run of this id. `processes` train on
    this machine, with `local` whatever the recipe's hardware says. On clouds nothing is launched
    without `yes`, since that costs money; `detach` returns once it is launched.

    Asked to stop (Ctrl-C, SIGTERM) it saves, and raises `errors.Stopped`, which is no `Exception`.

    Raises:
        RecipeError: the recipe is wrong, or has a sweep.
        LaunchError: it cannot be started from here.
        XrunError: the run has failed, as the class says.
    """
    plan = _planned(recipe, overrides or {}, processes, local=local)
    plan = _chosen(plan, again=again, fork=fork)
    folder = RunFolder(plan.folder)
    code, said = (_launched(plan, yes=yes, detach=detach), "") if plan.on_clouds else _trained(plan)
    if code == EX_TEMPFAIL and not plan.on_clouds:
        safe = folder.what_is_safe() or "nothing was committed yet."
        raise Stopped(f"{plan.run} was asked to stop; {safe} The same call goes on.")
    if code:
        raise error_of(code, said or _reason(folder, code))
    return _here(folder)


def _planned(
    recipe: str | os.PathLike[str],
    overrides: Mapping[str, Any],
    processes: int | None,
    *,
    local: bool,
) -> Plan:
    from .recipe.git_url import is_url
    from .recipe.load import load_recipe
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
    loaded = load_recipe(Path(text), [*given, "hardware=local"] if local else given)
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
    meant = choose_run(made, new=True, again=again, fork=fork)
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


def _reason(folder: RunFolder, code: int) -> str:
    """What the record says of the last attempt's end, where the attempt itself did not."""
    attempts = folder.record().attempts if folder.plan_file.exists() else ()
    reason = (attempts[-1].reason if attempts else "") or f"It ended with exit code {code}."
    typed = as_typed(folder.run, folder.path)
    return f"{folder.run}: {reason} `xrun logs {typed}` has what it printed."


def _here(folder: RunFolder) -> Run:
    from .launcher.sky.status import with_jobs

    (found,) = with_jobs([folder], [folder.report()])
    return Run(replace(found.report, status=found.status))


def _text(value: Any) -> str:
    """A value as an override writes it."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What numpy and torch call a number, and a path."""
    return value.item() if hasattr(value, "item") else os.fspath(value)
