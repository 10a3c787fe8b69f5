"""An attempt looks for the wish that it save and stop for good, which `xrun cancel --save` leaves
in its store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ..errors import XrunError
from ..store.protocol import StopRequests
from .plan import Plan
from .stores import open_store

STOP_SECONDS = 300.0
"""How long an attempt may take to save and stop after it was asked: the store may not take the next
commit at once."""
LOOK_SECONDS = 15.0
"""Seconds between two looks; half of those between two commits at a store that takes more of
them."""


@contextlib.contextmanager
def listening(plan: Plan, attempt: str, stop: Callable[[], None]) -> Iterator[None]:
    """While this lasts, `stop` is called once somebody has asked this attempt to."""
    store = open_store(plan, attempt, create=False)  # of its own: a store belongs to one thread
    ended = threading.Event()
    arguments = store, stop, ended
    threading.Thread(target=_listen, args=arguments, name="xrun-stop-request", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _listen(requests: StopRequests, stop: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(LOOK_SECONDS):
        with contextlib.suppress(XrunError):  # it is asked again
            if requests.asked_to_stop():
                stop()
                return
