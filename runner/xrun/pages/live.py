"""The pages of runs that run now, served on this machine alone: the same page, which asks anew what
has happened.

Whoever else works on this machine can reach the port and does not know the address: it has a part
that nobody guesses. That also keeps pages of other sites out.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from ..errors import LaunchError, XrunError
from .contents import Look, Shown, index_of, version_of
from .page import as_data, html
from .sheet import Room, sheet_of

LOOPBACK = "127.0.0.1"
_ROOM = Room.on_a_page(5)
"""Each run is asked for by itself, and again whenever there is something new of it."""


class Live:
    """What there is to show, not older than `every` seconds, asked for by several at once. `look`
    raising XrunError leaves what was there before."""

    def __init__(
        self, look: Look, every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every, self._clock = every, clock
        self._look, self._lock = look, threading.Lock()
        self._shown: Shown = look()
        self._next = clock() + every
        self._sheets: dict[str, tuple[str, str]] = {}
        """Of each run that somebody looked at: its version, and its page as JSON."""

    def index(self) -> dict[str, Any]:
        """The list, each run with the version of its page."""
        shown = self._now()
        told = index_of(shown, time.time())
        for row, report in zip(told["runs"], shown.reports, strict=True):
            row["version"] = version_of(report)
        return told

    def sheet(self, run: str) -> str | None:
        """The page of a run as JSON; None if there is no such run."""
        shown = self._now()
        report = next((each for each in shown.reports if each.run == run), None)
        if report is None:
            return None
        version = version_of(report)
        known = self._sheets.get(run)
        if known is None or known[0] != version:
            known = version, as_data(sheet_of(report, _ROOM).to_json())
            self._sheets[run] = known
        return known[1]

    def _now(self) -> Shown:
        with self._lock:
            if (began := self._clock()) >= self._next:
                with contextlib.suppress(XrunError):  # a store that does not answer for a while
                    self._shown = self._look()
                ended = self._clock()
                # Looking takes a third of the time at most.
                self._next = ended + max(self.every, 2 * (ended - began))
            return self._shown


def serve(live: Live, port: int) -> ThreadingHTTPServer:
    """A server that answers once its `serve_forever` is called; `address_of` says where.

    Raises:
        LaunchError: the port is taken.
    """
    token = secrets.token_urlsafe(12)

    class Handler(_Handler):
        shown, start = live, f"/{token}/"

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        what = f"The pages cannot be served at port {port} of this machine: {error.strerror}."
        raise LaunchError(what, "Name another port with --port, or leave --port out.") from error
    server.daemon_threads = True
    return server


def address_of(server: ThreadingHTTPServer) -> str:
    """What to open in a browser."""
    handler: Any = server.RequestHandlerClass
    return f"http://{LOOPBACK}:{server.server_address[1]}{handler.start}"


class _Handler(BaseHTTPRequestHandler):
    """Answers for one `Live`, below `start`."""

    shown: Live
    start: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, its index, or a run."""
        if not self.path.startswith(self.start):
            self._answer(HTTPStatus.NOT_FOUND, b"", "text/plain")
            return
        path = self.path.removeprefix(self.start)
        if path == "":
            page = html(self.shown.index(), live=self.shown.every)
            self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
        elif path == "index.json":
            self._answer(HTTPStatus.OK, as_data(self.shown.index()).encode(), "application/json")
        else:
            name = unquote(path.removeprefix("run/")) if path.startswith("run/") else ""
            sheet = self.shown.sheet(name)
            status = HTTPStatus.NOT_FOUND if sheet is None else HTTPStatus.OK
            self._answer(status, (sheet or "").encode(), "application/json")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # whoever asked has gone

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""
