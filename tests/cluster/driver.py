"""SkyPilot's driver of clouds on this machine: the Ray program that it generates for a job, on two
real Ray nodes of loopback.

Ray needs an environment of its own (constraints/driver.txt, `make e2e` makes it), which holds the
SkyPilot of constraints/cloud.txt as well: the program is generated here and runs there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.waiting import ClusterError, free_ports, until
from support.paths import ROOT
from support.sky_home import home_of, processes

PYTHON = ROOT / ".venv-driver" / "bin" / "python"
NODES = ("127.0.0.2", "127.0.0.3")
AT_ONCE = 3
"""Jobs at a time; each is a driver, two workers and what they start."""
_RAY = ("--num-cpus", "8", "--object-store-memory", "80000000", "--disable-usage-stats")

GENERATE = """
import json, sys
from sky.backends.task_codegen import RayCodeGen
for job in json.load(sys.stdin):
    code = RayCodeGen()
    code.add_prologue(job["id"])
    code.add_setup(2, {"CPU": 0.5}, job["nodes"], {}, job["logs"])
    code.add_task(2, job["script"], job["name"], {"CPU": 0.5}, job["logs"], job["environment"])
    code.add_epilogue()
    open(job["program"], "w").write(code.build())
print("null")
"""
COUNT = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
ADD = """
import json, sys
from sky.skylet import job_lib
print(json.dumps([job_lib.add_job(name, "me", name, "")[0] for name in json.load(sys.stdin)]))
"""
READ = """
import json, sys
from sky.skylet import job_lib
print(json.dumps([
    [job_lib.get_status_no_lock(job).value, job_lib.get_exit_codes(job)]
    for job in json.load(sys.stdin)
]))
"""
DECIDE = """
import asyncio, json, sys
import sky
from sky.backends import CloudVmRayBackend
from sky.jobs.recovery_strategy import StrategyExecutor
config, lists = json.load(sys.stdin)
task = sky.Task.from_yaml_config(config)
lock = asyncio.Lock()
executor = StrategyExecutor.make(
    "c", CloudVmRayBackend(), task, 1, 0, None, set(), lock, asyncio.Condition(lock)
)
print(json.dumps([executor.should_restart_on_failure(codes) for codes in lists]))
"""


@dataclass(frozen=True)
class Ended:
    """A job as SkyPilot has written it down on its first node: its status, and the exit codes of
    its nodes in any order (None where it has none)."""

    status: str
    codes: tuple[int, ...] | None


class Driver:
    """Two Ray nodes that share `home`, and the jobs that are run on them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.temp = tempfile.mkdtemp(prefix="ray-")
        """The paths of Ray's sockets have to be short."""
        (home / "sky_workdir").mkdir(parents=True)
        kept = ("PATH", "LANG", "SSL_CERT_FILE")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "HOME": str(home),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "OMP_NUM_THREADS": "1",
        }

    @contextmanager
    def up(self) -> Iterator[Driver]:
        """While the body runs, both nodes are there."""
        (port,) = free_ports(1)
        head = f"{NODES[0]}:{port}"
        self.environment["RAY_ADDRESS"] = head
        first = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.temp}")
        try:
            for count, more in enumerate((first, [f"--address={head}"]), 1):
                self._start(*more, f"--node-ip-address={NODES[count - 1]}", *_RAY)
                until(partial(self._has, count), f"{count} Ray nodes", 120, every=1)
            yield self
        finally:
            self._end()

    def run(self, script: str, jobs: Mapping[str, Mapping[str, str]]) -> dict[str, Ended]:
        """Run the script on both nodes once for each job's environment; how each has ended."""
        ids = self._ask(ADD, list(jobs))
        programs = [self.home / f"job-{number}.py" for number in ids]
        told = [
            {
                "id": number,
                "name": name,
                "script": script,
                "nodes": NODES,
                "logs": str(self.home / "logs" / name),
                "program": str(program),
                "environment": {"SKYPILOT_TASK_ID": name, **environment},
            }
            for (name, environment), number, program in zip(
                jobs.items(), ids, programs, strict=True
            )
        ]
        self._ask(GENERATE, told)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self._drive, programs))
        read = self._ask(READ, ids)
        return {
            name: Ended(status, codes and tuple(codes))
            for name, (status, codes) in zip(jobs, read, strict=True)
        }

    def restarts(self, task: Mapping[str, Any], codes: Sequence[Sequence[int]]) -> list[bool]:
        """For each list of exit codes, whether the controller of this task starts it again."""
        return list(self._ask(DECIDE, [task, codes], sys.executable))

    def kill(self, node: str) -> None:
        """The Ray node at this address is gone at once."""
        for process in processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
                raylet = command[0].endswith("/raylet") and f"--node_ip_address={node}" in command
                if raylet and home_of(process) == str(self.home):
                    os.kill(process, signal.SIGKILL)

    def said(self, name: str) -> str:
        """What both nodes of a job have printed."""
        return "".join(path.read_text() for path in (self.home / "logs" / name).rglob("*.log"))

    def _start(self, *arguments: str) -> None:
        with (self.home / "ray.log").open("ab") as log:
            command = [PYTHON.with_name("ray"), "start", *arguments]
            subprocess.run(command, env=self.environment, stdout=log, stderr=log, check=True)

    def _end(self) -> None:
        """End whatever lives in this home; Ray's processes have sessions of their own."""
        while family := [each for each in processes() if home_of(each) == str(self.home)]:
            for process in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.temp, ignore_errors=True)

    def _has(self, count: int) -> bool:
        done = self._python(PYTHON, COUNT, "")
        return done.returncode == 0 and int(done.stdout.split()[-1]) == count

    def _drive(self, program: Path) -> None:
        with program.with_suffix(".log").open("w") as log:
            subprocess.run(
                [PYTHON, program], env=self.environment, stdout=log, stderr=log, check=False
            )

    def _ask(self, code: str, told: Any, python: str | Path = PYTHON) -> Any:
        done = self._python(python, code, json.dumps(told))
        if done.returncode:
            raise ClusterError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])  # what SkyPilot logs comes before

    def _python(self, python: str | Path, code: str, told: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", code],
            input=told,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
