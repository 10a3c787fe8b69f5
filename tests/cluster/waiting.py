"""Bounded waits and free ports."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


class ClusterError(Exception):
    """The cluster, not what is tested on it, does not do what it should."""


def until(
    happened: Callable[[], Any],
    what: str,
    seconds: float,
    *,
    every: float = 0.2,
    alive: Callable[[], None] = lambda: None,
) -> Any:
    """Wait for a condition; `alive` may raise at each look.

    Raises:
        ClusterError: it did not come in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happened():
            return value
        alive()
        time.sleep(every)
    raise ClusterError(f"{what} did not come within {seconds:g} s")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of any address, or has a connection from it."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
