"""`Cluster`: the one-machine cluster as a test sees it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.daemons import tail
from cluster.waiting import ClusterError, until

TESTS = Path(__file__).parent.parent
ENDED = (
    "SUCCEEDED",
    "CANCELLED",
    "FAILED",
    "FAILED_SETUP",
    "FAILED_PRECHECKS",
    "FAILED_NO_RESOURCE",
    "FAILED_CONTROLLER",
)


@dataclass(frozen=True)
class Job:
    """A managed job as the API server has it."""

    job_id: int
    job_name: str
    status: str
    recovery_count: int
    failure_reason: str | None
    end_at: float | None

    @property
    def ended(self) -> bool:
        """Whether it will never run again."""
        return self.status in ENDED


class Cluster:
    """A context manager: set up in about a minute, gone afterwards, whatever happened in between.

    `environment` is what a process needs to talk to the cluster: HOME, the API server's port and
    SLURM_CONF.
    """

    def __enter__(self) -> Self:
        self._owner = subprocess.Popen(
            [sys.executable, "-m", "cluster"],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._owner.stdin is not None
        assert self._owner.stdout is not None
        answer = json.loads(
            self._owner.stdout.readline() or '{"error": "the cluster ended before it was up"}'
        )
        if "error" in answer:
            self._owner.communicate()
            raise ClusterError(answer["error"])
        self.root, self.url = Path(answer["root"]), answer["url"]
        self.environment: dict[str, str] = answer["environment"]
        self._asking = self.start(
            sys.executable, "-m", "cluster.asking", stdin=subprocess.PIPE, cwd=TESTS
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._asking.kill()
        self._asking.communicate()
        self._owner.communicate()

    def export(self, variables: Mapping[str, str]) -> None:
        """Give the nodes of jobs that are launched from now on these variables, as an image or a
        machine's profile would."""
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        (self.root / "node.env").write_text("".join(lines))

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program that sees the cluster and does not outlive this process; its errors go to
        logs/programs.log."""
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "env": self.environment,
            **options,
        }
        with (self.root / "logs" / "programs.log").open("a") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command], text=True, **{"stderr": log, **options}
            )

    def run(self, *command: str, seconds: float = 300, **options: Any) -> str:
        """Run a program that sees the cluster; what it printed. ClusterError if it fails."""
        process = self.start(*command, **{"stderr": subprocess.STDOUT, **options})
        try:
            said = process.communicate(timeout=seconds)[0]
        finally:
            process.kill()
        if process.returncode:
            raise ClusterError(
                f"`{shlex.join(command)}` ended with {process.returncode}:\n{said[-4000:]}"
            )
        return str(said)

    def sky(self, *arguments: str, seconds: float = 300) -> str:
        """Run the `sky` command."""
        return self.run(str(Path(sys.executable).with_name("sky")), *arguments, seconds=seconds)

    def jobs(self) -> list[Job]:
        """All managed jobs that the API server knows, the oldest first."""
        assert self._asking.stdin is not None
        assert self._asking.stdout is not None
        self._asking.stdin.write("\n")
        self._asking.stdin.flush()
        line = self._asking.stdout.readline()
        if not line:
            raise ClusterError(
                f"the API server's jobs cannot be read: {self.root}/logs/programs.log"
            )
        return sorted((Job(**record) for record in json.loads(line)), key=lambda job: job.job_id)

    def job(self, name: str) -> Job | None:
        """The newest managed job of this name."""
        return next((job for job in reversed(self.jobs()) if job.job_name == name), None)

    def wait_for(self, name: str, *states: str, seconds: float = 400) -> Job:
        """Wait until the job of this name is in one of these states.

        Raises:
            ClusterError: it has ended in another, or is not there in time.
        """

        def there() -> Job | None:
            job = self.job(name)
            if job is None or job.status in states:
                return job
            self._check(job)
            return None

        job: Job = self._bounded(there, f"{name} being {' or '.join(states)}", seconds, every=4.0)
        return job

    def until(self, name: str, happened: Callable[[], Any], what: str, seconds: float) -> Any:
        """Wait for something that a job does.

        Raises:
            ClusterError: the job ended before, or it did not happen in time; with what the job and
                its controller have said.
        """
        looks = itertools.count(1)

        def there() -> Any:
            if found := happened():
                return found
            if next(looks) % 20 == 0:
                self._check(self.job(name))
            return None

        return self._bounded(there, what, seconds, every=1.0)

    def _check(self, job: Job | None) -> None:
        if job is not None and job.ended:
            raise ClusterError(f"the job {job.job_name} is {job.status}: {job.failure_reason}")

    def _bounded(self, there: Callable[[], Any], what: str, seconds: float, every: float) -> Any:
        """To ask for jobs costs the API server a process and seconds of a core, so it is not asked
        often."""
        try:
            return until(there, what, seconds, every=every)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.told()}") from None

    def told(self) -> str:
        """What the machines and the job controllers have printed lately."""
        home = self.root / "home"
        logs = [
            *home.glob("sky_logs/jobs_controller/[0-9]*.log"),
            *home.glob(".sky_clusters/*/sky_logs/*/*.log"),
        ]
        logs += [*home.glob(".sky_clusters/*/sky_logs/*/tasks/*.log")]
        return "\n".join(
            f"== {log.relative_to(home)}\n{tail(log, 40)}"
            for log in sorted(logs, key=lambda log: log.stat().st_mtime)
        )

    def slurm_jobs(self) -> dict[str, str]:
        """The Slurm jobs that hold nodes now: number -> the name that SkyPilot gave the machine."""
        lines = self.run(
            "squeue", "--noheader", "--states=running", "--format=%i %j", seconds=60
        ).splitlines()
        return dict(line.split() for line in lines)

    def kill_controller(self) -> None:
        """Kill the API server with its job controllers, and start it again; returns when it
        answers."""
        assert self._owner.stdin is not None
        assert self._owner.stdout is not None
        self._owner.stdin.write("restart\n")
        self._owner.stdin.flush()
        answer = json.loads(self._owner.stdout.readline() or '{"error": "the cluster has ended"}')
        if "error" in answer:
            raise ClusterError(answer["error"])

    def controller_said(self, name: str) -> str:
        """What the controller of a managed job has logged."""
        job = self.job(name)
        assert job is not None, f"there is no job {name}"
        log = self.root / "home" / "sky_logs" / "jobs_controller" / f"{job.job_id}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def preempt(self, name: str, *, notice: bool = True) -> float:
        """Take the machine of a managed job away, as its cloud would; returns when (time.time()).

        With notice: SIGTERM, and SIGKILL 30 s later. Without: everything on the machine is gone at
        once.
        """
        number = self.machine(name)
        at = time.time()
        if not notice:
            for pid in self.processes_of(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.run("scancel", number, seconds=60)
        return at

    def machine(self, name: str) -> str:
        """The Slurm job that is the machine of a managed job now.

        Raises:
            ClusterError: it has none, or several.
        """
        there = self.slurm_jobs().items()
        numbers = [number for number, machine in there if machine.startswith(f"{name}-")]
        if len(numbers) != 1:
            raise ClusterError(f"{name} has {len(numbers)} machines: {there}")
        return numbers[0]

    def processes_of(self, machine: str) -> list[int]:
        """What runs on the machine that is this Slurm job."""
        marks = {
            f"SLURM_JOB_ID={machine}".encode(),
            f"SLURM_CONF={self.root}/slurm/slurm.conf".encode(),
        }
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marks <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
        return found
