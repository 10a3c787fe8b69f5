"""Which node this is, out of how many, as SkyPilot's environment says; without it, one node."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from .. import environment

_PORTS = range(15_000, 30_000)
"""Where the nodes of a run meet: below the ports that the kernel gives to anybody."""
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Nodes:
    """The nodes that train together: this one's `rank`, all their addresses, and `processes`, how
    many train on each."""

    rank: int = 0
    addresses: tuple[str, ...] = ("127.0.0.1",)
    processes: int = 1

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(self.addresses)

    @property
    def world(self) -> int:
        """Processes on all nodes together."""
        return self.count * self.processes

    @property
    def ranks(self) -> range:
        """The ranks of this node's processes."""
        return range(self.rank * self.processes, (self.rank + 1) * self.processes)

    @property
    def first(self) -> str:
        """The first node's address."""
        return self.addresses[0]

    @property
    def address(self) -> str:
        """This node's address."""
        return self.addresses[self.rank]

    def name(self, node: int) -> str:
        """A node as people know it."""
        return f"node {node} ({self.addresses[node]})"

    def environment(self) -> dict[str, str]:
        """What tells gloo and NCCL the way to the other nodes; empty for one node.

        Without it gloo looks its own host name up, which many machines resolve to 127.0.1.1.
        """
        interface = interface_of(self.address) if self.count > 1 else ""
        return (
            {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
            if interface
            else {}
        )


@dataclass(frozen=True)
class Place:
    """Where this machine stands, in SkyPilot's words; all empty on a machine of one's own."""

    cluster: str = ""
    cloud: str = ""
    region: str = ""
    zone: str = ""


def nodes_of(environ: Mapping[str, str], processes: int = 1) -> Nodes:
    """This node's place among the others; `processes` train on each where SkyPilot says nothing."""
    addresses = tuple(environ.get("SKYPILOT_NODE_IPS", "").split())
    if not addresses:
        return Nodes(processes=processes)
    rank = int(environ.get("SKYPILOT_NODE_RANK") or 0)
    if len(addresses) == 1:
        addresses = Nodes.addresses
    return Nodes(rank, addresses, accelerators_of(environ) or 1)


def accelerators_of(environ: Mapping[str, str]) -> int:
    """How many accelerators this node has, as far as SkyPilot says."""
    return int(float(environ.get("SKYPILOT_NUM_GPUS_PER_NODE") or 0))


def place_of(environ: Mapping[str, str]) -> Place:
    """Where this machine stands; what cannot be read is unknown. SkyPilot 0.14 says `cluster_name`
    of what others called `cluster`."""
    try:
        info = json.loads(environ.get("SKYPILOT_CLUSTER_INFO") or "{}")
    except ValueError:
        info = {}
    known = info if isinstance(info, dict) else {}
    text = {name: str(known.get(name) or "") for name in ("cloud", "region", "zone")}
    cluster = str(known.get("cluster_name") or known.get("cluster") or "")
    return Place(cluster=cluster, **{**text, "cloud": text["cloud"].lower()})


def meeting_port(run: str, environ: Mapping[str, str]) -> int:
    """The port at which a run's nodes meet on the first one: every node works out the same.

    Two runs on one machine meet at different ones, and so do two jobs of one run.
    """
    name = f"{run} {environ.get('SKYPILOT_TASK_ID', '')}"
    by_name = _PORTS[zlib.crc32(name.encode()) % len(_PORTS)]
    return int(environment.PORT.of(environ) or by_name)


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address; "" if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            wanted = socket.gethostbyname(address)
        except OSError:
            return ""
        if wanted.startswith("127."):
            return "lo"
        return next(
            (name for _, name in socket.if_nameindex() if _address(probe, name) == wanted), ""
        )


def _address(probe: socket.socket, interface: str) -> str:
    try:
        answer = fcntl.ioctl(
            probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15])
        )
    except OSError:
        return ""  # it has none
    return socket.inet_ntoa(answer[20:24])
