"""Attempts whose ranks are forked from this process, which has imported torch: the entrypoint's own
code, a real process per rank, real signals and files, a tenth of a second each."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from support.running import Done, attempt
from xrun.cli.app import main
from xrun.errors import EX_TEMPFAIL, XrunError
from xrun.launcher.job import choose_run, launch
from xrun.launcher.local import only_one
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan, make_plan

from .cases import PROJECT

LIVES = 6
_TRACEBACK = "Traceback (most recent call last)"
_IGNORED = re.compile(r"Exception ignored in.*\nTraceback")
"""What Python says where torch's handler of SIGCHLD raises in a callback, in which nobody can catch
it; the handler raises again where somebody can."""


class Wrong(Exception):
    """What came out is not what is right."""


class Here:
    """The `Cloud` that is this process: life after life, as a local run's, until one does not ask
    to come back. Its ranks are warm."""

    def __init__(self) -> None:
        self.done: list[Done] = []

    def run(self, plan: Plan) -> int:
        """See Cloud."""
        folder = RunFolder(plan.folder)
        with only_one(folder):
            for _ in range(LIVES):
                self.done.append(attempt(plan))
                if self.done[-1].code != EX_TEMPFAIL:
                    break
        return self.done[-1].code


def train(recipe: Path, overrides: Sequence[str] = (), processes: int = 1) -> Done:
    """What `xrun RECIPE` does from the recipe on: the run that it means, and its lives."""
    here = Here()
    try:
        loaded = load_recipe(recipe, overrides)
        made = make_plan(loaded, recipe, overrides=overrides, processes=processes, environ={})
        code = launch(choose_run(replace(made)), here)
    except XrunError as error:
        return Done(error.exit_code, "", f"xrun: {error}\n")
    return Done(code, "", "".join(done.err for done in here.done))


def command(*arguments: str) -> Done:
    """The `xrun` command in this process: what it exits with, and what it says."""
    code: object = 0
    with (
        patch.object(sys, "argv", ["xrun", *arguments]),
        _caught("stdout", 1) as out,
        _caught("stderr", 2) as err,
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Done(code if isinstance(code, int) else int(code is not None), _text(out), _text(err))


@contextmanager
def _caught(name: str, descriptor: int) -> Iterator[int]:
    """A file in memory takes what is written to the descriptor, through whatever stream."""
    file, before = os.memfd_create(name), os.dup(descriptor)
    getattr(sys, name).flush()
    os.dup2(file, descriptor)
    with patch.object(sys, name, getattr(sys, name)):  # the command makes its own
        yield file
        getattr(sys, name).flush()
    os.dup2(before, descriptor)
    os.close(before)


def _text(file: int) -> str:
    with open(file, "rb") as said:
        said.seek(0)
        return said.read().decode(errors="surrogateescape")


def no_traceback(done: Done, what: str, codes: Sequence[int]) -> None:
    """It ended as a program does that knows what it does.

    Raises:
        Wrong: it did not.
    """
    if has_traceback(done.err + done.out):
        raise Wrong(f"{what} prints a traceback: {last_line(done.err)}")
    if done.code not in codes:
        raise Wrong(f"{what} ends with {done.code}: {last_line(done.err or done.out)}")


def has_traceback(text: str) -> bool:
    """Whether there is one that a person would see as ours."""
    return _TRACEBACK in _IGNORED.sub("", text)


def last_line(text: str) -> str:
    """What stands at the end of it."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:400] if lines else "(nothing)"


def project(folder: Path, recipe: str) -> Path:
    """The project of odd things with this recipe in it; the recipe's path."""
    shutil.copytree(
        PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    path = folder / "recipes" / "odd.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(recipe)
    return path
