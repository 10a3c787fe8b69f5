"""A SkyPilot API server with the job controller inside, in a HOME of its own, and what its nodes
need where there is no internet.

SkyPilot fetches `uv` from its home page on every new node, asks it for Python 3.10 and installs
itself with it. Here a `curl` on the nodes' PATH answers that one address with a `uv` from the
package index, which takes this Python for 3.10 and keeps what it has downloaded and built for the
next node. All else is SkyPilot's own doing.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from cluster.daemons import Layout, tail
from cluster.processes import descendants
from cluster.waiting import ClusterError, free_ports, is_free, until

CONFIG = """\
allowed_clouds: [slurm]
jobs: {{controller: {{consolidation_mode: true}}}}
slurm:
  allowed_clusters: [local]
  provision_timeout: 120
  cluster_configs:
    local:
      tmpdir: {tmpdir}
      partition_configs:
        main: {{pricing: {{cpu: 2}}}}
        north: {{pricing: {{cpu: 5}}}}
        south: {{pricing: {{cpu: 6}}}}
        sure: {{pricing: {{cpu: 50}}}}
"""
"""A place that is named is waited for for a day, where nothing else is said."""

CURL = """\
#!/bin/sh
case "$*" in
  *https://astral.sh/uv/install.sh*)
    echo 'mkdir -p "$UV_INSTALL_DIR" && ln -sf {uv} "$UV_INSTALL_DIR/uv"' ;;
  *) exec {curl} "$@" ;;
esac
"""

UV = """\
#!/bin/sh
for argument; do
  shift
  [ "$argument" = 3.10 ] && argument={python}
  set -- "$@" "$argument"
done
export UV_CACHE_DIR={cache} UV_LINK_MODE=hardlink UV_SYSTEM_CERTS=1 UV_PYTHON_DOWNLOADS=never
{index}exec {uv} "$@"
"""

SITECUSTOMIZE = """\
import importlib.util
import sys


class Patched:
    # The controller asks two public addresses whether there is a network, before it looks after
    # a job.
    def find_spec(self, name, path=None, target=None):
        if name != "sky.backends.backend_utils":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module._TEST_IP_LIST[:] = [{health!r}]

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Patched())
"""

SMALL = {"SKYPILOT_POD_MEMORY_GB_LIMIT": "4"}
"""SkyPilot fills the memory with job controllers, which all start when the first job does; a few
jobs need few."""
_OWN = ("SKYPILOT_", "XRUN_", "HF_", "WANDB_", "PYTEST_", "PYTHONPATH", "SLURM_")


class ApiServer:
    """The server's process and its files."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.port = server_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def prepare(self, ssh_config: str) -> None:
        """Write the HOME: which cloud there is, how it is reached, what its nodes find on their
        PATH."""
        home = self.layout.home
        for folder in (".sky", ".slurm", ".ssh"):
            (home / folder).mkdir(mode=0o700, exist_ok=True)
        tmpdir = self.layout.folder("nodes")
        (home / ".sky" / "config.yaml").write_text(CONFIG.format(tmpdir=tmpdir))
        (home / ".slurm" / "config").write_text(ssh_config)
        (home / ".profile").write_text(
            f"export PATH={self.layout.bin}:$PATH\n. {self.layout.root}/node.env\n"
        )
        (self.layout.root / "node.env").touch()
        self._install_plugin()
        self._write_pip_conf()
        self._write_programs()

    def start(self) -> None:
        """Start the server; afterwards it answers.

        Raises:
            ClusterError: it ended, or does not answer within 3 minutes.
        """
        site = self.layout.folder("site")
        (site / "sitecustomize.py").write_text(
            SITECUSTOMIZE.format(health=f"{self.url}/api/health")
        )
        environment = (
            self.environment() | {"PYTHONPATH": str(site), "IS_SKYPILOT_SERVER": "true"} | SMALL
        )
        with (self.layout.logs / "api_server.log").open("ab") as log:
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sky.server.server",
                    "--host=127.0.0.1",
                    f"--port={self.port}",
                ],
                cwd=self.layout.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, "the API server's answer", 180, every=0.5, alive=self.check)

    def restart(self) -> None:
        """Kill the server and its job controllers, as a crash of the machine would, and start them
        again."""
        workers = descendants(self.child.pid)
        self.child.kill()  # first: it would start others in their place
        self.child.wait()
        killed = {*workers, *filter(_is_controller, descendants(os.getpid()))}
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: all(map(_is_gone, killed)), "the killed processes being gone", 60)
        until(lambda: is_free(self.port), "the API server's port being free", 120)
        self.start()

    def _install_plugin(self) -> None:
        """As a person does, before the server starts."""
        subprocess.run(
            [sys.executable, "-m", "xrun", "setup", "sky", "--yes"],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def check(self) -> None:
        """The server is alive.

        Raises:
            ClusterError: it has ended; with the end of what it printed.
        """
        if self.child.poll() is not None:
            raise ClusterError(
                f"the API server ended with {self.child.returncode}:"
                f" {tail(self.layout.logs / 'api_server.log')}"
            )

    def environment(self) -> dict[str, str]:
        """What the server and everybody who talks to it has in the environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
        return (
            kept
            | self.node_environment()
            | {
                "HOME": str(self.layout.home),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "SKYPILOT_API_SERVER_LOCAL_PORT": str(self.port),
                "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
                "TMPDIR": str(self.layout.folder("tmp")),
            }
        )

    def node_environment(self) -> dict[str, str]:
        """What a login finds, besides where it is: the way to the package index."""
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
        here = {name: os.environ[name] for name in names if name in os.environ}
        cache = subprocess.run(
            [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True
        ).stdout.strip()
        return here | {
            "PIP_CONFIG_FILE": str(self.layout.root / "pip.conf"),
            "PIP_CACHE_DIR": cache,
        }

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=5) as answer:  # noqa: S310 - a constant address
                return bool(answer.status == 200)
        except OSError:
            return False

    def _write_pip_conf(self) -> None:
        """pip's configuration of this machine's user, which another HOME would hide."""
        lines = [f"{key} = {value}" for key, value in pip_configuration().items()]
        (self.layout.root / "pip.conf").write_text("\n".join(["[global]", *lines]) + "\n")

    def _write_programs(self) -> None:
        uv = shutil.which("uv") or self._installed_uv()
        python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        programs = {
            "uv": UV.format(
                uv=uv,
                python=python,
                cache=self.layout.folder("uv-cache"),
                index=uv_index(pip_configuration()),
            ),
            "curl": CURL.format(uv=self.layout.bin / "uv", curl=shutil.which("curl")),
            "python3": f'#!/bin/sh\nexec {python} "$@"\n',
        }
        for name, text in programs.items():
            (self.layout.bin / name).write_text(text)
            (self.layout.bin / name).chmod(0o755)

    def _installed_uv(self) -> Path:
        target = self.layout.folder("tools")
        command = [sys.executable, "-m", "pip", "install", "-qq", "--target", str(target), "uv"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"uv cannot be installed: {done.stderr}")
        return target / "bin" / "uv"


def _is_gone(pid: int) -> bool:
    """Whether nothing is left of a process that was killed: one whose code nobody has taken still
    lives for SkyPilot, which would wait for it."""
    with contextlib.suppress(ChildProcessError):  # another one's, which takes it
        os.waitpid(pid, os.WNOHANG)
    return not Path(f"/proc/{pid}").exists()


def _is_controller(pid: int) -> bool:
    """Whether a process is a job controller of SkyPilot's; they have sessions of their own."""
    with contextlib.suppress(OSError):
        return b"sky.jobs.controller" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def server_port() -> int:
    """A free port for the server; it takes another one for its queues, at a fixed distance
    (sky.server.requests.queues)."""
    while True:
        (port,) = free_ports(1)
        if is_free(50_000 + (11 + port - 46_580) % 10_000):
            return port


def pip_configuration() -> dict[str, Any]:
    """What `pip config list` knows from files, such as the package index of this machine."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = [line.partition("=") for line in lines if line.startswith(("global.", "install."))]
    return {key.partition(".")[2]: ast.literal_eval(value) for key, _, value in pairs}


def uv_index(pip: dict[str, Any]) -> str:
    """Where pip finds packages, as lines of shell that tell uv the same."""
    names = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS"}
    return "".join(
        f"export {uv}={shlex.quote(pip[key])}\n" for key, uv in names.items() if key in pip
    )
