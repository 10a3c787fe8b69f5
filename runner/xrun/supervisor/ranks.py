"""The training processes of one node, from outside: started, watched, told to stop, ended; how they
ended and what they said."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .. import clock, environment
from ..errors import EX_TEMPFAIL, AttemptEnd
from ..files import read_json, reserve
from ..machine.heartbeat import Limits, Watch, heartbeat_file, lay_out
from ..machine.nodes import Nodes
from ..machine.stop import NOBODY_ASKED, StopFlag
from ..run.logs import end_file
from ..run.plan import Plan
from ..run.record import Failure, Outcome

POLL_SECONDS = 0.1
LINGER_SECONDS = 5.0
"""How long the other ranks may take to end by themselves after one has failed."""
STACKS_SECONDS = 2.0
"""How long ranks that hang have to write down where."""
_END_BYTES = 64 * 1024
"""Room for what a rank says at its end."""
ON_PROCESSORS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""What makes training on processors fast, unless somebody has set it otherwise; docs/performance.md
has the numbers.

What a step frees stays for the next one: by default glibc gives large tensors back to the kernel,
which then clears their pages anew in each step. (Not OMP_WAIT_POLICY=PASSIVE: a small step takes a
seventh longer where threads sleep while they wait.)
"""
ON_GPUS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""What lets training use a GPU's memory to the end, unless somebody has set it otherwise: torch's
allocator lets its pieces grow instead of keeping ones that fit nothing (docs/performance.md)."""
_OLD_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Under which it may be set as well."""
ON_PROCESSORS_SHARDED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
"""What a rank of a sharded model has in their place: it gathers and drops a layer at a time, and
what it would keep of those, and of activations, can be more than its part of the model
(docs/decisions/0069, 0074)."""
DETERMINISTIC = {"NCCL_NVLS_ENABLE": "0"}
"""What `train.deterministic` needs of NCCL, unless somebody has set it otherwise: where the switch
between H100s sums (NVLS), the same call gives other bits each time (NVIDIA/nccl#1497)."""
Start = Callable[[dict[str, str], Path], "subprocess.Popen[bytes]"]
"""Starts a rank with this environment, whose output goes into this file."""


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
        self.trained = True
        """False once they were ended before they could train anything."""
        self._ended: set[int] = set()
        self._told, self._known = logs / f"stop-{nodes.rank}.json", NOBODY_ASKED
        hearts = [heartbeat_file(logs, rank) for rank in nodes.ranks]
        self._told.unlink(missing_ok=True)
        for path in hearts:
            lay_out(path)
        for rank in nodes.ranks:
            reserve(end_file(logs, rank), _END_BYTES)
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
        or time is up. Where nothing was trained yet there is nothing to wait for.

        `look` is called many times a second.
        """
        while any(rank.poll() is None for rank in self.processes):
            look()
            if self.stop.is_news(self._known):
                self._pass_on()
            if any(rank.returncode for rank in self.processes):
                self.fail()
            self._end_hanging()
            if self.stop.at_once and self.starting:
                self.trained = False
            lingers = time.monotonic() - self.failed_at > LINGER_SECONDS
            if not self.trained or lingers or self.stop.seconds_left() < -LINGER_SECONDS:
                self._end_all()
            time.sleep(POLL_SECONDS)

    @property
    def starting(self) -> bool:
        """Whether no rank has trained anything yet."""
        return self._watch.starting

    def fail(self) -> None:
        """A rank has failed, here or on another node: the others may end by themselves, then they
        are ended."""
        self.failed_at = min(self.failed_at, time.monotonic())

    def _end_all(self) -> None:
        """End whoever still lives, and remember that it was no accident."""
        ranks = zip(self.nodes.ranks, self.processes, strict=True)
        self._ended |= {rank for rank, process in ranks if process.poll() is None}
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """A signal to every rank that still lives."""
        for rank in self.processes:
            if rank.poll() is None:
                rank.send_signal(number)

    def outcome(self) -> Outcome:
        """How they have ended."""
        if self.hung:
            failure = Failure(self.hung, code=EX_TEMPFAIL, again=True, hung=True)
            return Outcome(EX_TEMPFAIL, failure)
        ranks = zip(self.nodes.ranks, self.processes, strict=True)
        return gravest_of([self._end_of(rank, process.returncode) for rank, process in ranks])

    def _end_of(self, rank: int, code: int) -> Outcome:
        """How one has ended: as it says itself, else as its exit code tells; that of a process
        which says nothing may be a component's, and means nothing."""
        told = read_json(end_file(self.logs, rank), dict)
        with contextlib.suppress(ValueError):  # a component's own file, or a torn one
            if told is not None:
                outcome = Outcome.from_json(told)
                failure = outcome.failure and replace(outcome.failure, rank=rank)
                return Outcome(outcome.code, failure)
        if rank in self._ended:
            return Outcome(EX_TEMPFAIL)
        return Outcome(EX_TEMPFAIL, replace(silent_end(rank, code), rank=rank))

    def _pass_on(self) -> None:
        self._known = self.stop.deadline, self.stop.at_once
        self.stop.tell(self._told)
        self.send(signal.SIGTERM)

    def _end_hanging(self) -> None:
        """Ranks that give no sign of life write down where they are, and then are ended."""
        if self.hung or not (hung := self._watch.hang()):
            return
        self.hung = f"{hung} {self.logs}/rank*.log shows where they were."
        self.send(signal.SIGUSR1)
        self.failed_at = time.monotonic() - LINGER_SECONDS + STACKS_SECONDS


def rank_environment(plan: Plan, nodes: Nodes, local: int, port: int) -> dict[str, str]:
    """What one rank finds in its environment: the names that torch and Accelerate read."""
    processors = len(os.sched_getaffinity(0))
    threads = 1 if plan.is_exact else max(1, processors // nodes.processes)
    memory = ON_PROCESSORS_SHARDED if plan.is_sharded else ON_PROCESSORS
    ours = nodes.environment() | memory | (DETERMINISTIC if plan.is_deterministic else {})
    if not any(name in os.environ or name in plan.env for name in _OLD_NAMES):
        ours = ours | ON_GPUS
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
        environment.EPOCH.name: repr(clock.epoch),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ.get(name, value) for name, value in ours.items()},
        **plan.env,
    }


def silent_end(rank: int, code: int) -> Failure:
    """What ended a rank that has not said it itself."""
    if code >= 0:
        what = f"Rank {rank} ended with exit code {code}, and the run is not finished."
        return Failure(what, code=1, hint="A component or a library may have called os._exit().")
    name = signal.Signals(-code).name
    if -code in (signal.SIGKILL, signal.SIGTERM):
        return Failure(f"rank {rank} was ended by {name}.", AttemptEnd.OUTSIDE)
    return Failure(f"rank {rank} was ended by {name}.", code=1)


def gravest(codes: list[int]) -> int:
    """One exit code for all ranks: a known refusal before "come back", that before 0; 1 counts as
    "come back"."""
    known = [code for code in codes if 2 <= code <= 7]
    return known[0] if known else EX_TEMPFAIL if any(codes) else 0


def gravest_of(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome for all ranks, or for all nodes: the failure that is its cause, the earliest of
    several; what only noticed that another one went away comes last."""
    code = gravest([outcome.code for outcome in outcomes])

    def order(failure: Failure) -> tuple[int, float]:
        if failure.parts or (code != EX_TEMPFAIL and failure.code == code):
            return 0, failure.time
        if failure.end == AttemptEnd.OUTSIDE:
            return (1 if failure.code is None else 3), failure.time
        return 2, failure.time

    failures = (outcome.failure for outcome in outcomes if outcome.failure is not None)
    return Outcome(code, min(failures, key=order, default=None))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
