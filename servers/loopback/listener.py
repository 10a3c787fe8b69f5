"""uvicorn in a thread, for servers that tests start and stop by the hundred."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvicorn
from starlette.types import ASGIApp


class Listener(uvicorn.Server):
    """A server that leaves at once when another thread tells it to; uvicorn's own way takes 0.2
    s."""

    def __init__(self, application: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                interface="asgi3",
                lifespan="off",
                http="h11",
                loop="asyncio",
                ws="none",
                proxy_headers=False,
                access_log=False,
                log_config=None,
                log_level="critical",
                timeout_keep_alive=60,
                date_header=False,
            )
        )
        self.started_at_all = threading.Event()

    async def main_loop(self) -> None:
        """Serve until told to leave."""
        self.loop, self.leaving = asyncio.get_running_loop(), asyncio.Event()
        self.started_at_all.set()
        await self.leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, drop every connection, and let what is being answered come to its end."""
        for listening in (each for server in self.servers for each in server.sockets):
            self.loop.remove_reader(listening.fileno())  # nothing more is accepted
        await self._turns()  # asyncio loses a connection that it hands to a closed server
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        await self._turns()
        while self.server_state.tasks:
            await asyncio.sleep(0.001)

    async def _turns(self) -> None:
        """Drop every connection; one that was accepted just now is known a turn or two later."""
        for _ in range(3):
            await asyncio.sleep(0)
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    def leave(self) -> None:
        """Make it leave, from another thread."""
        self.started_at_all.wait()
        self.loop.call_soon_threadsafe(self.leaving.set)


TAKEN: set[int] = set()
"""Ports that servers of this process have had."""


def listen(port: int) -> socket.socket:
    """A listening socket that says TCP, so that asyncio turns Nagle's delay of 40 ms off;
    `socket.create_server` makes none.

    Port 0 is one that no server of this process has had: clients remember what a server knows by
    its address. hf_xet, which wrote to a Hub, sends to a new one at the same address nothing that
    the old one had, and is refused whenever it tries.
    """
    listening = _bound(port)
    while port == 0 and listening.getsockname()[1] in TAKEN:
        listening.close()
        listening = _bound(port)
    TAKEN.add(listening.getsockname()[1])
    listening.listen(512)
    return listening


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
