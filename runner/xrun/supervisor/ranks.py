"""The training processes of one node, from outside: started, watched, told to stop, ended; how they
ended and what they said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import EX_TEMPFAIL
from ..machine.heartbeat import HEARTBEAT, Limits, Watch
from ..machine.nodes import Nodes
from ..machine.stop import NOBODY_ASKED, PARENT, TOLD, StopFlag
from ..run.plan import Plan

POLL_SECONDS = 0.1
LINGER_SECONDS = 5.0
"""How long the other ranks may take to end by themselves after one has failed."""
STACKS_SECONDS = 2.0
"""How long ranks that hang have to write down where."""
ON_PROCESSORS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""What makes training on processors fast, unless somebody has set it otherwise; docs/performance.md
has the numbers.

What a step frees stays for the next one: by default glibc gives large tensors back to the kernel,
which then clears their pages anew in each step. (Not OMP_WAIT_POLICY=PASSIVE: a small step takes a
seventh longer where threads sleep while they wait.)
"""
Start = Callable[[dict[str, str], Path], "subprocess.Popen[bytes]"]
"""Starts a rank with this environment, whose output goes into this file."""


class Ranks:
    """The ranks of this node in one attempt, from their start on; `meeting` is where all ranks of
    all nodes meet."""

    def __init__(
        self,
        plan: Plan,
        nodes: Nodes,
        logs: Path,
        stop: StopFlag,
        meeting: tuple[str, int],
        start: Start,
        **more: str,
    ) -> None:
        self.nodes, self.logs, self.stop = nodes, logs, stop
        self.failed_at = float("inf")
        """When a rank here or on another node had failed."""
        self.hung = ""
        self._told, self._known = logs / f"stop-{nodes.rank}.json", NOBODY_ASKED
        hearts = [logs / f"heartbeat-{rank}" for rank in nodes.ranks]
        for path in [self._told, *hearts, *(logs / f"failure-{rank}.json" for rank in nodes.ranks)]:
            path.unlink(missing_ok=True)
        self._watch = Watch(hearts, Limits.of(os.environ))
        self.processes = [
            start(
                {
                    **rank_environment(plan, nodes, local, *meeting),
                    **more,
                    TOLD: str(self._told),
                    HEARTBEAT: str(hearts[local]),
                },
                logs / f"rank{rank}.log",
            )
            for local, rank in enumerate(nodes.ranks)
        ]

    def wait(self, look: Callable[[], None]) -> None:
        """Until every rank has ended: pass a stop on, and end the others when one has failed, hangs
        or time is up.

        `look` is called many times a second.
        """
        while any(rank.poll() is None for rank in self.processes):
            look()
            if self.stop.is_news(self._known):
                self._pass_on()
            if any(rank.returncode for rank in self.processes):
                self.fail()
            self._end_hanging()
            if (
                self.stop.seconds_left() < -LINGER_SECONDS
                or time.monotonic() - self.failed_at > LINGER_SECONDS
            ):
                self.send(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def fail(self) -> None:
        """A rank has failed, here or on another node: the others may end by themselves, then they
        are ended."""
        self.failed_at = min(self.failed_at, time.monotonic())

    def send(self, number: signal.Signals) -> None:
        """A signal to every rank that still lives."""
        for rank in self.processes:
            if rank.poll() is None:
                rank.send_signal(number)

    def outcome(self) -> tuple[int, dict[str, Any]]:
        """The gravest exit code and what the failed rank has said."""
        codes = {
            rank: process.returncode
            for rank, process in zip(self.nodes.ranks, self.processes, strict=True)
        }
        code = gravest(list(codes.values()))
        if self.hung:
            return EX_TEMPFAIL, {"code": EX_TEMPFAIL, "kind": "own", "message": self.hung}
        return code, {} if code == 0 else read_failure(self.logs, codes)

    def _pass_on(self) -> None:
        self._known = self.stop.deadline, self.stop.at_once
        self.stop.tell(self._told)
        self.send(signal.SIGTERM)

    def _end_hanging(self) -> None:
        """Ranks that give no sign of life write down where they are, and then are ended."""
        if self.hung or not (hung := self._watch.hang()):
            return
        self.hung = f"{hung} Where they were stands in {self.logs}/rank*.log."
        self.send(signal.SIGUSR1)
        self.failed_at = time.monotonic() - LINGER_SECONDS + STACKS_SECONDS


def rank_environment(
    plan: Plan, nodes: Nodes, local: int, address: str, port: int
) -> dict[str, str]:
    """What one rank finds in its environment: the names that torch and Accelerate read."""
    processors = len(os.sched_getaffinity(0))
    exact = plan.recipe["train"]["reduction"] == "exact"
    threads = 1 if exact else max(1, processors // nodes.processes)
    ways = {name: os.environ.get(name, value) for name, value in nodes.environment().items()}
    return {
        "RANK": str(nodes.ranks[local]),
        "LOCAL_RANK": str(local),
        "GROUP_RANK": str(nodes.rank),
        "WORLD_SIZE": str(nodes.world),
        "LOCAL_WORLD_SIZE": str(nodes.processes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        **ways,
        "XRUN_PROJECT": plan.project,
        PARENT: str(os.getpid()),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ.get(name, value) for name, value in ON_PROCESSORS.items()},
        **plan.recipe["env"],
    }


def gravest(codes: list[int]) -> int:
    """One exit code for all ranks: a known refusal before "come back", that before 0; 1 and signals
    count as "come back"."""
    known = [code for code in codes if 2 <= code <= 7]
    return known[0] if known else EX_TEMPFAIL if any(codes) else 0


def read_failure(logs: Path, ranks: Mapping[int, int]) -> dict[str, Any]:
    """What the first failed rank has written down, or what its exit code tells; `ranks`: each one's
    exit code."""
    codes = list(ranks.values())
    written = [failure for rank in ranks if (failure := _failure(logs / f"failure-{rank}.json"))]
    known = [
        failure
        for failure in written
        if failure["code"] in codes and failure["code"] == gravest(codes)
    ]
    ended = [
        f"rank {rank} was ended by {signal.Signals(-code).name}"
        for rank, code in ranks.items()
        if code < 0
    ]
    killed = any(code in (-signal.SIGKILL, -signal.SIGTERM) for code in codes)
    if known or (written and not killed):
        return (known or sorted(written, key=lambda failure: failure["time"]))[0]
    kind = "outside" if killed else "own"
    asked = all(
        code in (0, EX_TEMPFAIL) for code in codes
    )  # they stopped because they were told to
    return (
        {}
        if asked
        else {"kind": kind, "message": (ended or [f"the ranks ended with {codes}"])[0] + "."}
    )


def _failure(path: Path) -> dict[str, Any] | None:
    """What a rank has written down; None if that is nothing, or was cut short, as on a full
    disk."""
    try:
        return {**json.loads(path.read_text()), "rank": path.stem.removeprefix("failure-")}
    except (FileNotFoundError, ValueError):
        return None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
