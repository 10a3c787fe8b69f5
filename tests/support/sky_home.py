"""A person's SkyPilot in a HOME of its own: real prices, three clouds enabled, and an API server
where a test launches.

SkyPilot reads HOME when it is imported, so whatever asks it is a process of its own. Nothing of it
is patched: the catalogs lie where it keeps them, and that the clouds are enabled is written with
its own functions, as `sky check` does after asking them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from .paths import FIXTURES, SOURCES
from .running import Done

CATALOGS = FIXTURES / "catalogs" / "v8"
CLOUDS = ("aws", "nebius", "verda")
SMALL = {
    "IS_SKYPILOT_SERVER": "true",
    "SKYPILOT_POD_CPU_CORE_LIMIT": "1",
    "SKYPILOT_POD_MEMORY_GB_LIMIT": "4",
}
"""A server that takes this machine for a small one starts one job controller and not a dozen."""
ENABLE = """
import sys
from sky import check, global_user_state
from sky.clouds import CloudCapability
global_user_state.set_enabled_clouds(sys.argv[1:], CloudCapability.COMPUTE, "default")
global_user_state.set_allowed_clouds(check._get_workspace_allowed_clouds("default"), "default")
"""


class SkyHome:
    """The HOME; `environment` is what a process needs to be this person's."""

    def __init__(self, folder: Path, config: str = "{}") -> None:
        self.folder = folder
        shutil.copytree(CATALOGS, folder / ".sky" / "catalogs" / "v8")
        (folder / ".sky" / "config.yaml").write_text(config)
        self.environment = {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": SOURCES,
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
        }

    def enable(self, *clouds: str) -> None:
        """As `sky check` leaves it, had it asked these clouds."""
        done = self.python(ENABLE, *clouds)
        assert done.code == 0, done.err

    def python(self, code: str, *arguments: str, cwd: Path | None = None) -> Done:
        """Run Python code as this person."""
        return self.run(sys.executable, "-c", code, *arguments, cwd=cwd)

    def xrun(self, *arguments: str, cwd: Path | None = None) -> Done:
        """Run the `xrun` command as this person."""
        return self.run(sys.executable, "-m", "xrun", *arguments, cwd=cwd)

    def run(self, *command: str, cwd: Path | None = None) -> Done:
        """Run a program to its end."""
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


class ApiServer:
    """SkyPilot's API server of a HOME, with the job controller inside; a context manager."""

    def __init__(self, home: SkyHome) -> None:
        self.home = home

    def __enter__(self) -> Self:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home.environment["SKYPILOT_API_SERVER_LOCAL_PORT"] = str(self.port)
        with (self.home.folder / "api_server.log").open("ab") as log:
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sky.server.server",
                    "--host=127.0.0.1",
                    f"--port={self.port}",
                ],
                cwd=self.home.folder,
                env=self.home.environment | SMALL,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._until_it_answers()
        self.home.enable(*CLOUDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while family := [process for process in processes() if self._owns(process)]:
            for process in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self.child.poll()
        self.child.wait()

    def _owns(self, process: int) -> bool:
        """Some of its processes have sessions of their own, others write their title over their
        environment."""
        with contextlib.suppress(OSError):
            return os.getsid(process) == self.child.pid or home_of(process) == str(self.home.folder)
        return False

    def _until_it_answers(self) -> None:
        """It answers, and has itself asked every cloud, as it does when it starts."""
        end, log = time.monotonic() + 180, self.home.folder / "api_server.log"
        while not (self._answers() and "on-boot-check finished" in log.read_text()):
            assert self.child.poll() is None, log.read_text()
            assert time.monotonic() < end, "SkyPilot's API server did not start within 3 minutes"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=5):  # noqa: S310  a constant address
                return True
        except OSError:
            return False


def free_port() -> int:
    """A free port for a server whose queue finds a free one as well: SkyPilot derives it from the
    first."""
    while True:
        port = random.randrange(10_000, 30_000)
        if all(map(is_free, (port, 50_000 + (11 + port - 46_580) % 10_000))):
            return port


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def processes() -> list[int]:
    """Every process of this machine but this one."""
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and int(path.name) != os.getpid()
    ]


def home_of(process: int) -> str:
    """A process's HOME; "" for one that has ended or is somebody else's."""
    try:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((value[5:].decode() for value in environment if value.startswith(b"HOME=")), "")
