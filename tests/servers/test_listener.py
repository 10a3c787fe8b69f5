"""A server that leaves takes its connections with it: one that stays open would fail whatever test
runs when it is collected."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import warnings

from starlette.responses import Response

from loopback.server import Request, Server

CLIENTS, STOPS = 4, 6


class Silent(Server):
    """Answers every request with nothing."""

    def respond(self, request: Request) -> Response:
        return Response()


def test_what_was_accepted_while_it_leaves_is_closed() -> None:
    """Four clients connect as fast as they can while the server stops."""
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always")
        server = Silent()
        for _ in range(STOPS):
            server.start()
            come = threading.Barrier(CLIENTS + 1)
            clients = [
                threading.Thread(target=connect, args=(server.port, come)) for _ in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            come.wait()
            server.stop()
            for client in clients:
                client.join()
        gc.collect()
    assert [str(warning.message) for warning in left_open] == []


def connect(port: int, come: threading.Barrier) -> None:
    """Open connections until nobody listens; a client's own are closed at once."""
    with contextlib.suppress(ConnectionError, OSError):
        for number in range(1000):
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            if number == 20:
                come.wait()
