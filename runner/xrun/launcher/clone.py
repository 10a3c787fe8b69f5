"""A recipe's URL -> its repository here, at one commit: in the user's cache, by repository and
commit.

    ~/.cache/xrun/git/<repository>/<commit>/NAME/        the files, as git has checked them out
    ~/.cache/xrun/git/<repository>/<commit>/xrun-clone.json   written before the folder has its name

A clone is made under another name and then renamed, by one process at a time; one whose files are
not those of its commit is put aside and fetched again. Nothing of it is executed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from .. import environment
from ..bar import bar
from ..component import CLONE
from ..errors import LaunchError, Problem, RecipeError
from ..files import needed, read_json, write_json
from ..lock import locked
from ..recipe.git_url import RecipeURL
from ..run.folder import RunFolder, home_here, project_here, runs_in
from ..run.origin import Origin
from ..run.plan import Plan
from .git_server import branches, fetch, is_as_committed, no_branch

Say = Callable[[str], None]


@dataclass(frozen=True)
class Clone:
    """A recipe that was fetched: `folder` is its repository's root, `recipe` its file there."""

    origin: Origin
    folder: Path
    recipe: Path

    @property
    def consent(self) -> Path:
        """What somebody here has agreed to be run of this commit."""
        return self.folder.with_name("agreed.json")


def cloned(url: RecipeURL, say: Say, *, goes_on: tuple[str, ...] | None = None) -> Clone:
    """The recipe of a URL. With `goes_on`, the overrides of a command that goes on with a run: an
    unfinished run that this command has begun keeps its commit, though the branch has moved.

    Raises:
        RecipeError: the repository has no such branch, commit or file.
        LaunchError: it is private or not there, or there is no git.
        CloudUnavailable: its host does not answer.
    """
    origin = located(url)
    if not url.commit:
        say(f"{origin.revision} of {origin.repository} is at {origin.commit}.")
        if goes_on is not None and (begun := _begun(origin, goes_on)) is not None:
            run, older = begun
            say(_moved(origin, older, run))
            origin = older
    folder = _folder(origin, say, url.typed)
    return Clone(origin, folder, _recipe_in(folder, origin, url.typed))


def bring_back(plan: Plan, say: Say) -> None:
    """Afterwards the project of a plan whose recipe was fetched is here: the cache may have been
    emptied since. Raises what `cloned` raises."""
    if plan.shared is not None and not Path(plan.project).is_dir():
        cloned(RecipeURL.parse(plan.shared.url), say)


def located(url: RecipeURL) -> Origin:
    """What a URL means now; of a commit nobody is asked. Raises what `cloned` raises."""
    here = str(project_here())
    if url.commit:
        path = url.readings[0][1]
        address = url.at(url.commit, path)
        return Origin(address, url.repository, url.commit, url.commit, path, here)
    known = branches(url.repository)
    for revision, path in reversed(url.readings):
        if commit := known.get(revision, ""):
            address = url.at(commit, path)
            return Origin(address, url.repository, revision, commit, path, here)
    raise no_branch(url.readings[0][0], url.repository, url.typed)


def _begun(origin: Origin, overrides: tuple[str, ...]) -> tuple[str, Origin] | None:
    """The newest unfinished run here of the same command, if it has another commit."""
    for folder in runs_in(home_here()):
        plan = _plan_of(folder)
        if plan is None or plan[0] is None or not plan[0].is_of(origin) or plan[1] != overrides:
            continue
        if plan[0].commit == origin.commit or folder.describe().status == "finished":
            return None
        return folder.run, plan[0]
    return None


def _plan_of(folder: RunFolder) -> tuple[Origin | None, tuple[str, ...]] | None:
    with contextlib.suppress(LaunchError):  # a damaged one of some other run is no obstacle
        plan = folder.plan()
        return plan.shared, plan.overrides
    return None


def _moved(now: Origin, older: Origin, run: str) -> str:
    return (
        f"The unfinished run {run} goes on with {older.commit}, where {now.revision} was when it"
        f" began. For the new commit type: xrun '{now.url}'"
    )


def _folder(origin: Origin, say: Say, typed: str) -> Path:
    """The repository at the commit, fetched unless it is here as a whole."""
    name = _name(origin.repository)
    key = f"{name}-{blake3(origin.repository.encode()).hexdigest()[:16]}"
    home = environment.cache_folder() / "git" / key
    with needed(home):
        home.mkdir(parents=True, exist_ok=True)
        place = home / origin.commit
        with locked(home / "lock"):
            if not _is_whole(place, name, origin.commit):
                say(f"Fetching {origin.repository} at {origin.commit}")
                with bar("Fetching the repository"):
                    _make(place, name, origin, typed)
    return (place / name).resolve()


def _is_whole(place: Path, name: str, commit: str) -> bool:
    made = read_json(place / CLONE, dict)
    return made is not None and is_as_committed(place / name, commit)


def _make(place: Path, name: str, origin: Origin, typed: str) -> None:
    """Fetch it under another name; what others were killed in is taken away."""
    for left in place.parent.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
    new = place.parent / f".new-{uuid.uuid4().hex}"
    new.mkdir()
    try:
        fetch(origin.repository, origin.commit, new / name, typed)
        write_json(new / CLONE, {"repository": origin.repository, "commit": origin.commit})
        if place.exists():
            place.rename(place.parent / f".new-{uuid.uuid4().hex}")
        new.rename(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _name(repository: str) -> str:
    last = repository.rstrip("/").rpartition("/")[2].removesuffix(".git")
    return re.sub(r"[^\w.-]", "_", last, flags=re.ASCII).lstrip(".-") or "repository"


def _recipe_in(folder: Path, origin: Origin, typed: str) -> Path:
    """The recipe's file, which lies in the repository. Raises RecipeError."""
    path = folder / origin.path
    if not path.is_file():
        what = f"there is no {origin.path} at {origin.commit} of {origin.repository}"
        raise RecipeError([Problem(typed, 0, 0, "", what, hint=_recipes_of(folder))])
    if not path.resolve().is_relative_to(folder):
        what = f"{origin.path} is a link that leads out of the repository"
        raise RecipeError([Problem(typed, 0, 0, "", what)])
    return path


def _recipes_of(folder: Path) -> str:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    own = [path for path in found if not path.startswith(".")][:8]
    return f"It has {', '.join(own)}." if own else ""
