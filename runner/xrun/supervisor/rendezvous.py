"""How the entrypoints of a run's nodes stand together: node 0 leads, the others follow.

Every node is started with the same command at about the same time, some of them later. Node 0 holds
the run's lease, so it says when the ranks start and where they meet, and how the attempt has ended;
the others say when they are asked to stop, when one of their ranks has failed, and how theirs have
ended. It is one TCP connection per node with a JSON object per line. A connection that breaks is a
node that is gone, which the kernel notices within a minute even if that machine has lost its power.
A node that is started again connects again; its connections may arrive in any order, so each one
tells the number of the life that made it, and a later life is never replaced by an earlier one.

Only one's own run is let in; besides, the messages carry nothing that the training's own
connections do not.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import environment
from ..backoff import Backoff
from ..errors import CloudUnavailable
from ..machine.nodes import Nodes

MEETING_SECONDS = 15 * 60.0
"""How long the nodes wait for each other: setting up a new machine takes minutes, and some take
more than others."""
_LOOK_SECONDS = 0.5
"""Two looks whether somebody has asked to stop, while the nodes wait for each other."""
_BACKOFF = Backoff(first=0.5, longest=0.5)
_BIND_SECONDS = 30.0
"""How long an attempt before this one on the same machine may hold the port."""
_HELLO_SECONDS = 10.0
Message = dict[str, Any]
"""`kind` says what it is, `node` from whom."""


class Line:
    """A connection to the `life`th life of `node` that carries messages."""

    def __init__(self, connection: socket.socket, node: int, life: int = 0) -> None:
        self.connection, self.node, self.life = connection, node, life
        self._file = connection.makefile("rb")
        self._listening = False
        self.ended = threading.Event()
        """Set when the other side has hung up, or is gone."""

    def listen(self, heard: Callable[[Line, Message], None]) -> None:
        """Pass on what comes, in a thread; the last message says that the connection is lost."""
        self._listening = True
        in_background(self._listen, heard)

    def read(self) -> Message | None:
        """The next message; None at the end."""
        try:
            message = json.loads(self._file.readline(1 << 20) or "null")
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) and "kind" in message else None

    def send(self, message: Message) -> None:
        """Send it; one that cannot be sent is told by the connection's end."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # ends the thread that listens
        if not self._listening:
            self._free()

    def _listen(self, heard: Callable[[Line, Message], None]) -> None:
        while (message := self.read()) is not None:
            heard(self, {**message, "node": self.node})
        self.ended.set()
        self._free()
        heard(self, {"kind": "lost", "node": self.node})

    def _free(self) -> None:
        self._file.close()
        self.connection.close()


class Leader:
    """Node 0's side. With one node it neither listens nor says anything."""

    def __init__(self, nodes: Nodes, key: str, port: int) -> None:
        self.nodes, self.key = nodes, key
        self.lines: dict[int, Line] = {}
        self._received: queue.Queue[Message] = queue.Queue()
        self._end: Message | None = None
        self._began = False
        self._lock = threading.Condition()
        self._socket = listen_at(nodes.first, port) if nodes.count > 1 else None
        if self._socket is not None:
            in_background(self._accept, self._socket)

    def gather(self, asked: Callable[[], bool], seconds: float = MEETING_SECONDS) -> list[str]:
        """Wait until every node is here, or somebody has asked to stop; the names of those that are
        not."""
        deadline = time.monotonic() + seconds
        with self._lock:
            while (
                len(self.lines) < self.nodes.count - 1
                and time.monotonic() < deadline
                and not asked()
            ):
                self._lock.wait(_LOOK_SECONDS)
            self._began = True
            return [
                self.nodes.name(node)
                for node in range(1, self.nodes.count)
                if node not in self.lines
            ]

    def tell(self, kind: str, **facts: Any) -> None:
        """Say something to every other node."""
        for line in self._here():
            line.send({"kind": kind, **facts})

    def _here(self) -> list[Line]:
        """Every other node's line now; a thread that hears of a loss takes one away."""
        with self._lock:
            return list(self.lines.values())

    def heard(self) -> list[Message]:
        """What the others have said since the last time."""
        return list(drained(self._received))

    def wait(self, seconds: float) -> Message | None:
        """The next thing that somebody says, or None."""
        return next_of(self._received, seconds)

    def close(self, code: int, seconds: float = 0.0) -> None:
        """Tell every node that is here how the attempt has ended, and hang up once they have, or
        after so many seconds."""
        with self._lock:
            self._end = {"kind": "end", "code": code}
        self.tell(**self._end)
        deadline = time.monotonic() + seconds
        for line in self._here():
            line.ended.wait(max(0.0, deadline - time.monotonic()))
            line.close()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(
                    socket.SHUT_RDWR
                )  # wakes the thread that accepts, which would hold the port
            self._socket.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed
                return
            in_background(self._welcome, connection)

    def _welcome(self, connection: socket.socket) -> None:
        connection.settimeout(_HELLO_SECONDS)
        line = Line(connection, 0)
        hello = line.read() or {}
        line.node, line.life = _whole(hello.get("node")), _whole(hello.get("life"))
        if hello.get("key") != self.key or not 0 < line.node < self.nodes.count:
            line.close()
            return
        self._seat(line)

    def _seat(self, line: Line) -> None:
        keep_alive(line.connection)
        with self._lock:
            if self._end is not None or (self._began and line.node in self.lines):
                line.send(self._end or {"kind": "end", "code": CloudUnavailable.exit_code})
                line.close()
                return
            before = self.lines.get(line.node)
            if before is not None and before.life > line.life:
                line.close()  # of a life before the one that is here: it arrives late
                return
            if before is not None:
                before.close()  # the node was started again before the attempt began
            self.lines[line.node] = line
            self._lock.notify_all()
        line.listen(self._hear)

    def _hear(self, line: Line, message: Message) -> None:
        with self._lock:
            if self.lines.get(line.node) is not line:
                return
            if message["kind"] == "lost" and not self._began:
                del self.lines[line.node]
            else:
                self._received.put(message)


class Follower:
    """Another node's side."""

    def __init__(self, nodes: Nodes, key: str, port: int) -> None:
        self.nodes, self.key, self.port = nodes, key, port
        self._received: queue.Queue[Message] = queue.Queue()
        self._line: Line | None = None

    def meet(self, asked: Callable[[], bool], seconds: float = MEETING_SECONDS) -> None:
        """Connect to node 0, which may not be there yet.

        Raises:
            CloudUnavailable: it did not come.
        """
        life = time.time_ns()  # grows from one life of a machine to the next
        try:
            connection = self._connected(asked, time.monotonic() + seconds)
        except OSError as error:
            raise CloudUnavailable(f"{self.nodes.name(0)} cannot be reached: {error}.") from error
        keep_alive(connection)
        self._line = Line(connection, 0, life)
        self._line.send({"kind": "hello", "key": self.key, "node": self.nodes.rank, "life": life})
        self._line.listen(lambda line, message: self._received.put(message))

    def _connected(self, asked: Callable[[], bool], end: float) -> socket.socket:
        def rest(seconds: float) -> bool:
            time.sleep(seconds)
            return asked()

        tries = _BACKOFF.tries(OSError, end=end, sleep=rest)
        return tries(socket.create_connection, (self.nodes.first, self.port), _HELLO_SECONDS)

    def tell(self, kind: str, **facts: Any) -> None:
        """Say something to node 0."""
        if self._line is not None:
            self._line.send({"kind": kind, **facts})

    def heard(self) -> list[Message]:
        """What node 0 has said since the last time."""
        return list(drained(self._received))

    def wait(self, seconds: float) -> Message | None:
        """The next thing that node 0 says, or None."""
        return next_of(self._received, seconds)

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()


def listen_at(address: str, port: int) -> socket.socket:
    """A listening socket at this address, or at all where the machine does not know it (behind a
    translation of addresses).

    Raises:
        CloudUnavailable: somebody else holds the port.
    """
    try:
        tries = _BACKOFF.tries(OSError, end=time.monotonic() + _BIND_SECONDS)
        return tries(_listening, address, port)
    except OSError as error:
        raise CloudUnavailable(
            f"The nodes cannot meet at port {port} of {address}: {error.strerror}.",
            f"{environment.PORT.name} names another port.",
        ) from error


def _listening(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port))
    except OSError:
        return socket.create_server(("", port))


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel ask whether the other machine is still there: after 20 s of silence, three
    times in 30 s."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        (socket.TCP_KEEPIDLE, 20),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 3),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, name, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50_000)


def in_background(target: Callable[..., None], *arguments: Any) -> None:
    """Run it in a thread that holds nothing back."""
    threading.Thread(target=target, args=arguments, name="xrun-rendezvous", daemon=True).start()


def _whole(told: Any) -> int:
    """A number that somebody has said; 0 for anything else."""
    return told if isinstance(told, int) else 0


def drained(received: queue.Queue[Message]) -> list[Message]:
    """Everything that is in a queue now."""
    messages = []
    with contextlib.suppress(queue.Empty):
        while True:
            messages.append(received.get_nowait())
    return messages


def next_of(received: queue.Queue[Message], seconds: float) -> Message | None:
    """The next message of a queue, waiting for it."""
    with contextlib.suppress(queue.Empty):
        return received.get(timeout=max(0.0, seconds))
    return None
