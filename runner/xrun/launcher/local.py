"""Where attempts run: the `Cloud` protocol, and `LocalCloud`, which is this machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from .. import environment
from ..errors import EX_TEMPFAIL, LaunchError, RecipeError
from ..files import needed
from ..lock import Held, locked
from ..run.folder import RunFolder, as_typed
from ..run.plan import Plan
from ..signals import STOPS, answered, held_back, is_wish

_CRASHES = 20
"""So many entrypoints that were ended by a signal are started again; more is no accident."""


class Cloud(Protocol):
    """Where a plan is trained: starts its attempts, the next while the last asks to come back.
    `xrun.launcher.local.LocalCloud` is this machine."""

    def run(self, plan: Plan) -> int:
        """Run the plan to its end; returns the exit code."""


class LocalCloud:
    """Attempts as child processes of this one: an attempt that was ended from outside is followed
    by the next. `last_words`: a file for the sentence that the last one ends with, which it also
    prints."""

    def __init__(self, last_words: Path | None = None) -> None:
        self._told = {environment.LAST_WORDS.name: str(last_words)} if last_words else {}
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False
        self._crashes = 0

    def run(self, plan: Plan) -> int:
        """See Cloud; 75 means that somebody here asked to stop and the same command goes on.

        Raises:
            LaunchError: another process runs this run now, or this is no Linux.
            RecipeError: a library that the recipe names is not installed here.
        """
        if sys.platform != "linux":
            raise LaunchError(
                f"Training needs Linux, and this machine runs {platform.system()}.",
                "Name cloud machines under `hardware.any_of` in the recipe, or train it on Linux.",
            )
        check_libraries(plan)
        folder = RunFolder(plan.folder)
        code = EX_TEMPFAIL
        with needed(folder.path), only_one(folder), self.signals():
            while code == EX_TEMPFAIL and not self._asked:
                code = self._attempt(folder.write_plan(plan))
        return code

    def _attempt(self, path: Path) -> int:
        with held_back(STOPS):
            self._child = subprocess.Popen(
                [*environment.PYTHON, "-m", "xrun.supervisor.entrypoint", str(path)],
                stdin=subprocess.DEVNULL,
                env={
                    **alone(os.environ),
                    environment.PARENT.name: str(os.getpid()),
                    **self._told,
                },
            )
        code = self._child.wait()
        if code >= 0:
            return code
        self._crashes += 1
        return EX_TEMPFAIL if self._crashes < _CRASHES else 1

    @contextmanager
    def signals(self) -> Iterator[None]:
        """While this lasts requests to stop are passed on to the attempt, and end nothing else.
        Only the main thread of a program hears them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with answered(self._on_signal, STOPS):
            yield

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked |= is_wish(number)
        if self._child is not None and self._asked:
            self._child.send_signal(number)  # Ctrl-C has reached it as well, which is the same wish


def check_libraries(plan: Plan) -> None:
    """What the recipe needs is installed here.

    Raises:
        RecipeError: it is not; with the command that installs it.
    """
    if plan.libraries.wanted:
        from ..recipe.missing import missing_problem

        if problem := missing_problem(plan.libraries.wanted, plan.recipe_path, plan.overrides):
            raise RecipeError([problem])


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what says that this machine is a node of a cluster: a local run has
    it to itself."""
    return {name: value for name, value in environ.items() if not name.startswith("SKYPILOT_")}


@contextmanager
def only_one(folder: RunFolder) -> Iterator[None]:
    """Hold the run's lock; the kernel lets go of it however this process ends.

    Raises:
        LaunchError: somebody holds it.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder.lock, wait=False) as file:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
    except Held as error:
        typed = as_typed(folder.run, folder.path)
        raise LaunchError(
            f"The run {folder.run} is running already (process {folder.owner_pid() or 'unknown'}).",
            f"Follow it with `xrun logs -f {typed}`, or stop that process first.",
        ) from error
