"""A real Slurm of two nodes and the sshd that SkyPilot reaches it by, on this machine, with every
file under one folder.

Nothing of the machine's own is read or written: no /etc/slurm, no /etc/munge, no account's home
folder. What runs on a "node" sees the cluster's HOME; `libnss_wrapper` makes `~user` that folder
too, because SkyPilot's node setup writes to `~user/.ssh`.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.waiting import ClusterError, free_ports, until

PACKAGES = Path(__file__).with_name("packages.txt")
"""Debian's packages that have the programs."""
PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sshd",
    "ssh-keygen",
    "rsync",
    "nc",
    "curl",
    "setpriv",
)
NODES = ("0x7f000002", "0x7f000003")
"""A node's name has to resolve to an address of its own; so written it is one (127.0.0.2), and
/etc/hosts needs no line."""
PARTITIONS = {"north": NODES[0], "south": NODES[1], "sure": ",".join(NODES)}
"""Places beside the default partition, and their nodes: two that play spot, one that plays on
demand."""
CORES = 8
"""Cores of a node as Slurm counts them, however many there are."""


@dataclass(frozen=True)
class Layout:
    """Where the cluster's files lie."""

    root: Path

    def folder(self, name: str) -> Path:
        """A folder of this name; made if it is not there, for its owner only."""
        path = self.root / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    @property
    def home(self) -> Path:
        """HOME of the API server, of the login node and of whoever launches jobs."""
        return self.folder("home")

    @property
    def bin(self) -> Path:
        """Programs that the nodes find before all others."""
        return self.folder("bin")

    @property
    def logs(self) -> Path:
        """What each daemon printed."""
        return self.folder("logs")

    @property
    def slurm_conf(self) -> Path:
        """The configuration that every Slurm program gets through SLURM_CONF."""
        return self.folder("slurm") / "slurm.conf"


def missing() -> str:
    """What this machine lacks for a cluster, as a sentence; empty if nothing."""
    absent = [name for name in PROGRAMS if not _program(name)]
    if absent or not _nss_wrapper():
        packages = " ".join(PACKAGES.read_text().split())
        return (
            f"A one-machine cluster needs {', '.join(absent) or 'libnss_wrapper'}: apt-get install"
            f" {packages}"
        )
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return (
            f"A one-machine cluster needs this machine's name, {socket.gethostname()}, to resolve:"
            " add it to /etc/hosts"
        )
    return ""


class Daemons:
    """The processes of a Slurm cluster, children of this process that run in the foreground."""

    def __init__(self, layout: Layout, node_environment: Mapping[str, str]) -> None:
        self.layout = layout
        self.node_environment = dict(node_environment)
        self.ssh_port, self.controller_port, *self.node_ports = free_ports(2 + len(NODES))
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start everything; afterwards a login over ssh finds both nodes idle.

        Raises:
            ClusterError: one of them ended, or the nodes are not idle within a minute.
        """
        self._munged()
        self._slurm()
        self._sshd()
        until(self._idle, "both nodes being idle", 60, alive=self.check)

    def check(self) -> None:
        """Every daemon is alive.

        Raises:
            ClusterError: one has ended; with the end of what it printed.
        """
        for name, child in self.children.items():
            if child.poll() is not None:
                raise ClusterError(
                    f"{name} ended with {child.returncode}:"
                    f" {tail(self.layout.logs / f'{name}.log')}"
                )

    def ssh_config(self) -> str:
        """How the login node is reached, as `~/.slurm/config` has it."""
        return (
            f"Host local\n  HostName 127.0.0.1\n  Port {self.ssh_port}\n  User"
            f" {getpass.getuser()}\n  IdentityFile {self.layout.root}/ssh/id\n  IdentitiesOnly"
            " yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        )

    def slurm(self, *command: str) -> str:
        """What a Slurm command prints, such as squeue; raises CalledProcessError if it fails."""
        environment = os.environ | {"SLURM_CONF": str(self.layout.slurm_conf)}
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def _run(self, name: str, *command: str) -> None:
        environment = os.environ | {"SLURM_CONF": str(self.layout.slurm_conf)}
        with (self.layout.logs / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [_program(command[0]), *command[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _munged(self) -> None:
        folder = self.layout.folder("munge")
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        for path in (self.layout.root, folder):
            path.chmod(0o755)  # munged refuses a socket that not everybody can reach
        names = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self._run(
            "munged",
            "munged",
            "--foreground",
            *(f"--{key}={folder / name}" for key, name in names.items()),
        )
        until((folder / "socket").exists, "munged's socket", 20, alive=self.check)

    def _slurm(self) -> None:
        self.layout.folder("slurm").chmod(0o755)
        self.layout.slurm_conf.write_text("\n".join(self._slurm_conf()) + "\n")
        self._run("slurmctld", "slurmctld", "-D", "-f", str(self.layout.slurm_conf))
        for node in NODES:
            self._run(node, "slurmd", "-D", "-N", node, "-f", str(self.layout.slurm_conf))

    def _slurm_conf(self) -> Iterator[str]:
        state, user, name = self.layout.folder("slurm"), getpass.getuser(), socket.gethostname()
        yield "ClusterName=xrun"
        yield f"SlurmctldHost={name}(127.0.0.1)"
        yield f"SlurmctldPort={self.controller_port}"
        yield f"AuthInfo=socket={self.layout.root}/munge/socket"
        yield "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none"
        yield "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core"
        yield f"SlurmUser={user}\nSlurmdUser={user}"
        yield f"StateSaveLocation={state}/controller\nSlurmctldPidFile={state}/controller.pid"
        yield f"SlurmdSpoolDir={state}/%n\nSlurmdPidFile={state}/%n.pid"
        yield "SlurmdParameters=config_overrides\nReturnToService=2"
        address = socket.gethostbyname(name)  # what a node takes for its own address
        each = f"NodeHostname={name} NodeAddr={address} CPUs={CORES} RealMemory=16000 State=UNKNOWN"
        for node, port in zip(NODES, self.node_ports, strict=True):
            yield f"NodeName={node} Port={port} {each}"
        yield f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
        for partition, nodes in PARTITIONS.items():
            yield f"PartitionName={partition} Nodes={nodes} MaxTime=INFINITE State=UP"

    def _idle(self) -> bool:
        try:
            return self.slurm(
                "sinfo", "--noheader", "--Node", "--partition=main", "--format=%t"
            ).split() == ["idle"] * len(NODES)
        except subprocess.CalledProcessError:
            return False

    def _sshd(self) -> None:
        folder = self.layout.folder("ssh")
        for key in ("host", "id"):
            subprocess.run(
                [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)],
                check=True,
            )
        shutil.copy(folder / "id.pub", folder / "authorized")
        (folder / "config").write_text("\n".join(self._sshd_config(folder)) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(
                mode=0o755, exist_ok=True
            )  # sshd refuses to start as root without it
        self._run("sshd", "sshd", "-D", "-e", "-f", str(folder / "config"))
        until(lambda: _answers(self.ssh_port), "sshd's answer", 20, alive=self.check)

    def _sshd_config(self, folder: Path) -> Iterator[str]:
        yield (
            f"Port {self.ssh_port}\nListenAddress 127.0.0.1\nPidFile {folder}/pid\nHostKey"
            f" {folder}/host"
        )
        yield (
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM"
            " no\nPasswordAuthentication no"
        )
        yield (
            "PermitRootLogin prohibit-password\nMaxSessions 200\nMaxStartups 200\nPrintMotd"
            " no\nPrintLastLog no"
        )
        accounts = self._accounts()
        environment = self.node_environment | accounts | {"SLURM_CONF": str(self.layout.slurm_conf)}
        yield "SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items())

    def _accounts(self) -> dict[str, str]:
        """Variables that make this user's home folder the cluster's, wherever an account is looked
        up."""
        passwd = self.layout.root / "passwd"
        passwd.write_text(
            f"{getpass.getuser()}:x:{os.getuid()}:{os.getgid()}::{self.layout.home}:/bin/bash\n"
        )
        return {
            "HOME": str(self.layout.home),
            "LD_PRELOAD": _nss_wrapper(),
            "NSS_WRAPPER_PASSWD": str(passwd),
            "NSS_WRAPPER_GROUP": "/etc/group",
        }


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error."""
    if not log.exists():
        return f"{log} is not there"
    said = [
        line for line in log.read_text(errors="replace").splitlines() if "<sky-payload>" not in line
    ]  # its spinner
    return "\n".join(said[-lines:])


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""


def _nss_wrapper() -> str:
    return next((str(path) for path in Path("/usr/lib").glob("*/libnss_wrapper.so")), "")


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) == 0
