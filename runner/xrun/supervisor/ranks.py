"""The training processes of one node, from outside: started, watched, told to stop, ended; how they
ended and what they said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import environment
from ..errors import EX_TEMPFAIL, AttemptEnd
from ..files import read_json
from ..machine.heartbeat import Limits, Watch
from ..machine.nodes import Nodes
from ..machine.stop import NOBODY_ASKED, StopFlag
from ..run.plan import Plan
from ..run.record import Failure

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
DETERMINISTIC = {"NCCL_NVLS_ENABLE": "0"}
"""What `train.deterministic` needs of NCCL, unless somebody has set it otherwise: where the switch
between H100s sums (NVLS), the same call gives other bits each time (NVIDIA/nccl#1497)."""
Start = Callable[[dict[str, str], Path], "subprocess.Popen[bytes]"]
"""Starts a rank with this environment, whose output goes into this file."""


@dataclass(frozen=True)
class Outcome:
    """How ranks have ended: one exit code for all of them, and what the failed one says."""

    code: int
    failure: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """As nodes tell each other."""
        return {"code": self.code, "failure": self.failure.to_json() if self.failure else None}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Outcome:
        """Read what `to_json` wrote."""
        failure = told.get("failure")
        return cls(told["code"], Failure.from_json(failure) if failure else None)


class Ranks:
    """The ranks of this node in one attempt, from their start on. All ranks of all nodes meet at
    `port` of the first node; `more` goes into their environment."""

    def __init__(
        self,
        plan: Plan,
        nodes: Nodes,
        logs: Path,
        stop: StopFlag,
        port: int,
        start: Start,
        more: Mapping[str, str],
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
        self.processes = []
        for local, rank in enumerate(nodes.ranks):
            own = {
                **rank_environment(plan, nodes, local, port),
                **more,
                environment.STOP.name: str(self._told),
                environment.HEARTBEAT.name: str(hearts[local]),
            }
            self.processes.append(start(own, logs / f"rank{rank}.log"))

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
            lingers = time.monotonic() - self.failed_at > LINGER_SECONDS
            if lingers or self.stop.seconds_left() < -LINGER_SECONDS:
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

    def outcome(self) -> Outcome:
        """How they have ended."""
        codes = {
            rank: process.returncode
            for rank, process in zip(self.nodes.ranks, self.processes, strict=True)
        }
        if self.hung:
            return Outcome(EX_TEMPFAIL, Failure(self.hung, code=EX_TEMPFAIL))
        code = gravest(list(codes.values()))
        return Outcome(code, read_failure(self.logs, codes) if code else None)

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


def rank_environment(plan: Plan, nodes: Nodes, local: int, port: int) -> dict[str, str]:
    """What one rank finds in its environment: the names that torch and Accelerate read."""
    processors = len(os.sched_getaffinity(0))
    threads = 1 if plan.is_exact else max(1, processors // nodes.processes)
    ours = nodes.environment() | ON_PROCESSORS | (DETERMINISTIC if plan.is_deterministic else {})
    return {
        "RANK": str(nodes.ranks[local]),
        "LOCAL_RANK": str(local),
        "GROUP_RANK": str(nodes.rank),
        "WORLD_SIZE": str(nodes.world),
        "LOCAL_WORLD_SIZE": str(nodes.processes),
        "MASTER_ADDR": nodes.first,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        environment.PROJECT.name: plan.project,
        environment.PARENT.name: str(os.getpid()),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ.get(name, value) for name, value in ours.items()},
        **plan.env,
    }


def gravest(codes: list[int]) -> int:
    """One exit code for all ranks: a known refusal before "come back", that before 0; 1 and signals
    count as "come back"."""
    known = [code for code in codes if 2 <= code <= 7]
    return known[0] if known else EX_TEMPFAIL if any(codes) else 0


def gravest_of(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome for all nodes: the failure that is its cause, and what only noticed that another
    one went away comes last."""
    code = gravest([outcome.code for outcome in outcomes])

    def rank(failure: Failure) -> int:
        if failure.parts or (code != EX_TEMPFAIL and failure.code == code):
            return 0
        if failure.end != AttemptEnd.OUTSIDE:
            return 1
        return 2 if failure.code is None else 3

    failures = (outcome.failure for outcome in outcomes if outcome.failure is not None)
    return Outcome(code, min(failures, key=rank, default=None))


def read_failure(logs: Path, ranks: Mapping[int, int]) -> Failure | None:
    """What the first failed rank has written down, or what its exit code tells; None if all stopped
    because they were told to. `ranks`: each one's exit code."""
    codes = list(ranks.values())
    written = [failure for rank in ranks if (failure := _failure(logs, rank)) is not None]
    known = [each for each in written if each.code in codes and each.code == gravest(codes)]
    killed = any(code in (-signal.SIGKILL, -signal.SIGTERM) for code in codes)
    if known or (written and not killed):
        return (known or sorted(written, key=lambda failure: failure.time))[0]
    if all(code in (0, EX_TEMPFAIL) for code in codes):
        return None
    by_signal = [(rank, signal.Signals(-code).name) for rank, code in ranks.items() if code < 0]
    ended = [f"rank {rank} was ended by {name}." for rank, name in by_signal]
    end = AttemptEnd.OUTSIDE if killed else AttemptEnd.OWN
    return Failure((ended or [f"the ranks ended with {codes}."])[0], end)


def _failure(logs: Path, rank: int) -> Failure | None:
    """What a rank has written down; None if that is nothing, or was cut short, as on a full
    disk."""
    written = read_json(logs / f"failure-{rank}.json")
    return replace(Failure.from_json(written), rank=rank) if written else None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
