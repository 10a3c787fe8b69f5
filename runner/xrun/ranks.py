"""The training processes of one node, from outside: their environment, their exit codes, what the failed one has said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from .errors import COME_BACK
from .plan import Plan
from .stop import PARENT


def rank_environment(plan: Plan, rank: int, port: int) -> dict[str, str]:
    """What one rank finds in its environment: the names that torch and Accelerate read."""
    processors = len(os.sched_getaffinity(0))
    exact = plan.recipe["train"]["reduction"] == "exact"
    threads = 1 if exact else max(1, processors // plan.processes)
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(plan.processes), "LOCAL_WORLD_SIZE": str(plan.processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads),
        "XRUN_PROJECT": plan.project, PARENT: str(os.getpid()), "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # spinning starves the others
        **plan.recipe["env"],
    }  # fmt: skip


def gravest(codes: list[int]) -> int:
    """One exit code for all ranks: a known refusal before "come back", that before 0; 1 and signals count as "come back"."""
    known = [code for code in codes if 2 <= code <= 7]
    return known[0] if known else COME_BACK if any(codes) else 0


def read_failure(logs: Path, codes: list[int]) -> dict[str, Any]:
    """What the first failed rank has written down, or what its exit code tells."""
    written = [failure for path in sorted(logs.glob("failure-*.json")) if (failure := _failure(path))]
    known = [failure for failure in written if failure["code"] in codes and failure["code"] == gravest(codes)]
    ended = [f"rank {rank} was ended by {signal.Signals(-code).name}" for rank, code in enumerate(codes) if code < 0]
    killed = any(code in (-signal.SIGKILL, -signal.SIGTERM) for code in codes)
    if known or (written and not killed):
        return (known or sorted(written, key=lambda failure: failure["time"]))[0]
    kind = "outside" if killed else "own"
    asked = all(code in (0, COME_BACK) for code in codes)  # they stopped because they were told to
    return {} if asked else {"kind": kind, "message": (ended or [f"the ranks ended with {codes}"])[0] + "."}


def _failure(path: Path) -> dict[str, Any] | None:
    """What a rank has written down; None if it was cut short, as on a full disk."""
    try:
        return {**json.loads(path.read_text()), "rank": path.stem.removeprefix("failure-")}
    except ValueError:
        return None


def send(ranks: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """A signal to every rank that still lives."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
