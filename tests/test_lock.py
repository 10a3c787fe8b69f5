"""A lock that goes with its holder, between real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.paths import SOURCES
from xrun.lock import Held, held_by, locked

HOLDER = """
import sys
from pathlib import Path
from xrun.lock import locked
with locked(Path(sys.argv[1])) as file:
    file.write("the holder")
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        env={"PYTHONPATH": SOURCES},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_holds_it_and_says_who(tmp_path: Path) -> None:
    """The other is told so at once, and the file says what the holder has written; a SIGKILL lets
    go of it."""
    path = tmp_path / "lock"
    assert held_by(path) is None
    with holder(path) as process:
        assert held_by(path) == "the holder"
        with pytest.raises(Held), locked(path, wait=False):
            pass
        process.kill()
    assert held_by(path) is None
    with locked(path, wait=False):
        assert held_by(path) == "the holder", "what it says stays"


def test_who_waits_gets_it(tmp_path: Path) -> None:
    path, got = tmp_path / "lock", threading.Event()

    def wait() -> None:
        with locked(path):
            got.set()

    with holder(path) as process:
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.2)
        process.kill()
    assert got.wait(30)
    thread.join()
