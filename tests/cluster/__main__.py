"""`python -m cluster [FOLDER]`: set the one-machine cluster up, say where it is, and take it down
when the input ends; a line before that starts the API server and its controllers again.

Whoever asked for the cluster holds the other end of the standard input: however that process ends,
the cluster ends with it. Every process of the cluster is or becomes a child of this one
(PR_SET_CHILD_SUBREAPER), so none is forgotten and no other is hit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from cluster.api_server import ApiServer
from cluster.daemons import Daemons, Layout
from cluster.processes import descendants
from cluster.waiting import ClusterError

_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """One line of JSON on the standard output once the cluster is up: `{"root": ..., "environment":
    ...}` or `{"error": ...}`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _end)
    layout = Layout(
        Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="xrun-cluster-"))
    )
    try:
        server, answer = _set_up(layout)
        _say(answer)
        for _ in sys.stdin:
            server.restart()
            _say({})
    except ClusterError as error:
        _say({"error": str(error), "root": str(layout.root)})
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        end_descendants()
        if len(sys.argv) < 2:
            shutil.rmtree(layout.root, ignore_errors=True)
    return 0


def end_descendants() -> None:
    """End every process that this one has started, directly or not; nothing of theirs is kept, so
    none is asked."""
    while living := descendants(os.getpid()):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.1)


def _set_up(layout: Layout) -> tuple[ApiServer, dict[str, object]]:
    server = ApiServer(layout)
    daemons = Daemons(layout, server.node_environment())
    server.prepare(daemons.ssh_config())
    daemons.start()
    server.start()
    environment = server.environment() | {"SLURM_CONF": str(layout.slurm_conf)}
    return server, {"root": str(layout.root), "environment": environment, "url": server.url}


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _reap() -> None:
    """Take the exit codes of the children that have ended, so that they are gone."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main())
