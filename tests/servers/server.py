"""What both loopback servers share: uvicorn in a thread on 127.0.0.1, a table of routes, recorded requests, faults on demand.

A server is a context manager. `stop()` and `start()` in between are an outage: the port stays, open connections are dropped.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

RECORDED = 4 << 20
"""Bytes of each request's body that are kept in `Server.requests`."""


class Refused(Exception):
    """A request that is answered with an error; the headers travel with it."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass
class Request:
    """One request as it arrived: `path` as it was sent, with its %2F, the body unzipped. `status` is 0 until it is answered.

    `size` is the body's length as it came over the wire. `stale`: a fault wants the state before the last commit.
    """

    method: str
    path: str
    headers: Headers
    body: bytes
    query: QueryParams = field(default_factory=QueryParams)
    size: int = 0
    status: int = 0
    stale: bool = False

    @property
    def line(self) -> str:
        """`METHOD /path`, unquoted."""
        return f"{self.method} {urllib.parse.unquote(self.path)}"

    @property
    def json(self) -> Any:
        """The body as JSON; an empty one is an empty object."""
        return json.loads(self.body or b"{}")

    @property
    def json_lines(self) -> list[Any]:
        """The body as one JSON value per line."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]


Handler = Callable[..., Response]
"""`handler(server, request, **what the pattern's braces matched)`."""


class Routes:
    """A table of (methods, pattern, handler), tried in its order.

    `{name}` matches one segment of the path as it was sent, so that a branch `run%2Fr1` is one; `{name*}` matches any number of
    segments. Handlers get them unquoted.
    """

    def __init__(self, table: Iterable[tuple[str, str, Handler]]) -> None:
        self.table = [(set(methods.split()), compiled(pattern), handler) for methods, pattern, handler in table]

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return the handler and its arguments; 404 if there is none."""
        for methods, pattern, handler in self.table:
            if method in methods and (found := pattern.fullmatch(path)):
                return handler, {name: urllib.parse.unquote(value) for name, value in found.groupdict().items()}
        raise Refused(404, f"No such endpoint: {method} {path}")


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a route's pattern."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", pattern.replace(".", r"\."))
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))


@dataclass(eq=False)
class Fault:
    """What is to go wrong with the requests whose line matches; see `Faults.add`. `hits` counts how often it has."""

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
        return JSONResponse({"error": f"A fault: {self.status}"}, self.status, headers=retry | self.headers)


class Faults:
    """The faults that are armed; the first one that takes a request is the one that happens."""

    def __init__(self) -> None:
        self.armed: list[Fault] = []
        self.lock = threading.Lock()

    def add(
        self, match: str = "", *, status: int | None = None, times: int | None = 1, skip: int = 0, when: str = "before",
        retry_after: float | None = None, stall: float = 0.0, cut: bool = False, truncate: int | None = None,
        stale: bool = False, headers: Mapping[str, str] | None = None,
    ) -> Fault:  # fmt: skip
        """Arm a fault for the next `times` requests (None: all of them) whose `METHOD /path` matches, `skip` of them later.

        `status` is answered instead; it is 503 if nothing else is asked for. `when="before"` leaves the work undone, `"after"`
        does it and loses the answer. `stall` waits so many seconds at that moment, or until `clear`; the work is done even if the
        client has given up. `cut` drops the connection: without an answer, or `"after"` the work in the middle of the answer.
        `truncate` answers well, with the first so many bytes of the body only. `stale` reads the state before the last commit.
        """
        if when not in ("before", "after"):
            raise ValueError(f"when is before or after, not {when!r}")
        if status is None and not (stall or cut or stale or truncate is not None):
            status = 503
        count = float("inf") if times is None else times
        fault = Fault(match, status, count, skip, when, retry_after, stall, cut, truncate, stale, dict(headers or {}))
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


class Server:
    """A loopback HTTP server; subclasses say in `respond` what is answered, in several threads at once.

    `clock` is the server's time, in seconds; a test may replace it at any time.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.errors: list[Exception] = []
        self.faults = Faults()
        self.clock: Callable[[], float] = time.time
        self.port = 0
        self.thread: threading.Thread | None = None

    def respond(self, request: Request) -> Response:
        """Answer a request, in a thread of its own; raise `Refused` for an error."""
        raise NotImplementedError

    def line(self, request: Request) -> str:
        """What faults match: `METHOD /path`, and whatever else tells requests apart."""
        return request.line

    def refusal(self, request: Request, error: Refused) -> Response:
        """The answer for `Refused`, in the dialect that the clients read."""
        return JSONResponse({"error": error.message}, error.status, headers=error.headers)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if self.errors and kind is None:
            raise self.errors[0]

    def start(self) -> None:
        """Listen; a second time on the same port. Connections are accepted when this returns."""
        listening = listen(self.port)
        self.port = listening.getsockname()[1]
        self.listener = Listener(self.serve)
        self.thread = threading.Thread(target=self.listener.run, args=([listening],), name=type(self).__name__, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Stop listening and drop what is still open; what is being done is done, and not answered. Again it is harmless."""
        if self.thread:
            self.faults.clear()
            self.listener.leave()
            self.thread.join()
            self.thread = None

    def arrived(self, match: str, seconds: float = 60.0) -> Request:
        """Wait for the first request whose line matches, answered or not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := next((request for request in list(self.requests) if re.search(match, self.line(request))), None):
                return found
            time.sleep(0.005)
        raise AssertionError(f"No request {match!r} within {seconds:g} s")

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: record, fail if a fault wants it, answer."""
        request = await received(scope, receive)
        if request is None:
            return
        if request.path in ("/_faults", "/_requests"):
            await self.control(request)(scope, receive, send)
            return
        self.requests.append(request)
        fault = self.faults.take(self.line(request))
        response = await (self.faulty(request, fault) if fault else run_in_threadpool(self.answer, request))
        if response is None:
            drop(send)
            return
        request.status = response.status_code
        request.body = request.body[:RECORDED]
        response.headers["Date"] = formatdate(self.clock(), usegmt=True)
        await response(scope, receive, Spoiled(send, fault, request.method) if fault else send)

    async def faulty(self, request: Request, fault: Fault) -> Response | None:
        """Do the work, or not, as the fault says; None means that there is no answer at all."""
        request.stale = fault.stale
        if fault.when == "after":
            response = await run_in_threadpool(self.answer, request)
            await self.faults.stall(fault)
            return fault.answer() or response
        await self.faults.stall(fault)
        if fault.cut:
            return None
        return fault.answer() or await run_in_threadpool(self.answer, request)

    def answer(self, request: Request) -> Response:
        """What is answered when nothing goes wrong on the way; a mistake of the server itself is raised when it is left."""
        try:
            return self.respond(request)
        except Refused as error:
            return self.refusal(request, error)
        except Exception as error:
            self.errors.append(error)
            return self.refusal(request, Refused(500, f"The server is wrong: {error!r}"))

    def control(self, request: Request) -> Response:
        """Faults and recorded requests over HTTP, for a server that is a process of its own."""
        match request.method, request.path:
            case "POST", "/_faults":
                self.faults.add(**request.json)
            case "DELETE", "/_faults":
                self.faults.clear()
            case "GET", "/_requests":
                rows = [{"method": r.method, "path": r.path, "status": r.status, "size": r.size} for r in list(self.requests)]
                return JSONResponse(rows)
            case _:
                return JSONResponse({"error": "GET /_requests, POST or DELETE /_faults"}, 405)
        return JSONResponse({})


class Listener(uvicorn.Server):
    """uvicorn in a thread, which leaves at once when it is told to: its own way takes 0.2 s, and tests start many."""

    def __init__(self, application: Any) -> None:
        super().__init__(
            uvicorn.Config(
                application, interface="asgi3", lifespan="off", http="h11", loop="asyncio", ws="none", proxy_headers=False,
                access_log=False, log_config=None, log_level="critical", timeout_keep_alive=60, date_header=False,
            )
        )  # fmt: skip
        self.started_at_all = threading.Event()

    async def main_loop(self) -> None:
        """Serve until told to leave."""
        self.loop, self.leaving = asyncio.get_running_loop(), asyncio.Event()
        self.started_at_all.set()
        await self.leaving.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, drop every connection, and let what is being answered come to its end."""
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        while self.server_state.tasks:
            await asyncio.sleep(0.001)

    def leave(self) -> None:
        """Make it leave, from another thread."""
        self.started_at_all.wait()
        self.loop.call_soon_threadsafe(self.leaving.set)


def listen(port: int) -> socket.socket:
    """A listening socket that says TCP, so that asyncio turns Nagle's delay of 40 ms off; `socket.create_server` makes none."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(512)
    return listening


class Spoiled:
    """An ASGI `send` that cuts the connection in the middle of the answer, or shortens the answer's body."""

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
            other = [(name, value) for name, value in message["headers"] if name != b"content-length"]
            return {**message, "headers": [*other, (b"content-length", str(self.left).encode())]}
        return message

    def shortened(self, message: Message) -> Message:
        """A piece of the body, as far as it is sent."""
        body = message.get("body", b"")
        body = body[: int(min(self.left, len(body)))]
        self.left -= len(body)
        return {**message, "body": body, "more_body": self.fault.cut or message.get("more_body", False)}


def drop(send: Send) -> None:
    """Close the connection after what was sent; uvicorn has no public way to do that."""
    send.__self__.transport.close()  # type: ignore[attr-defined]  # it is a bound method of uvicorn's RequestResponseCycle


async def received(scope: Scope, receive: Receive) -> Request | None:
    """The whole request; None if the client left before it had sent all of it."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = Headers(scope=scope)
    plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else bytes(body)
    return Request(scope["method"], scope["raw_path"].decode(), headers, plain, QueryParams(scope["query_string"]), len(body))


def replace_file(path: Path, data: bytes) -> None:
    """Make a file appear, or change, with all of its bytes at once."""
    aside = path.with_name(f"{path.name}.{threading.get_ident()}")
    aside.write_bytes(data)
    aside.replace(path)
