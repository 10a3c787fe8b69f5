"""Signals as every process of xrun meets them: held back until it can answer, and what a terminal
sends to all of its processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a run to stop."""
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def held_back(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Processes that are started meanwhile get these signals when they let them in: before, Python
    would end with a traceback, or not be asked at all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer(handler: Handler, numbers: Iterable[signal.Signals]) -> dict[signal.Signals, Any]:
    """Handle these signals from now on, and let in those that were held back; the handlers before.
    A SIGHUP that was ignored (nohup) stays so; see `is_wish`."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        if (number, before[number]) != (signal.SIGHUP, signal.SIG_IGN):
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    return before


@contextmanager
def answered(handler: Handler, numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """As `answer`, for as long as this lasts."""
    before = answer(handler, numbers)
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, other)


def is_wish(number: int) -> bool:
    """Whether somebody means what a signal says. That the terminal is lost means nothing: nobody
    has asked for an end, and a training outlives it."""
    return number != signal.SIGHUP or not _HAD_TERMINAL or _has_terminal()


def ignore(numbers: Iterable[signal.Signals]) -> None:
    """These mean nothing to this process and those that it starts; held back ones are dropped."""
    known = list(numbers)
    for number in known:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, known)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal now."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


_HAD_TERMINAL = _has_terminal()
