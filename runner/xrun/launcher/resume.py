"""`xrun resume RUN|ADDRESS`: a run's record -> the plan that goes on with it here.

The record has the resolved recipe and a digest of each component's file; the files themselves are
the project's. The recipe is written to `recipes/RUN.yaml`, where it can be read and travels along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import components
from ..component import project_root
from ..errors import CheckpointError, LaunchError, XrunError
from ..files import json_text
from ..recipe.load import load_recipe
from ..run.code_digest import bytes_digest
from ..run.folder import RunFolder
from ..run.opened import OpenedRun
from ..run.plan import Plan, make_plan
from .job import as_begun, choose_run


def plan_to_resume(
    opened: OpenedRun, overrides: Sequence[str] = (), processes: int | None = None
) -> Plan:
    """The plan of the run with this project's components; `overrides` may change what a run can
    change: where it trains, and for how long.

    Raises:
        CheckpointError: files of the components are missing here or differ, or an override changes
            the mathematics.
        LaunchError: the record has no recipe, or what lies there is a bare copy of a state.
        RecipeError: the recipe cannot run here.
    """
    if opened.beside is not None and opened.beside.plan_file.exists():
        project = Path(opened.beside.plan().project)
    else:
        project = project_root(Path.cwd() / "recipes" / "any.yaml")
    if missing := _missing(opened, project):
        what = f"The run {opened.run} needs {', '.join(missing)}, and {project} has no such file."
        raise CheckpointError(what, _way_on(opened))
    path = project / "recipes" / f"{opened.run}.yaml"
    made_here = _written(path, json_text(opened.recipe, indent=1) + "\n")
    try:
        return _checked(opened, project, path, overrides, processes)
    except XrunError as error:
        if made_here:
            path.unlink()
        if isinstance(error, CheckpointError):  # its hint is for who starts a recipe
            error.hint = _way_on(opened)
        raise


def _checked(
    opened: OpenedRun, project: Path, path: Path, overrides: Sequence[str], processes: int | None
) -> Plan:
    recipe = load_recipe(path, overrides)
    made = make_plan(recipe, path, overrides=overrides, run=opened.run, processes=processes)
    known = opened.plan(_home(opened, made), project)
    made = replace(
        made,
        home=known.home,
        store=known.store,
        fork=known.fork,
        fork_store=known.fork_store,
        launched=known.launched,
    )
    if RunFolder(made.folder).plan_file.exists():
        return choose_run(made, given=True)
    return as_begun(made, opened.record)


def _way_on(opened: OpenedRun) -> str:
    """As it was begun, or as another run: a fork begins with one that has a folder here."""
    way = (
        "Leave its keys as they were and bring the project to the code that it was begun with, then"
        " type the same command again"
    )
    known = opened.beside is not None and opened.beside.plan_file.exists()
    if known and opened.record.checkpoints:
        way += f", or begin a new run from its weights: `xrun RECIPE --fork {opened.run}`"
    return f"{way}.{_begun_with(opened)}"


def _begun_with(opened: OpenedRun) -> str:
    """Where that code is, as far as the record tells."""
    code = opened.record.lock.code
    if not code.get("remote"):
        return ""
    changed = ", with changes that were not committed" if code.get("dirty") else ""
    return f" It was {code['remote']} at {str(code.get('commit'))[:12]}{changed}."


def _missing(opened: OpenedRun, project: Path) -> list[str]:
    """The files of the run's components that are not here."""
    roots = [*components.roots(project), project, project / "src"]
    return [
        place
        for place in opened.record.sources
        if not any((root / place).is_file() for root in roots)
    ]


def _written(path: Path, text: str) -> bool:
    """Make the file, also where an earlier record's recipe was written and nobody has changed it;
    says whether it was not there.

    Raises:
        LaunchError: something else is there.
    """
    known = path.read_text() if path.exists() else ""
    if known and _sealed(known.partition("\n")[2]) != known:
        what = f"{path} is there and is not a recipe that `xrun resume` has written."
        raise LaunchError(what, "Move it away, or start that recipe itself with --run.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_sealed(text))
    return not known


def _sealed(text: str) -> str:
    """A recipe under a line that tells whether somebody has changed it since."""
    return (
        f"# Written by xrun resume from the run's record, {bytes_digest('', text.encode())}\n{text}"
    )


def _home(opened: OpenedRun, made: Plan) -> Path:
    """The folder of runs that the run's folder is, or will be, in.

    Raises:
        LaunchError: its state is a bare copy.
    """
    if opened.place.address.durable:
        return Path(made.home)
    state = Path(opened.address)
    if state.name != "state" or state.parent.name != opened.run:
        what = f"{state} is a copy of the state of {opened.run}, outside of a run's folder."
        raise LaunchError(what, f"Copy it to {made.folder / 'state'}, then resume {opened.run}.")
    return state.parent.parent
