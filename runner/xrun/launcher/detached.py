"""`python -m xrun.launcher.detached`: the launcher of a plan on this machine as a process of its
own, which outlives the program that has started it. It reads the plan from its input."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

from .. import environment, streams
from ..errors import XrunError
from ..files import needed, refusal
from ..run.folder import RunFolder
from ..run.plan import Plan
from .job import launch
from .local import LocalCloud

_LOOK_SECONDS = 0.05
"""Between two looks at whether it has begun."""
_STARTED: dict[Path, subprocess.Popen[bytes]] = {}
"""The newest one that this program has started for a run's folder."""


def start_detached(plan: Plan) -> None:
    """Start the launcher of a plan; returns once the run is its own, or it has ended. It has a
    session of its own, so what a terminal or a notebook sends to its processes does not reach it.
    What it prints is in the folder's `launcher.log`.

    Raises:
        StoreError: the run's folder cannot be written.
    """
    folder = RunFolder(plan.folder)
    with needed(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.last_words.unlink(missing_ok=True)
        with (folder.path / "launcher.log").open("ab") as log:
            process = subprocess.Popen(
                [*environment.PYTHON, "-m", "xrun.launcher.detached"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    _STARTED[folder.path] = process
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as given:  # it has ended already
        given.write(plan.to_json().encode())
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves nothing
    while process.poll() is None and not _has_begun(folder, process.pid):
        time.sleep(_LOOK_SECONDS)


def outcome(folder: RunFolder) -> tuple[int, str] | None:
    """The exit code of the newest launcher that this program has started for a run, and the
    sentence that it ended with; None where there is none. Waits for its end."""
    process = _STARTED.pop(folder.path, None)
    if process is None:
        return None
    process.wait()
    words = folder.last_words
    return process.returncode, words.read_text(encoding="utf-8") if words.exists() else ""


def _has_begun(folder: RunFolder, pid: int) -> bool:
    return folder.owner_pid() == pid and folder.plan_file.exists()


def main() -> int:
    """Train the plan on the input to its end; the exit code."""
    streams.deaf()
    environment.name_the_user()
    plan = Plan.from_json(sys.stdin.read())
    words = RunFolder(plan.folder).last_words
    cloud = LocalCloud(words)
    try:
        with cloud.signals():
            return launch(plan, cloud)
    except XrunError as error:
        refused = error
    except OSError as error:
        refused = refusal(error)
    print(f"xrun: {refused}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        words.write_text(str(refused), encoding="utf-8")
    return refused.exit_code


if __name__ == "__main__":
    sys.exit(main())
