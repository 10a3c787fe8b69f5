"""Signals that come before a process can answer, and those of a terminal that is lost."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import SOURCES
from support.running import until
from xrun.signals import STOPS, held_back

ANSWERS = """
import signal, sys
from xrun import signals
heard = []
signals.answer(lambda number, frame: heard.append(number), signals.STOPS)
open("answers", "x")
while not heard:
    signal.pause()
open("heard", "w").write(str(int(heard[0])))
"""


def start(folder: Path, before: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", before + ANSWERS],
        cwd=folder,
        env={"PYTHONPATH": SOURCES},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_waits_until_a_process_can_answer(tmp_path: Path, number: signal.Signals) -> None:
    """It comes while Python starts: no traceback, no end, and it is heard."""
    with held_back(STOPS):
        process = start(tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == b""
    assert (process.returncode, (tmp_path / "heard").read_text()) == (0, str(int(number)))


def test_what_was_held_back_here_comes_here(tmp_path: Path) -> None:
    """The mask of the process that starts another one is afterwards as it was."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with held_back(STOPS):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | set(STOPS)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_nohup_stays(tmp_path: Path) -> None:
    """A SIGHUP that was ignored before is ignored; the next wish is heard."""
    process = start(tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    until((tmp_path / "answers").exists, "the answer")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (tmp_path / "heard").read_text() == str(int(signal.SIGTERM))


def test_a_lost_terminal_is_no_wish(tmp_path: Path) -> None:
    """A SIGHUP from somebody is, also for a process that has a terminal."""
    code = ANSWERS.replace(
        "heard.append(number)", "heard.extend([number] * signals.is_wish(number))"
    )
    for lost in (True, False):
        (tmp_path / "answers").unlink(missing_ok=True)
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            command = [sys.executable, "-c", code]
            os.execve(command[0], command, {"PYTHONPATH": SOURCES})  # noqa: S606  in a terminal
        until((tmp_path / "answers").exists, "the answer")
        if lost:
            os.close(terminal)
        else:
            os.kill(pid, signal.SIGHUP)
            until((tmp_path / "heard").exists, "the wish")
        assert (tmp_path / "heard").exists() != lost
        if lost:  # else it has heard its wish and ends
            os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        expected = signal.SIGTERM if lost else signal.SIGHUP
        assert (tmp_path / "heard").read_text() == str(int(expected))
        (tmp_path / "heard").unlink()
    os.close(terminal)
