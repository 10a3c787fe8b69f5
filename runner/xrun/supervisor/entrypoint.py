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
    last_words = os.environ.pop(environment.LAST_WORDS.name, "")
    end_with_parent(signal.SIGTERM)
    wish = wish_file(Path(path), os.getpid())
    stop = StopFlag(told=wish)
    try:
        wish.unlink(missing_ok=True)  # it was another process's of this number
        stop.on_signals(*STOPS)
        plan = Plan.read(Path(path))
        nodes = nodes_of(os.environ, plan.processes)
        node = (FollowingNode if nodes.rank else LeadingNode)(plan, stop, nodes)
        code = node.run()
        _leave(last_words, node.last_words)
        return code
    except XrunError as error:
        return _refused(error, last_words)
    except OSError as error:
        return _refused(refusal(error), last_words)
    except Stopped:
        print("Stopped before this attempt trained anything.", file=sys.stderr, flush=True)
        return Stopped.exit_code
    finally:
        with contextlib.suppress(OSError):
            wish.unlink(missing_ok=True)


def _refused(error: XrunError, last_words: str) -> int:
    print(f"xrun: {error}", file=sys.stderr, flush=True)
    _leave(last_words, str(error))
    return error.exit_code


def _leave(path: str, text: str) -> None:
    """For the program that has started the attempt, if it wants the sentence: best effort, as
    printing is."""
    if path and text:
        with contextlib.suppress(OSError):
            Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
