"""Sends a run's points to Weights & Biases: a process of its own, so that it can never hold up or
hurt the training.

`python -m xrun.tracker.wandb.sender FOLDER ATTEMPT` follows `FOLDER/metrics.jsonl` while an attempt
lives. On its stdin come the lines `preempting` and `exit CODE`, and its end when the attempt ends;
on its stdout go sentences for people, and the line `stop` when somebody has pressed the stop button
over there. `python -m xrun.tracker.wandb.sender FOLDER --once` sends what is missing and ends. The
exit code is 0 if everything is there, 3 if the run was deleted there, 1 if points still wait in the
folder (for `--once`: 3 if W&B refuses them, 75 if it cannot be reached).

What W&B has decides what is sent: everything after its last row. Nothing else is remembered, so
kills, outages, lost machines and going back to an older step neither lose nor double a row.
`FOLDER/wandb.json` tells how it stands.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from ... import streams
from ...errors import LaunchError, StoreError
from ...files import number, read_json
from ...lock import Held, locked
from ...machine.stop import end_with_parent
from ...run.confirmation import FRESH_SECONDS
from ...run.folder import RunFolder
from ...run.record import AttemptRecord
from ...terminal import only_text
from .library import await_cores
from .orders import Orders
from .sending import PERSON, POLL_SECONDS, Sending, Wish

_LAST_SECONDS = 60.0
"""How long the end of an attempt's sending may take; whoever has started this process may want
less."""
_PERSON_SECONDS = 600.0
"""The same for `xrun sync`, which a person can stop."""


def main(arguments: list[str]) -> int:
    """Send, as the arguments say; returns the exit code."""
    given = _parse(arguments)
    person = given.once and not given.attempt
    orders = Orders(ended=given.once, code=given.code, preempting=given.preempting)
    end_with_parent(signal.SIGTERM)
    if person:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        orders.code = _how_it_stands(RunFolder(given.folder))
        orders.preempting = _is_paused(RunFolder(given.folder))
    else:
        orders.on_signals()
    folder = RunFolder(given.folder)
    plan = folder.plan()
    if plan.wandb is None:
        print(
            f"The recipe of {plan.run} has no tracking.wandb, so there is nowhere to send its"
            " points to.",
            flush=True,
        )
        return LaunchError.exit_code
    seconds = given.seconds
    if seconds is None:
        seconds = _PERSON_SECONDS if person else _LAST_SECONDS
    with contextlib.ExitStack() as stack:
        if not _alone(stack, given.folder / "wandb.lock", orders, wait=not person):
            print(f"{plan.run} is being trained now, and its points are on their way.", flush=True)
            return 0
        wish = Wish(given.folder, given.attempt, seconds, given.said, given.tries)
        return Sending(plan, orders, wish).live()


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; what is not in the module's docstring, a sender passes on when it begins
    anew."""
    parser = argparse.ArgumentParser(prog="xrun.tracker.wandb.sender")
    parser.add_argument("folder", type=Path)
    parser.add_argument("attempt", nargs="?", default="")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--preempting", action="store_true")
    parser.add_argument("--exit", dest="code", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--said", default="")
    parser.add_argument("--tries", type=int, default=0)
    return parser.parse_args(arguments)


def _alone(stack: contextlib.ExitStack, lock: Path, orders: Orders, *, wait: bool) -> bool:
    """Whether this is now the only sender of this machine, until the stack is left; an older one
    may still be sending its last points.

    Of an older attempt's nothing passes any more after a while, even if it holds the lock still: it
    may have been stopped.
    """
    deadline = time.monotonic() + FRESH_SECONDS
    while True:
        try:
            file = stack.enter_context(locked(lock, wait=False))
        except Held:
            if not wait:
                return False
            said = lock.read_text(errors="replace").split()
            if time.monotonic() > deadline and PERSON not in said:
                return True
            orders.listen(POLL_SECONDS)
            continue
        file.seek(0)
        await_cores([int(word) for word in file.read().split() if word.isdecimal()])
        file.truncate(0)
        file.write("" if wait else PERSON)
        file.flush()
        return True


def _how_it_stands(folder: RunFolder) -> int:
    """The exit code that tells W&B how a run has ended that nobody trains now: 0 if it has reached
    its last step."""
    last = max((point["step"] for point in folder.points()), default=-1)
    return 0 if last >= number((read_json(folder.config, dict) or {}).get("steps")) else 1


def _is_paused(folder: RunFolder) -> bool:
    """Whether the run waits at a rung of its sweep."""
    told = (read_json(folder.attempts, list) or ())[-1:]
    with contextlib.suppress(ValueError, StoreError):
        return any(AttemptRecord.from_json(each).is_paused for each in told)
    return False


def main_and_exit(arguments: list[str]) -> NoReturn:
    """Send, below the training's priority, and end at once: the library would try once more to
    finish its run."""
    streams.deaf()
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    only_text()
    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main_and_exit(sys.argv[1:])
