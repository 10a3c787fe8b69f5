"""The stop flag, set by real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import SOURCES
from xrun.machine.stop import GRACE_SECONDS, NOBODY_ASKED, StopFlag


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def signals() -> Iterator[tuple[signal.Signals, ...]]:
    """Signals whose handlers are put back afterwards."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nobody_has_asked() -> None:
    """A new flag is unset and its deadline never comes."""
    flag = StopFlag()
    assert not flag
    assert flag.reason == ""
    assert flag.seconds_left() == float("inf")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_signal_sets_the_flag_and_nothing_else(
    signals: tuple[signal.Signals, ...], number: int
) -> None:
    """A real signal to this process sets the flag with its name as the reason, and the process goes
    on."""
    clock = Clock()
    flag = StopFlag(clock=clock)
    flag.on_signals(*signals)
    os.kill(os.getpid(), signals[number])
    assert flag
    assert flag.reason == signals[number].name
    assert flag.seconds_left() == GRACE_SECONDS
    clock.now += 20
    assert flag.seconds_left() == GRACE_SECONDS - 20


def test_the_first_reason_and_the_earliest_deadline_stay() -> None:
    """Whoever asks later can bring the deadline forward, never put it off, and does not change the
    reason."""
    clock = Clock()
    flag = StopFlag(grace=25, clock=clock)
    flag.set("notice", 120)
    assert flag.seconds_left() == 120
    flag.set("SIGTERM")
    assert (flag.reason, flag.seconds_left()) == ("notice", 25)
    flag.set("notice", 60)
    assert flag.seconds_left() == 25
    flag.set("now", 0)
    assert (flag.reason, flag.seconds_left()) == ("notice", 0)


def test_a_deadline_may_be_used_until_it_comes() -> None:
    """Who gives a deadline leaves the time until then to the loop; who gives none, as a signal,
    wants it to stop at once."""
    clock = Clock()
    flag = StopFlag(clock=clock)
    assert not flag.is_due(1e9)
    flag.set("notice", 30)
    assert [flag.is_due(seconds) for seconds in (0, 29, 30, float("inf"))] == [
        False,
        False,
        True,
        True,
    ]
    clock.now += 20
    assert (flag.is_due(9), flag.is_due(10)) == (False, True)
    flag.set("SIGTERM")
    assert (flag.is_due(0), flag.seconds_left()) == (True, 10)


def test_others_are_told_what_is_new() -> None:
    """A first deadline, one that comes forward by more than a second, and that it is at once."""
    clock = Clock()
    flag = StopFlag(clock=clock)
    assert not flag.is_news(NOBODY_ASKED)
    flag.set("notice", 120)
    assert flag.is_news(NOBODY_ASKED)
    known = flag.deadline, flag.at_once
    flag.set("notice", 119.5)
    assert not flag.is_news(known)
    flag.set("notice", 60)
    assert flag.is_news(known)
    known = flag.deadline, flag.at_once
    flag.set("stopped", 90, at_once=True)
    assert flag.is_news(known)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_signal_brings_what_was_written_down(
    tmp_path: Path, signals: tuple[signal.Signals, ...], at_once: bool
) -> None:
    """The reason, the deadline and whether it is at once reach the process that gets the signal."""
    clock, path = Clock(), tmp_path / "told"
    sender, flag = StopFlag(clock=clock), StopFlag(clock=clock, told=path)
    flag.on_signals(*signals)
    sender.set("notice", 100, at_once)
    sender.tell(path)
    os.kill(os.getpid(), signals[0])
    assert (flag.reason, flag.seconds_left(), flag.at_once) == ("notice", 100, at_once)
    path.write_text("cut sho")
    os.kill(os.getpid(), signals[0])
    assert (flag.seconds_left(), flag.at_once) == (GRACE_SECONDS, True)


def test_signals_interrupt_no_system_call() -> None:
    """A process in the middle of a read gets its bytes though signals arrive, and ends as it wants
    to."""
    code = """
import signal, sys
from xrun.machine.stop import StopFlag
flag = StopFlag()
flag.on_signals(signal.SIGTERM, signal.SIGINT)
print("ready", flush=True)
line = sys.stdin.readline()
print(line.strip(), flag.reason, flush=True)
sys.exit(75)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": SOURCES},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate("line\n", timeout=60)
    assert (out, child.returncode) == ("line SIGTERM\n", 75)


def test_a_parent_with_threads_is_gone_once_it_is_killed() -> None:
    """A parent of many threads that is killed remains the parent, by its number, until the last of
    them has ended; the kernel's signal comes before. The reason is its death all the same."""
    child = """
import contextlib, signal, time
from xrun.errors import Stopped
from xrun.machine.stop import StopFlag, end_with_parent
flag = StopFlag()
flag.on_signals(signal.SIGTERM)
with contextlib.suppress(Stopped), flag.interrupting():
    end_with_parent(signal.SIGTERM)
    print("ready", flush=True)
    time.sleep(60)
print(flag.reason, flush=True)
"""
    parent = """
import os, subprocess, sys, threading, time
for _ in range(30):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
environment = {**os.environ, "XRUN_PARENT": str(os.getpid())}
subprocess.run([sys.executable, "-c", sys.argv[1]], env=environment)
"""
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", parent, child],
            env={**os.environ, "PYTHONPATH": SOURCES},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == "ready\n"
            process.kill()
            assert process.stdout.read() == "its launcher is gone\n"
