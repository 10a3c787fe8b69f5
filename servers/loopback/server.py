"""What both loopback servers share: a thread that listens on 127.0.0.1, a table of routes, recorded
requests, faults on demand.

A server is a context manager. `stop()` and `start()` in between are an outage: the port stays, open
connections are dropped.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .faults import Fault, Faults, Spoiled, drop
from .listener import Listener, listen

RECORDED = 4 << 20
"""Bytes of each request's body that are kept in `Server.requests`."""


class Refused(Exception):
    """A request that is answered with an error; the headers travel with it."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass
class Request:
    """One request as it arrived: `path` as it was sent, with its %2F, the body unzipped. `status`
    is 0 until it is answered.

    `size` is the body's length as it came over the wire. `stale`: a fault wants the state before
    the last commit.
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

    `{name}` matches one segment of the path as it was sent, so that a branch `run%2Fr1` is one;
    `{name*}` matches any number of segments. Handlers get them unquoted.
    """

    def __init__(self, table: Iterable[tuple[str, str, Handler]]) -> None:
        self.table = [
            (set(methods.split()), compiled(pattern), handler)
            for methods, pattern, handler in table
        ]

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return the handler and its arguments; 404 if there is none."""
        for methods, pattern, handler in self.table:
            if method in methods and (found := pattern.fullmatch(path)):
                return handler, {
                    name: urllib.parse.unquote(value) for name, value in found.groupdict().items()
                }
        raise Refused(404, f"No such endpoint: {method} {path}")


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a route's pattern."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", pattern.replace(".", r"\."))
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))


class Server:
    """A loopback HTTP server; subclasses say in `respond` what is answered, in several threads at
    once.

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
        self.thread = threading.Thread(
            target=self.listener.run, args=([listening],), name=type(self).__name__, daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        """Stop listening and drop what is still open; what is being done is done, and not answered.
        Again it is harmless."""
        if self.thread:
            self.faults.clear()
            self.listener.leave()
            self.thread.join()
            self.thread = None

    def wait_for(self, match: str, seconds: float = 60.0) -> Request:
        """Wait for the first request whose line matches, answered or not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := next(
                (
                    request
                    for request in list(self.requests)
                    if re.search(match, self.line(request))
                ),
                None,
            ):
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
        response = await (
            self.faulty(request, fault) if fault else run_in_threadpool(self.answer, request)
        )
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
        """What is answered when nothing goes wrong on the way; a mistake of the server itself is
        raised when it is left."""
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
                rows = [
                    {"method": r.method, "path": r.path, "status": r.status, "size": r.size}
                    for r in list(self.requests)
                ]
                return JSONResponse(rows)
            case _:
                return JSONResponse({"error": "GET /_requests, POST or DELETE /_faults"}, 405)
        return JSONResponse({})


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
    return Request(
        scope["method"],
        scope["raw_path"].decode(),
        headers,
        plain,
        QueryParams(scope["query_string"]),
        len(body),
    )


def replace_file(path: Path, data: bytes) -> None:
    """Make a file appear, or change, with all of its bytes at once."""
    aside = path.with_name(f"{path.name}.{threading.get_ident()}")
    aside.write_bytes(data)
    aside.replace(path)
