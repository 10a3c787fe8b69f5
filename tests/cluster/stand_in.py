"""Stands where `~/xrun/python` is: arrives at once, and as an entrypoint does what the story says
of its node.

STORY is JSON: a node's rank -> `[when, what]`. When: `together` (both have started) or `last` (the
other node's script has ended). What: an exit code, a signal's name, `script SIGNAL` for one to the
script that has started it, `stay` until SIGTERM and then end with 75, as who has saved does, or
`never begin`, which is to end with 75 before the run is this attempt's.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.05)


def script_of(rank: str) -> Path:
    return Path(os.environ["STAGE"], rank)


def has_ended(rank: str) -> bool:
    try:
        os.kill(int(script_of(rank).read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # ends with its parent, as the entrypoint does
    rank = os.environ["SKYPILOT_NODE_RANK"]
    when, what = json.loads(os.environ["STORY"])[rank]
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(75))
    script_of(rank).with_suffix(".new").write_text(str(os.getppid()))
    script_of(rank).with_suffix(".new").rename(script_of(rank))
    if what == "never begin":
        os._exit(75)
    if rank == "0":
        Path(os.environ["XRUN_BEGUN"]).touch()
    other = "1" if rank == "0" else "0"
    until(script_of(other).exists)
    if when == "last":
        until(lambda: has_ended(other))
    if what == "stay":
        signal.pause()
    if not isinstance(what, str):
        os._exit(what)
    *script, name = what.split()
    number = signal.Signals[name]
    if number != signal.SIGKILL and not script:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getppid() if script else os.getpid(), number)
    signal.pause()


if __name__ == "__main__" and "xrun.supervisor.arrive" not in sys.argv:
    main()
