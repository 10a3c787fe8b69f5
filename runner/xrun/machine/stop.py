"""A flag and a deadline: whoever wants the attempt to end sets them, the loop asks once per
step."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from .. import environment, signals
from ..errors import Stopped
from ..files import read_json

NOBODY_ASKED = (float("inf"), False)
"""The deadline of no stop at all, and that it is not at once."""
SAME_SECONDS = 1.0
"""A deadline that comes forward by less is the same: nobody is told of it."""
GRACE_SECONDS = 25.0
"""How long a stop may take when nobody says more: clouds that send SIGTERM follow with SIGKILL
after 30 s."""
ORPHANED = "its launcher is gone"
"""The reason where the process that started this one was killed."""
_FLAGS, _EXITING = 6, 0x4
"""Where a process's flags are in /proc/PID/stat, counted from its state (proc_pid_stat(5)), and the
one that says it is ending (PF_EXITING of Linux)."""
SPARE_SECONDS = 5.0
"""What a deadline leaves until the machine is gone: for a save that takes longer than those before,
and the attempt's own end."""


def wish_file(plan: Path, process: int) -> Path:
    """Where whoever asks a process that runs a plan to stop writes down why and until when, before
    it sends the signal."""
    return plan.with_name(f"stop-{process}.json")


class StopFlag:
    """Set by signals (and by a cloud's notice); remembers the first reason and the earliest
    deadline.

    Who gives a deadline leaves it to the loop how to use the time until then; who gives none wants
    it to stop `at_once`. A signal carries nothing: the process that sends it can write all of it
    into a file before (`tell`), which `told` names.
    """

    def __init__(
        self,
        grace: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        told: Path | None = None,
    ) -> None:
        self.grace, self.clock, self.told = grace, clock, told
        self.reason = ""
        self.deadline = float("inf")
        self.at_once = False
        self._interrupts = False

    def __bool__(self) -> bool:
        return bool(self.reason)

    def set(self, reason: str, seconds: float | None = None, at_once: bool = False) -> None:
        """Ask to stop within `seconds`; without them at once, and within the grace period."""
        self.deadline = min(
            self.deadline, self.clock() + (self.grace if seconds is None else seconds)
        )
        self.at_once |= at_once or seconds is None
        self.reason = (
            self.reason or reason
        )  # last: a thread that sees the flag sees the deadline too

    def seconds_left(self) -> float:
        """Seconds until the deadline; infinite while nobody asked."""
        return self.deadline - self.clock()

    def is_due(self, seconds: float) -> bool:
        """Whether who needs `seconds` before the deadline has to leave now."""
        return bool(self) and (self.at_once or self.seconds_left() <= seconds)

    def is_news(self, known: tuple[float, bool]) -> bool:
        """Whether others have to be told, who know of this deadline and whether it is at once."""
        return self.deadline < known[0] - SAME_SECONDS or self.at_once > known[1]

    def tell(self, path: Path) -> None:
        """Write everything down for a process of this machine that gets a signal next; it has the
        same clock."""
        with contextlib.suppress(OSError):  # a full disk: then the grace period has to do
            path.write_text(json.dumps([self.reason, self.deadline, self.at_once]))

    def on_signals(self, *numbers: signal.Signals) -> None:
        """Let these signals set the flag instead of what they did before; see `signals.answer`."""
        signals.answer(self._on_signal, numbers)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """While this lasts nothing has been trained that could be saved, so a signal interrupts
        whatever the main thread waits for.

        Raises:
            Stopped: one has come, maybe before.
        """
        self._interrupts = True
        try:
            if self:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not signals.is_wish(number):
            return
        reason, seconds, at_once = signal.Signals(number).name, None, True
        if number == signal.SIGTERM and _is_orphan():
            reason = ORPHANED  # the kernel has sent it
        if self.told and (told := read_json(self.told, list)):
            with contextlib.suppress(ValueError, TypeError):
                reason, deadline, at_once = told
                seconds = deadline - self.clock()
        self.set(reason, seconds, at_once)
        if self._interrupts:
            self._interrupts = False
            raise Stopped


def end_with_parent(number: signal.Signals) -> None:
    """Ask the kernel for this signal when the parent dies (prctl(2), PR_SET_PDEATHSIG), so that no
    process outlives its run. Only Linux has it; elsewhere nothing is asked."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, int(number))
    if _is_orphan():
        os.kill(os.getpid(), number)  # it died before we asked


def _is_orphan() -> bool:
    """Whether the process that has started this one, and said so, is gone or about to be."""
    parent = environment.PARENT.of()
    return parent != "" and (parent != str(os.getppid()) or _is_ending(parent))


def _is_ending(process: str) -> bool:
    """Whether the first thread of this process has ended. The kernel sends its signal then; the
    process is the parent until the last of its threads has ended too."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # no Linux, or it has gone this moment
        return sys.platform == "linux"
    return bool(int(stat.rpartition(")")[2].split()[_FLAGS]) & _EXITING)
