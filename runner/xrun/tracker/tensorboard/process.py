"""The process that writes TensorBoard's events, as the entrypoint sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from ... import environment
from ...signals import STOPS, held_back


class Writer:
    """The writer of one attempt; `say` gets its sentence for people."""

    def __init__(self, folder: Path, attempt: str, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        log = folder / "logs" / attempt / "tensorboard.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors, held_back(STOPS):
            self.process = subprocess.Popen(
                [*environment.PYTHON, "-m", "xrun.tracker.tensorboard.writer", folder, attempt],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, environment.PARENT.name: str(os.getpid())},
            )

    def finish(self, seconds: float) -> None:
        """Let it write what is left, for so long at most."""
        said = ""
        try:
            said = self.process.communicate(timeout=max(0.0, seconds))[0]
        except subprocess.TimeoutExpired:
            self.abandon()
        if self.process.returncode:
            way = f"`xrun sync {self.folder.name}` writes all of them."
            self.say(f"Not every point is in TensorBoard's files. {said.strip()} {way}")

    def abandon(self) -> None:
        """End it at once: another attempt has the run."""
        self.process.kill()
        with contextlib.suppress(OSError, ValueError):
            self.process.communicate()
