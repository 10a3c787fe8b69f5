"""Runs that several tries begin from: one that was killed after step 10 of 20 and one that has
finished. They are made once, by the first try that needs them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.running import PER_STEP, Project, curve, weights

from .lives import train

SHARED = "ATTACK_SHARED"
KILLED_AT, COMMITTED = 12, 10


@dataclass(frozen=True)
class Started:
    """The two projects, and what an undisturbed run ends with."""

    root: Path

    @property
    def right(self) -> tuple[str, dict[int, dict[str, Any]]]:
        """The final weights' SHA-256, and the curve."""
        run = Project(self.root / "finished").run
        return weights(run), curve(run)

    def copied(self, name: str, to: Path) -> Project:
        """`killed` or `finished`, in a folder of its own."""
        shutil.copytree(self.root / name, to, dirs_exist_ok=True)
        return Project(to)


def started() -> Started:
    """Make them, or find them made."""
    shared = Path(os.environ.get(SHARED) or tempfile.mkdtemp(prefix="xrun-attack-"))
    with (shared / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "made").exists():
            _make(shared)
            (shared / "made").touch()
    return Started(shared)


def _make(shared: Path) -> None:
    finished, killed = Project(shared / "finished"), Project(shared / "killed")
    assert train(finished.recipe).code == 0
    call = KILLED_AT * PER_STEP + 1
    killed.trap("SIGKILL", call=call, committed=COMMITTED, paced=True)
    assert killed.attempt().code == 75
    assert killed.run.record().newest_step == COMMITTED
