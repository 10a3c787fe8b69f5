"""`Copy`: what a run was trained from, laid out in a new folder to be trained once more; nothing is
run, and nothing of the original touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..component import Kind, find
from ..errors import ComponentError, LaunchError, XrunError
from ..files import write_json
from ..recipe.schema import Recipe
from ..run.plan import Plan, check_run_id, make_plan, under_rule
from .git import git_says
from .original import Original
from .project import Project

RECIPE = "recipes/again.yaml"
_ELSEWHERE = tuple("hardware checkpoint tracking budget alerts files setup secrets extends".split())
"""What a recipe says of where it is trained, and who is told."""
_KINDS: Mapping[str, Kind] = {"model": "models", "dataset": "datasets"}


@dataclass(frozen=True)
class Copy:
    """What is about to be trained: the project's folder, where its code comes from, and what of it
    is not what the run was made from ("" if nothing is known to be)."""

    original: Original
    folder: Path
    code: str
    files: tuple[str, ...] = field(default=())
    other: str = ""

    @property
    def recipe(self) -> Path:
        """The recipe, as it is trained here."""
        return self.folder / RECIPE


def laid_out(original: Original, folder: Path, here: Path | None = None) -> Copy:
    """The project as it was, in a new folder: the published files, else those of the project `here`
    or of the one that has trained it on this machine, where they have the run's digest, else the
    recorded commit, else nothing but the recipe, where what xrun ships is enough. Nothing is run.

    Raises:
        LaunchError: the folder is used, or the project is not to be had.
    """
    if folder.exists() and any(folder.iterdir()):
        what = f"{folder} is not empty, and a run is made again in an empty folder only."
        raise LaunchError(what, "Give another one with --folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").touch()  # what lies in folders above is no part of it
    check_run_id(original.facts.run)
    recipe = yaml.safe_load(original.recipe)
    own = _same_here(original, recipe, [here, original.project])
    if own is not None:
        code, places = f"the project here, {own.project}", list(_copied(own, folder))
    else:
        code = _from_git(original, folder) if _needs_git(original, recipe) else ""
        places = list(_published(original, folder))
    (folder / "recipes").mkdir(exist_ok=True)
    checkpoint = {"store": str(folder / "runs")}
    kept = {**_elsewhere(recipe), "checkpoint": checkpoint}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    (folder / RECIPE).write_text(text, encoding="utf-8")
    write_json(folder / "lock.json", original.lock.to_json())
    source = code or ("the files published with the model" if places else "")
    _check_components(original, recipe, folder)
    return Copy(original, folder, source, tuple(places), _other(original, recipe, folder))


def _elsewhere(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what it says of its machine and of whoever is told."""
    return {name: value for name, value in recipe.items() if name not in _ELSEWHERE}


def _same_here(
    original: Original, recipe: Mapping[str, Any], projects: Iterable[Path | None]
) -> Plan | None:
    """The run's plan in the first of these projects whose own components have the digest that the
    run was made with; None where they are published."""
    for project in filter(None, projects if original.code is None else ()):
        plan = _planned(original, recipe, project)
        same = plan is not None and plan.digest == original.facts.digest
        if plan and same and any((project / place).is_file() for place in plan.sources):
            return plan
    return None


def _planned(original: Original, recipe: Mapping[str, Any], project: Path) -> Plan | None:
    try:
        made = make_plan(Recipe.model_validate(_elsewhere(recipe)), project / RECIPE)
        return under_rule(made, original.facts.rule)
    except (XrunError, ValueError):  # whoever trains it says what is wrong with it
        return None


def _copied(plan: Plan, folder: Path) -> Iterator[str]:
    """Copy the project, as it would travel to another machine; the components' files of it, which
    git may ignore."""
    project = Path(plan.project)
    own = [place for place in plan.sources if (project / place).is_file()]
    for place in {*Project(plan).files, *own}:
        if not (project / place).is_relative_to(folder):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / place, folder / place)
    yield from own


def _needs_git(original: Original, recipe: Mapping[str, Any]) -> bool:
    """Whether something of the project's own is wanted that is not published."""
    code = original.lock.code
    return original.code is None and bool(code.get("remote")) and not _is_shipped(original, recipe)


def _is_shipped(original: Original, recipe: Mapping[str, Any]) -> bool:
    """Whether what xrun brings along is what the run was made from: a project's own component may
    have the name of one that ships."""
    empty = Path(os.devnull).parent  # has no components
    try:
        for key, kind in _KINDS.items():
            find(kind, recipe[key]["name"], empty)
    except ComponentError:
        return False
    return not _other(original, recipe, empty)


def _other(original: Original, recipe: Mapping[str, Any], project: Path) -> str:
    """Which components of a project are not those that the run was made from."""
    made, facts = _planned(original, recipe, project), original.facts
    if made is None or facts.digest in ("", made.digest):
        return ""
    places = {**facts.sources, **made.sources} if facts.sources else {}
    others = [each for each in places if facts.sources.get(each) != made.sources.get(each)]
    return f"not the run's own: {', '.join(others) or 'its components'}"


def _from_git(original: Original, folder: Path) -> str:
    """The project at its commit; what it is called for people."""
    code = original.lock.code
    remote, commit = str(code["remote"]), str(code["commit"])
    clone = folder / ".git-clone"
    try:
        clone.mkdir()
        git_says(clone, "init", "--quiet")
        git_says(clone, "fetch", "--quiet", "--depth", "1", "--", remote, commit, seconds=600)
        git_says(clone, "-c", "core.hooksPath=/dev/null", "checkout", "--quiet", "FETCH_HEAD")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise LaunchError(
            f"The project's commit {commit[:12]} cannot be fetched from {remote}:"
            f" {_last_line(said)}.",
            "It may be deleted, private or never pushed: ask the owner of the repository.",
        ) from error
    project = (clone / str(code.get("folder") or "")).resolve()
    if not project.is_relative_to(clone.resolve()) or not project.is_dir():
        what = f"The lock of {original.facts.run} names a folder that its project does not have."
        raise LaunchError(what, "The lock is damaged, or xrun did not write it.")
    for path in [*project.iterdir()]:
        if path.name != ".git":
            path.replace(folder / path.name)
    return f"{remote} at {commit[:12]}"


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines() or ["git said nothing"]
    return lines[-1].rstrip(".")


def _published(original: Original, folder: Path) -> Iterator[str]:
    for path in sorted(original.code.rglob("*.py")) if original.code else ():
        place = path.relative_to(original.code or path)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(path.read_bytes())
        yield place.as_posix()


def _check_components(original: Original, recipe: Mapping[str, Any], folder: Path) -> None:
    for key, kind in _KINDS.items():
        try:
            find(kind, recipe[key]["name"], folder)
        except ComponentError as error:
            raise LaunchError(
                f"{kind}/{recipe[key]['name']}.py of {original.facts.run} cannot be found: it is"
                " not published with the model, no git remote of its project is known, and the"
                " project here is not the one that it was made from, or has changed since.",
                "Type it in that project, or ask the run's owner to export it with"
                " `publish_code: true` in the recipe.",
            ) from error
