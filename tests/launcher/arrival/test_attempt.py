"""attempt.sh: what a node of a job runs ends with 0, 2 to 7, 75 or 76, whatever happens in it, and
lives longer than what it has started. On SkyPilot's own driver: tests/cluster/test_driver.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT
from support.running import until

pytestmark = pytest.mark.once

BEGINS = "touch $XRUN_BEGUN"
"""What an attempt does once the run is its own."""
ARRIVAL = ROOT / "runner" / "xrun" / "launcher" / "arrival"


class Machine:
    """A machine that is installed; `~/xrun/python -P -m MODULE` runs the shell commands that a test
    gives for the module."""

    def __init__(self, root: Path, *, arrive: str = "exit 0", entrypoint: str) -> None:
        self.root, self.cargo = root, root / "cargo"
        shutil.copytree(ARRIVAL, self.cargo)
        (self.cargo / "xrun-0-py3-none-any.whl").touch()
        (self.cargo / "environment.key").write_text("key")
        home = root / "xrun" / "environments" / "key"
        home.mkdir(parents=True)
        (home / "ready").touch()
        program = f"#!/bin/bash\ncase $3 in\n*arrive) {arrive} ;;\n*) {entrypoint} ;;\nesac\n"
        (home / "python").write_text(program)
        (home / "python").chmod(0o755)

    def start(self, **environ: str) -> subprocess.Popen[str]:
        temporary = self.root / "tmp"
        temporary.mkdir(exist_ok=True)
        return subprocess.Popen(
            ["bash", self.cargo / "attempt.sh", self.cargo, "plan.json"],
            env={**os.environ, "HOME": str(self.root), "TMPDIR": str(temporary), **environ},
            cwd=self.root,
            stderr=subprocess.PIPE,
            text=True,
        )

    def code(self, **environ: str) -> int:
        process = self.start(**environ)
        process.communicate(timeout=60)
        temporary = self.root / "tmp"
        assert not any(each.is_dir() for each in temporary.iterdir()), "the script tidies up"
        return process.returncode


@pytest.mark.parametrize("code", range(8))
def test_what_xrun_says_of_a_run_is_passed_on(tmp_path: Path, code: int) -> None:
    """But for 1, a bug, after which nobody knows."""
    machine = Machine(tmp_path, entrypoint=f"{BEGINS}; exit {code}")
    assert machine.code() == (75 if code == 1 else code)


ENDS = ["exit 75", "exit 8", "exit 127", "kill -KILL $$", "kill -TERM $$"]


@pytest.mark.parametrize("end", ENDS)
def test_all_else_comes_back(tmp_path: Path, end: str) -> None:
    assert Machine(tmp_path, entrypoint=f"{BEGINS}; {end}").code() == 75


@pytest.mark.parametrize("end", ENDS)
def test_a_machine_on_which_nothing_has_begun_says_so(tmp_path: Path, end: str) -> None:
    """By another code, which is counted. Another node than the first knows nothing of that, nor
    does a script that has no place to look at."""
    machine = Machine(tmp_path, entrypoint=end)
    assert machine.code() == machine.code(SKYPILOT_NODE_RANK="0") == 76
    assert machine.code(SKYPILOT_NODE_RANK="1") == 75
    assert machine.code(TMPDIR=str(tmp_path / "nowhere")) == 75


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("exit 1", 76), ("kill -KILL $$", 76)])
def test_an_arrival_that_fails_starts_nothing(tmp_path: Path, end: str, code: int) -> None:
    machine = Machine(tmp_path, arrive=end, entrypoint=f"touch {tmp_path}/started")
    assert machine.code() == machine.code(SKYPILOT_NODE_RANK="1") == code
    assert not (tmp_path / "started").exists()


def test_a_machine_that_is_taken_before_anything_has_begun_just_comes_back(tmp_path: Path) -> None:
    """That is nobody's mistake, and not counted."""
    arrives = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/arrives"
    stays = f"{arrives}; exec sleep 600 2> /dev/null"
    process = Machine(tmp_path, arrive=stays, entrypoint="exit 0").start()
    until((tmp_path / "arrives").exists, "the arrival")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75
    os.kill(int((tmp_path / "arrives").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    """However often it comes: the attempt saves, and its code is the script's."""
    saves = f"trap 'touch {tmp_path}/told' TERM; touch {tmp_path}/started"
    until_go = f"while [ ! -e {tmp_path}/go ]; do read -t 0.05 <> <(:); done"
    machine = Machine(tmp_path, entrypoint=f"{saves}; {until_go}; exit 5")
    process = machine.start()
    until((tmp_path / "started").exists, "the entrypoint")
    for _ in range(3):
        process.send_signal(number)
        until((tmp_path / "told").exists, "the signal")
        (tmp_path / "told").unlink()
        assert process.poll() is None
    (tmp_path / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 5


def test_an_installation_that_fails_says_how(tmp_path: Path) -> None:
    """Its code is the node's, and nothing is started."""
    machine = Machine(tmp_path, entrypoint="exit 0")
    (machine.cargo / "recipe_setup.sh").write_text("exit 9\n")
    assert machine.code() == 2
