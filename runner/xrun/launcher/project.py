"""A project's folder -> the files of it that travel with a job: what git tracks, and what is new
and not ignored.

`.xrunignore` in that folder, in the syntax of `.gitignore`, keeps more at home. A line `!NAME` in
it is the yes without which no file travels whose name begins with a dot or is one of those that
hold secrets. Never travel: what git ignores, the runs, caches, environments of Python, and what a
link leads to outside of the project.

Without git models/, datasets/ and the modules that they import travel.
"""

from __future__ import annotations

import os
import posixpath
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from ..component import Kind, shown
from ..errors import LaunchError, Problem, RecipeError
from ..recipe.load import at_their_places
from ..recipe.location import is_within, target_there
from ..recipe.paths import path_of
from ..run.plan import Plan
from ..run.sources import sources
from .git import git_says
from .wheel import is_private, real_place

IGNORE = ".xrunignore"
LIMIT = 200 * 2**20
"""Bytes that travel; more is data, which has places of its own."""
_EVERYWHERE = [f"/{name}" for name in "bin dev etc lib opt proc sys tmp usr var".split()]
_ONLY_HERE = "it is on this machine only, and would not travel to the job's"
_WAYS = (
    "Files that git ignores, that .xrunignore names, that hold secrets or that lie outside of the"
    " project do not travel: move them, or name them under `files:`."
)
_WITHOUT_GIT = (
    "The project is not under git, or git ignores its folder: only models/, datasets/ and the files"
    " that they import travel. Type `git init` in its folder, or name the path under `files:`."
)
_NAMED = 5
"""So many of the largest files are named."""
_KINDS: Mapping[str, Kind] = {"model": "models", "dataset": "datasets"}


class Project:
    """The project of a plan. Nothing is imported, and nothing read but what travels."""

    def __init__(self, plan: Plan) -> None:
        self.root, self.home = Path(plan.project), Path(plan.home)
        self._names = {key: str(plan.recipe[key]["name"]) for key in _KINDS}

    @cached_property
    def files(self) -> list[str]:
        """What travels, by place (`models/vit.py`), sorted."""
        places = self._without_git() if self._listed is None else self._listed
        linked = self._through_links(places)
        return [place for place in sorted({*places, *linked}) if self._travels(place)]

    @cached_property
    def imported(self) -> Mapping[str, list[str]]:
        """The project's own files that the model and the dataset consist of, by the recipe's
        key."""
        found = {key: sources(kind, self._names[key], self.root) for key, kind in _KINDS.items()}
        return {
            key: [place for place in places if (self.root / place).is_file()]
            for key, places in found.items()
        }

    def is_program(self, place: str) -> bool:
        """Whether one of the files may be executed."""
        return os.access(self.root / place, os.X_OK)

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """What travels, with what it holds.

        Raises:
            LaunchError: it is more than a job takes along.
        """
        sizes = {place: (self.root / place).stat().st_size for place in self.files}
        if (total := sum(sizes.values())) > LIMIT:
            raise _too_large(self.root, total, sizes)
        for place in self.files:
            yield place, (self.root / place).read_bytes()

    @property
    def ways(self) -> str:
        """Why something of it stays here, and what to do."""
        return _WITHOUT_GIT if self._listed is None else _WAYS

    @cached_property
    def _listed(self) -> list[str] | None:
        return listed_by_git(self.root)

    def _through_links(self, places: Iterable[str]) -> Iterator[str]:
        """What lies in folders of the project that links lead to, by the links' names; git tells
        of the link alone."""
        root = self.root.resolve()
        links = (self.root / place for place in places)
        folders = {link: link.resolve() for link in links if link.is_symlink() and link.is_dir()}
        for link, folder in folders.items():
            within = folder != root and folder.is_relative_to(root)
            for path in (root / place for place in places if within):
                if path.is_relative_to(folder):
                    yield (link / path.relative_to(folder)).relative_to(self.root).as_posix()

    def _without_git(self) -> set[str]:
        folders = (self.root / kind for kind in _KINDS.values())
        found = (path for folder in folders for path in folder.rglob("*"))
        imported = (place for places in self.imported.values() for place in places)
        return {path.relative_to(self.root).as_posix() for path in found} | set(imported)

    def _travels(self, place: str) -> bool:
        path, said = self.root / place, self._ignore.check_file(place).include
        real = real_place(path, self.root)
        if real is None or said is True or path.is_relative_to(self.home):
            return False
        if not self._environments.isdisjoint(path.parents):
            return False
        return said is False or not (is_private(Path(place)) or is_private(real))

    @cached_property
    def _ignore(self) -> GitIgnoreSpec:
        try:
            return GitIgnoreSpec.from_lines((self.root / IGNORE).read_text().splitlines())
        except FileNotFoundError:
            return GitIgnoreSpec.from_lines([])
        except (OSError, ValueError) as error:
            raise LaunchError(
                f"{self.root / IGNORE} cannot be read: {error}.", "It has git's syntax."
            ) from error

    @cached_property
    def _environments(self) -> set[Path]:
        paths = (self.root / place for place in self._listed or ())
        return {path.parent for path in paths if path.name == "pyvenv.cfg"}


def listed_by_git(root: Path) -> list[str] | None:
    """What git tracks in a folder, submodules included, and what is new and not ignored; None where
    there is no git, or where it ignores the folder itself."""
    new = ("ls-files", "-z", "--others", "--exclude-standard")
    try:
        if git_says(root, *new, "--ignored", "--directory", "--", ".") == b"./\0":
            return None
        tracked = git_says(root, "ls-files", "-z", "--cached", "--recurse-submodules")
        found = tracked + git_says(root, *new)
    except (OSError, subprocess.SubprocessError):
        return None
    return sorted({os.fsdecode(name) for name in found.split(b"\0") if name})


def _too_large(root: Path, total: int, sizes: Mapping[str, int]) -> LaunchError:
    largest = sorted(sizes, key=lambda place: sizes[place], reverse=True)[:_NAMED]
    named = ", ".join(f"{place} ({_mib(sizes[place])})" for place in largest)
    return LaunchError(
        f"{_mib(total)} of {root} would travel with the job; the limit is {_mib(LIMIT)}. The"
        f" largest files: {named}.",
        f"Name what the run does not need in {IGNORE} or .gitignore; data belong under `files:` of"
        " the recipe, or on the Hub.",
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def refuse_what_stays(plan: Plan) -> None:
    """Whatever the job needs of the project is packed.

    Raises:
        RecipeError: something would not be on the machine.
    """
    if problems := left_at_home(plan):
        raise RecipeError(at_their_places(problems, plan.recipe_path, plan.overrides))


def left_at_home(plan: Plan) -> list[Problem]:
    """What the recipe needs of the project, and would not travel; without a line, by key."""
    project = Project(plan)
    return [*_modules(project), *_paths(project, plan)]


def _modules(project: Project) -> Iterator[Problem]:
    travels = set(project.files)
    for key, places in project.imported.items():
        for place in places:
            if place not in travels:
                what = f"its file {place} would not travel to the machine"
                yield Problem("", 0, 0, f"{key}.name", what, hint=project.ways)


def _paths(project: Project, plan: Plan) -> Iterator[Problem]:
    """Paths that lead to something here, and to nothing on the machine."""
    for key, value in _arguments(plan):
        path = path_of(value, project.root)
        if path is None or "/" not in value or not path.exists() or _is_brought(value, plan):
            continue
        inside = _place(path, project.root)
        if value.startswith(("/", "~")):
            if inside is not None:
                hint = f"Write it relative to the project's folder: {inside}."
                yield Problem(
                    "", 0, 0, key, "the project lies in another folder on the machine", value, hint
                )
            elif not any(path.is_relative_to(folder) for folder in _EVERYWHERE):
                yield Problem("", 0, 0, key, _ONLY_HERE, shown(value), project.ways)
        elif not _travels(inside, project):
            yield Problem("", 0, 0, key, _ONLY_HERE, shown(value), project.ways)


def _arguments(plan: Plan) -> Iterator[tuple[str, Any]]:
    for key in _KINDS:
        for name, value in plan.recipe[key].get("args", {}).items():
            yield f"{key}.args.{name}", value
    yield "model.init_from", plan.recipe["model"].get("init_from")


def _is_brought(value: str, plan: Plan) -> bool:
    """Whether it is one of the paths that `files:` brings to the machine."""
    there = posixpath.normpath(value)
    return any(is_within(there, target_there(each)) for each in plan.recipe.get("files", {}))


def _place(path: Path, root: Path) -> str | None:
    real, folder = path.resolve(), root.resolve()
    return real.relative_to(folder).as_posix() if real.is_relative_to(folder) else None


def _travels(place: str | None, project: Project) -> bool:
    if place is None:
        return False
    return place == "." or any(f"{each}/".startswith(f"{place}/") for each in project.files)
