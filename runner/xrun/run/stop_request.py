"""An attempt looks into its store now and then: for the wish that it save and stop for good, which
`xrun cancel --save` leaves there, and whether the run is still its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from ..clock import boot_seconds
from ..errors import XrunError
from ..store.protocol import Head, StopRequests
from .confirmation import FRESH_SECONDS
from .plan import Plan
from .stores import open_store

STOP_SECONDS = 300.0
"""How long an attempt may take to save and stop after it was asked: the store may not take the next
commit at once."""
LOOK_SECONDS = min(15.0, FRESH_SECONDS / 2)
"""Seconds between two looks; half of those between two commits at a store that takes more of
them."""
Confirm = Callable[[float], None]


@contextlib.contextmanager
def listening(
    plan: Plan, attempt: str, stop: Callable[[], None], confirm: Confirm | None = None
) -> Iterator[None]:
    """While this lasts, `stop` is called once somebody has asked this attempt to, and `confirm`
    after each look that finds the run its own, with the time on `boot_seconds` before it."""
    store = open_store(plan, attempt, create=False)  # of its own: a store belongs to one thread
    ended = threading.Event()
    arguments = store, attempt, stop, confirm, ended
    threading.Thread(target=_listen, args=arguments, name="xrun-stop-request", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _Store(StopRequests, Protocol):
    def head(self) -> Head | None: ...


def _listen(
    store: _Store,
    attempt: str,
    stop: Callable[[], None],
    confirm: Confirm | None,
    ended: threading.Event,
) -> None:
    asked = False
    while not ended.wait(LOOK_SECONDS):
        if confirm is not None:
            with contextlib.suppress(XrunError):  # it is looked again
                before, head = boot_seconds(), store.head()
                if head is not None and head.attempt == attempt:
                    confirm(before)
        with contextlib.suppress(XrunError):  # it is asked again
            if not asked and store.asked_to_stop():
                asked = True
                stop()
