"""What goes wrong with a loopback server's answers: statuses, stalls, cut connections, short
bodies, stale reads."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Send


@dataclass(eq=False)
class Fault:
    """What is to go wrong with the requests whose line matches; see `Faults.add`. `hits` counts how
    often it has."""

    match: str
    status: int | None
    times: float
    skip: int
    when: str
    retry_after: float | None
    stall: float
    cut: bool
    truncate: int | None
    stale: bool
    headers: dict[str, str]
    hits: int = 0

    def takes(self, line: str) -> bool:
        """True if this request is one that goes wrong."""
        if not re.search(self.match, line) or self.hits >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True

    def answer(self) -> Response | None:
        """The error that is answered instead, if it is one."""
        if self.status is None:
            return None
        retry = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        return JSONResponse(
            {"error": f"A fault: {self.status}"}, self.status, headers=retry | self.headers
        )


class Faults:
    """The faults that are armed; the first one that takes a request is the one that happens."""

    def __init__(self) -> None:
        self.armed: list[Fault] = []
        self.lock = threading.Lock()

    def add(
        self,
        match: str = "",
        *,
        status: int | None = None,
        times: int | None = 1,
        skip: int = 0,
        when: str = "before",
        retry_after: float | None = None,
        stall: float = 0.0,
        cut: bool = False,
        truncate: int | None = None,
        stale: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """Arm a fault for the next `times` requests (None: all of them) whose `METHOD /path`
        matches, `skip` of them later.

        `status` is answered instead; it is 503 if nothing else is asked for. `when="before"` leaves
        the work undone, `"after"` does it and loses the answer. `stall` waits so many seconds at
        that moment, or until `clear`; the work is done even if the client has given up. `cut` drops
        the connection: without an answer, or `"after"` the work in the middle of the answer.
        `truncate` answers well, with the first so many bytes of the body only. `stale` reads the
        state before the last commit.
        """
        if when not in ("before", "after"):
            raise ValueError(f"when is before or after, not {when!r}")
        if status is None and not (stall or cut or stale or truncate is not None):
            status = 503
        count = float("inf") if times is None else times
        fault = Fault(
            match,
            status,
            count,
            skip,
            when,
            retry_after,
            stall,
            cut,
            truncate,
            stale,
            dict(headers or {}),
        )
        with self.lock:
            self.armed.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm all of them; what is stalled goes on."""
        with self.lock:
            self.armed.clear()

    def take(self, line: str) -> Fault | None:
        """Return the fault that happens to this request."""
        with self.lock:
            return next((fault for fault in self.armed if fault.takes(line)), None)

    async def stall(self, fault: Fault) -> None:
        """Wait as long as the fault says, or until it is disarmed."""
        end = time.monotonic() + fault.stall
        while time.monotonic() < end and fault in self.armed:
            await asyncio.sleep(0.01)


class Spoiled:
    """An ASGI `send` that cuts the connection in the middle of the answer, or shortens the answer's
    body."""

    def __init__(self, send: Send, fault: Fault, method: str) -> None:
        self.send, self.fault, self.head = send, fault, method == "HEAD"
        self.left, self.dropped = float("inf"), False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = self.started(message)
        elif not self.dropped:
            message = self.shortened(message)
        if not self.dropped:
            await self.send(message)
        if self.fault.cut and self.left <= 0:
            self.dropped = True
            drop(self.send)

    def started(self, message: Message) -> Message:
        """The head of the answer; a truncated one is truthful about its new length."""
        length = int(Headers(raw=message["headers"]).get("content-length", "0"))
        if self.fault.cut:
            self.left = 0 if self.head else length // 2
            self.dropped = self.left == 0
        elif self.fault.truncate is not None:
            self.left = min(self.fault.truncate, length)
            other = [
                (name, value) for name, value in message["headers"] if name != b"content-length"
            ]
            return {**message, "headers": [*other, (b"content-length", str(self.left).encode())]}
        return message

    def shortened(self, message: Message) -> Message:
        """A piece of the body, as far as it is sent."""
        body = message.get("body", b"")
        body = body[: int(min(self.left, len(body)))]
        self.left -= len(body)
        return {
            **message,
            "body": body,
            "more_body": self.fault.cut or message.get("more_body", False),
        }


def drop(send: Send) -> None:
    """Close the connection after what was sent; uvicorn has no public way to do that."""
    send.__self__.transport.close()  # type: ignore[attr-defined]  # it is a bound method of uvicorn's RequestResponseCycle
