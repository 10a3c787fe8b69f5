"""One attempt, from outside: take the run's lease, start the ranks, pass signals on, record how it
ended, exit with its code.

`python -m xrun.supervisor.entrypoint PLAN` is what a container (or a local run) starts. It starts
the ranks itself because torchrun and `accelerate launch` turn a child's 75 into 1 and end children
before they have saved. It never imports torch, so it is there at once and cannot fall with the
training.

On several nodes every node starts it. Node 0 does all this (`LeadingNode`); the others
(`FollowingNode`) start their ranks when it says so, end when it does, and leave the code to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from .. import environment, streams
from ..errors import Stopped, XrunError
from ..files import refusal
from ..machine.nodes import nodes_of
from ..machine.stop import StopFlag, end_with_parent, wish_file
from ..run.plan import Plan
from ..signals import STOPS
from .leading import LeadingNode
from .node import FollowingNode


def main(path: str) -> int:
    """Run one attempt of the plan at `path`; returns its exit code."""
    streams.patient()
    environment.name_the_user()
    end_with_parent(signal.SIGTERM)
    wish = wish_file(Path(path), os.getpid())
    stop = StopFlag(told=wish)
    try:
        wish.unlink(missing_ok=True)  # it was another process's of this number
        stop.on_signals(*STOPS)
        plan = Plan.read(Path(path))
        nodes = nodes_of(os.environ, plan.processes)
        return (FollowingNode if nodes.rank else LeadingNode)(plan, stop, nodes).run()
    except XrunError as error:
        return _refused(error)
    except OSError as error:
        return _refused(refusal(error))
    except Stopped:
        print("Stopped before this attempt trained anything.", file=sys.stderr, flush=True)
        return Stopped.exit_code
    finally:
        with contextlib.suppress(OSError):
            wish.unlink(missing_ok=True)


def _refused(error: XrunError) -> int:
    print(f"xrun: {error}", file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
