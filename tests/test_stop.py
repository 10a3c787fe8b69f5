"""The stop flag, set by real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xrun
from xrun.stop import GRACE_SECONDS, StopFlag


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
def test_a_signal_sets_the_flag_and_nothing_else(signals: tuple[signal.Signals, ...], number: int) -> None:
    """A real signal to this process sets the flag with its name as the reason, and the process goes on."""
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
    """Whoever asks later can bring the deadline forward, never put it off, and does not change the reason."""
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


def test_signals_interrupt_no_system_call() -> None:
    """A process in the middle of a read gets its bytes though signals arrive, and ends as it wants to."""
    code = """
import signal, sys
from xrun.stop import StopFlag
flag = StopFlag()
flag.on_signals(signal.SIGTERM, signal.SIGINT)
print("ready", flush=True)
line = sys.stdin.readline()
print(line.strip(), flag.reason, flush=True)
sys.exit(75)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(Path(xrun.__file__).parents[1])},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate("line\n", timeout=60)
    assert (out, child.returncode) == ("line SIGTERM\n", 75)
