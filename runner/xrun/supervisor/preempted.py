"""What SkyPilot's hook runs on Kubernetes before a pod goes: the attempt in it is asked to save and
waited for, since the pod ends as soon as this does.

python -m xrun.supervisor.preempted ~/xrun/runs/RUN/plan.json
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from ..machine.stop import GRACE_SECONDS, StopFlag, wish_file

REASON = "Kubernetes takes this pod away"
SECONDS = 60
"""How long the pod waits for this: for a last save, and for the attempt's own end."""
_ENTRYPOINT = b"xrun.supervisor.entrypoint"
_POLL_SECONDS = 0.1


def main(plan: str, seconds: float = SECONDS) -> int:
    """Ask the attempts of the plan at this path, and wait until they have ended, or for so long."""
    path, deadline = Path(plan).expanduser(), time.monotonic() + seconds
    wish = StopFlag()
    wish.set(REASON, min(GRACE_SECONDS, seconds), at_once=True)
    asked = attempts_of(path)
    for process in asked:
        wish.tell(wish_file(path, process))
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process, signal.SIGTERM)
    while set(asked) & set(attempts_of(path)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return 0


def attempts_of(plan: Path) -> list[int]:
    """The living processes of this machine that have been started as an attempt of this plan."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            words = (process / "cmdline").read_bytes().split(b"\0")
            if _ENTRYPOINT in words and os.fsencode(plan) in words:
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
