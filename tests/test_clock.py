"""A clock that only goes forward."""

from __future__ import annotations

import subprocess
import sys
import time

from support.paths import SOURCES
from xrun import clock
from xrun.environment import EPOCH


def ask(code: str, environ: dict[str, str]) -> list[float]:
    """Numbers that another process prints."""
    command = [sys.executable, "-c", f"import time; from xrun import clock; {code}"]
    environment = {"PYTHONPATH": SOURCES, **environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_it_is_the_machines_at_the_beginning() -> None:
    (now,) = ask("print(clock.now())", {})
    assert abs(now - time.time()) < 60


def test_a_machines_clock_that_is_set_changes_nothing() -> None:
    """A day back: the next moment is later, by what has passed."""
    set_back = "a = clock.now(); time.time = lambda: a - 86400; b = clock.now(); print(a, b)"
    before, after = ask(set_back, {})
    assert before <= after < before + 60


def test_processes_of_an_attempt_share_it() -> None:
    """Whatever the machine's clock says when the second one starts."""
    told = {EPOCH.name: repr(clock.epoch + 86400)}
    before = clock.now()
    (there,) = ask("print(clock.now())", told)
    assert before <= there - 86400 <= clock.now()
