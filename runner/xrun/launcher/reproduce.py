"""`xrun reproduce`: a run made again from nothing but what it has left, in a folder of its own, and
compared bit for bit. The original is never touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .. import environment
from ..component import Kind, find
from ..errors import ComponentError, LaunchError
from ..files import write_json
from ..libraries import TRAINING, require
from ..recipe.load import load_recipe
from ..run.folder import RunFolder
from ..run.plan import check_run_id, make_plan, under_rule
from ..run.points import Point, key_of, read_points, reproducible
from .git import git_says
from .local import alone
from .locked_python import others_here, python_of, told
from .original import Original

Say = Callable[[str], None]
_POLL_SECONDS = 0.2
_RECIPE = "recipes/again.yaml"
_ELSEWHERE = tuple("hardware checkpoint tracking budget files setup secrets extends".split())
"""What a recipe says of where it is trained, and who is told."""
_COMPARED = ("train/loss", "train/samples")
_KINDS: Mapping[str, Kind] = {"model": "models", "dataset": "datasets"}


@dataclass(frozen=True)
class Verdict:
    """How the second run compares: `compared` steps were the same up to `step`; where `differs` is
    not None, that step was not, in `what`. `because` names what was other, as `name old -> new`."""

    run: str
    folder: str
    step: int
    compared: int
    differs: int | None = None
    what: tuple[str, ...] = ()
    because: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "same": self.differs is None}


@dataclass(frozen=True)
class Copy:
    """What is about to be trained: the project's folder, and where its code comes from."""

    original: Original
    folder: Path
    code: str
    files: tuple[str, ...] = field(default=())

    @property
    def recipe(self) -> Path:
        """The recipe, as it is trained here."""
        return self.folder / _RECIPE


def laid_out(original: Original, folder: Path) -> Copy:
    """The project as it was, in a new folder: the published files, else the recorded commit, else
    nothing but the recipe, where what xrun ships is enough. Nothing is run.

    Raises:
        LaunchError: the folder is used, or the project is not to be had.
    """
    if folder.exists() and any(folder.iterdir()):
        what = f"{folder} is not empty, and the run is made again in a folder of its own."
        raise LaunchError(what, "Give another one with --folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").touch()  # what lies in folders above is no part of it
    check_run_id(original.facts.run)
    recipe = yaml.safe_load(original.recipe)
    code = _from_git(original, folder) if _needs_git(original, recipe) else ""
    places = list(_published(original, folder))
    kept = {name: value for name, value in recipe.items() if name not in _ELSEWHERE}
    (folder / "recipes").mkdir(exist_ok=True)
    checkpoint = {"store": str(folder / "runs")}
    text = yaml.safe_dump({**kept, "checkpoint": checkpoint}, sort_keys=False, allow_unicode=True)
    (folder / _RECIPE).write_text(text, encoding="utf-8")
    write_json(folder / "lock.json", original.lock.to_json())
    source = code or ("the files published with the model" if places else "")
    _check_components(original, recipe, folder)
    return Copy(original, folder, source, tuple(places))


def reproduce(copy: Copy, say: Say, *, to: int | None = None, here: bool = False) -> Verdict:
    """Train the copy up to the step `to`, or to its end, or to the first difference; `here` by what
    is installed, whatever the lock says.

    Raises:
        XrunError: it cannot be trained; it says why itself.
    """
    require(TRAINING)
    original = copy.original
    python = Path(environment.PYTHON[0]) if here else python_of(original.lock, say)
    other = told(others_here(original.lock)) if here else []
    wanted = {key_of(point, point["step"]): point for point in original.points}
    last = _last_step(original, to)
    found = RunFolder(copy.folder / "runs" / original.facts.run)
    code = _train(copy, python, found, wanted, last)
    same, differs, what = compared(wanted, read_points(found.metrics), last)
    if differs is None and same < last:
        raise LaunchError(
            f"The run ended with exit code {code} after step {same}, before step {last}.",
            f"Its folder is {found.path}.",
        )
    because = () if differs is None else _because(copy, found, other)
    return Verdict(
        original.facts.run, str(found.path), same, _steps(wanted, same), differs, what, because
    )


def _last_step(original: Original, to: int | None) -> int:
    """The last logged step that is compared. Raises LaunchError."""
    steps = [point["step"] for point in original.points if to is None or point["step"] <= to]
    if not steps:
        what = f"{original.facts.run} has logged nothing" + (f" up to step {to}" if to else "")
        raise LaunchError(f"{what}, so there is nothing to compare.", "Try a later step with --to.")
    return int(max(steps))


def _needs_git(original: Original, recipe: Mapping[str, Any]) -> bool:
    """Whether something of the project's own is wanted that is not published."""
    code = original.lock.code
    return original.code is None and bool(code.get("remote")) and not _is_shipped(recipe)


def _is_shipped(recipe: Mapping[str, Any]) -> bool:
    """Whether what xrun brings along is all that the recipe names."""
    empty = Path(os.devnull).parent  # has no components
    try:
        for key, kind in _KINDS.items():
            find(kind, recipe[key]["name"], empty)
    except ComponentError:
        return False
    return True


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
            "It may not have been pushed, have vanished, or be private: ask its owner.",
        ) from error
    project = (clone / str(code.get("folder") or "")).resolve()
    if not project.is_relative_to(clone.resolve()) or not project.is_dir():
        what = f"The lock of {original.facts.run} names a folder that its project does not have."
        raise LaunchError(what, "It is damaged, or not one that xrun has written.")
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
                f"{kind}/{recipe[key]['name']}.py of {original.facts.run} is not to be had: it is"
                " not published with the model, and no git remote of its project is known.",
                "Its owner can export it with `publish_code: true` in the recipe.",
            ) from error


def _train(
    copy: Copy,
    python: Path,
    found: RunFolder,
    wanted: Mapping[tuple[int, int], Point],
    last: int,
) -> int:
    """Train until there is an answer; the exit code, -2 where it was stopped."""
    facts = copy.original.facts
    exact = yaml.safe_load(copy.original.recipe)["train"].get("reduction") == "exact"
    size = ["--processes", str(facts.processes)] if facts.processes > 1 and not exact else []
    command = [str(python), "-P", "-m", "xrun", "run", _RECIPE, "--run", facts.run, "--yes", *size]
    own = {environment.LOCK.name: str(copy.folder / "lock.json")}
    with (copy.folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=copy.folder,
            env={**_environ(python), **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        asked = 0.0
        try:
            while process.poll() is None:
                time.sleep(max(_POLL_SECONDS, 5 * asked))  # a long log takes its time to be read
                began = time.monotonic()
                same, differs, _ = compared(wanted, read_points(found.metrics), last)
                asked = time.monotonic() - began
                if differs is not None or (same >= last and last < max(wanted)[0]):
                    process.send_signal(signal.SIGINT)
                    process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if process.returncode and not found.metrics.exists():
        lines = (copy.folder / "output.log").read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        raise LaunchError(f"The run cannot be made again here. {said}", f"All of it: {log.name}")
    return process.returncode


def _environ(python: Path) -> dict[str, str]:
    """The environment; what lies on PYTHONPATH would come before the lock's versions."""
    own = str(python) == environment.PYTHON[0]
    kept = alone(os.environ).items()
    return {name: value for name, value in kept if own or name != "PYTHONPATH"}


def compared(
    wanted: Mapping[tuple[int, int], Point], points: Sequence[Point], last: int
) -> tuple[int, int | None, tuple[str, ...]]:
    """Up to which step all is the same, the first step that is not, and what of it differs."""
    same = 0
    for point in map(reproducible, points):
        key = key_of(point, point["step"])
        if key not in wanted or key[0] > last:
            continue
        known = wanted[key]
        if json.dumps(known, sort_keys=True) != json.dumps(point, sort_keys=True):
            names = [name for name in (*_COMPARED, *known) if known.get(name) != point.get(name)]
            told = (f"{name} {known.get(name)} -> {point.get(name)}" for name in names)
            return same, key[0], tuple(dict.fromkeys(told))
        same = key[0]
    return same, None, ()


def _steps(wanted: Mapping[tuple[int, int], Point], until: int) -> int:
    return len({step for step, _ in wanted if 0 < step <= until})


def _sources(copy: Copy) -> list[str]:
    """Whether the components are others than those of the run, as far as that is known."""
    made = make_plan(load_recipe(copy.recipe), copy.recipe)
    same_rule = under_rule(made, copy.original.facts.rule) or made
    told = []
    if copy.original.facts.digest and same_rule.digest != copy.original.facts.digest:
        told.append("the recipe's components are others than the run's")
    if copy.original.lock.code.get("dirty") and not copy.files and copy.code:
        told.append("the project had changes that were not committed, and are not published")
    return told


def _because(copy: Copy, found: RunFolder, other: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*_sources(copy), *other, *_rest(copy, found)]))


def _rest(copy: Copy, found: RunFolder) -> list[str]:
    """What the second run's own lock says that is other."""
    before, now = copy.original.lock, found.record().lock
    later = [f"the run itself: {each}" for each in before.changes]
    return [*before.versions_of(now), *before.machine_of(now), *before.sources_of(now), *later]
