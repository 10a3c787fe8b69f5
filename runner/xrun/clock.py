"""A clock that only goes forward. A machine's own is set back and forth while a run is trained:
every distance in time is measured by this one, and every time of an attempt is told by it."""

from __future__ import annotations

import time

from .environment import EPOCH

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Seconds that go on while the machine sleeps, and that nobody sets back."""
    return time.clock_gettime(_CLOCK)


epoch = float(EPOCH.of() or time.time() - boot_seconds())
"""What has to be added for seconds since 1970, as the machine's clock said when the attempt began;
the processes of an attempt on one machine share it."""


def now() -> float:
    """Seconds since 1970; the difference between two calls is the time that has passed, in any two
    processes of an attempt on one machine. Other machines' clocks may say something else."""
    return epoch + boot_seconds()
