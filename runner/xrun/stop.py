"""A flag and a deadline: whoever wants the attempt to end sets them, the loop asks once per step."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

PARENT = "XRUN_PARENT"
"""The environment variable that names the process whose death ends this one."""
TOLD = "XRUN_STOP"
"""The one that names the file in which the reason and the deadline of a stop are told."""
SAME_SECONDS = 1.0
"""A deadline that comes forward by less is the same: nobody is told of it."""
GRACE_SECONDS = 25.0
"""How long a stop may take when nobody says more: clouds that send SIGTERM follow with SIGKILL after 30 s."""


class StopFlag:
    """Set by signals (and by a cloud's notice); remembers the first reason and the earliest deadline.

    A signal carries neither: the process that sends it can write both into a file before (`tell`), which `told` names.
    """

    def __init__(
        self, grace: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic, told: Path | None = None
    ) -> None:
        self.grace, self.clock, self.told = grace, clock, told
        self.reason = ""
        self.deadline = float("inf")

    def __bool__(self) -> bool:
        return bool(self.reason)

    def set(self, reason: str, seconds: float | None = None) -> None:
        """Ask to stop within `seconds` (default: the grace period)."""
        self.deadline = min(self.deadline, self.clock() + (self.grace if seconds is None else seconds))
        self.reason = self.reason or reason  # last: a thread that sees the flag sees the deadline too

    def seconds_left(self) -> float:
        """Seconds until the deadline; infinite while nobody asked."""
        return self.deadline - self.clock()

    def tell(self, path: Path) -> None:
        """Write reason and deadline down for a process of this machine that gets a signal next; it has the same clock."""
        with contextlib.suppress(OSError):  # a full disk: then the grace period has to do
            path.write_text(json.dumps([self.reason, self.deadline]))

    def on_signals(self, *numbers: signal.Signals) -> None:
        """Let these signals set the flag instead of what they did before."""
        for number in numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        try:
            reason, deadline = json.loads(self.told.read_text()) if self.told else ("", None)
        except (OSError, ValueError):
            reason, deadline = "", None
        self.set(reason or signal.Signals(number).name, None if deadline is None else deadline - self.clock())


def end_with_parent(number: signal.Signals) -> None:
    """Ask the kernel for this signal when the parent dies (prctl(2), PR_SET_PDEATHSIG), so that no process outlives its run."""
    ctypes.CDLL(None, use_errno=True).prctl(1, int(number))
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), number)  # it died before we asked
