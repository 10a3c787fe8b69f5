"""What answers in a server's place: a captive portal, a proxy, a broken or a hostile machine.

    with Portal("html") as portal:
        environment = os.environ | {"HF_ENDPOINT": portal.url}

Every request is answered in one way, `ANSWERS`; paths in `first` are answered with JSON as a real
server would. `elsewhere` is a second server, to which some answers lead; `heard` is what both were
asked.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

ANSWERS = (
    "html", "circle", "elsewhere", "null", "list", "text", "number", "deep", "other types", "empty",
    "cut", "bomb", "slow body", "slow headers", "endless", "garbage", "500", "403", "404",
    "nothing", "not utf-8",
)  # fmt: skip
BODIES = {
    "html": b"<!doctype html><title>Sign in</title>\x1b[2J",
    "null": b"null",
    "list": b"[1]",
    "text": b'"text"',
    "number": b"1e400",
    "deep": b"[" * 200_000,
    "other types": json.dumps(
        dict.fromkeys(("name", "orgs", "auth", "data", "errors", "model", "branches"), 1)
    ).encode(),
    "empty": b"",
    "not utf-8": b'{"name": "\xff\xfe"}',
}
SIZE = 1 << 28
"""Bytes that a bomb has when it is unpacked, and after which what is endless ends."""


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(SIZE), 1)


@dataclass(frozen=True)
class Heard:
    """One request: whether the second server got it, and whether an Authorization header came
    along."""

    method: str
    path: str
    elsewhere: bool
    authorized: bool


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    portal: Portal
    is_elsewhere = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        portal = self.server.portal
        authorized = bool(self.headers.get("Authorization"))
        elsewhere = self.server.is_elsewhere
        portal.heard.append(Heard(self.command, self.path, elsewhere, authorized))
        first = portal.first.get(self.path.partition("?")[0])
        with contextlib.suppress(OSError):
            if first is not None and not self.server.is_elsewhere:
                self._whole(200, json.dumps(first).encode())
            else:
                self._answer(portal.answer)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = _any  # noqa: N815  the base's names

    def _answer(self, how: str) -> None:
        if how in BODIES or self.server.is_elsewhere:
            self._whole(200, BODIES.get(how, b"{}"))
        elif how in ("circle", "elsewhere"):
            host = self.server.portal.elsewhere if how == "elsewhere" else ""
            self._whole(307, b"", {"Location": f"{host}{self.path}"})
        elif how == "bomb":
            self._whole(200, _bomb(), {"Content-Encoding": "gzip"})
        elif how.isdigit():
            self._whole(int(how), b'{"error": "\\u001b[31mevil"}', {"X-Error-Message": "\x1b]0;x"})
        else:
            getattr(self, "_" + how.replace(" ", "_"))()

    def _whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{"name":')

    def _nothing(self) -> None:
        self.close_connection = True

    def _garbage(self) -> None:
        self.close_connection = True
        self.wfile.write(b"\0\xff" * 1000)

    def _slow_body(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        self._trickle(b" ")

    def _slow_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self._trickle(b"x")

    def _trickle(self, byte: bytes) -> None:
        self.close_connection = True
        while not self.server.portal.closed.wait(self.server.portal.pause):
            self.wfile.write(byte)

    def _endless(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(SIZE // 65536):
            self.wfile.write(chunk)

    def log_message(self, *said: object) -> None:
        """Nobody reads it."""


class Portal:
    """A server that answers everything in one way; `pause` is the seconds between two bytes of a
    slow one."""

    def __init__(
        self, answer: str, first: Mapping[str, Any] | None = None, pause: float = 0.05
    ) -> None:
        assert answer in ANSWERS
        self.answer, self.first, self.pause = answer, dict(first or {}), pause
        self.heard: list[Heard] = []
        self.closed = threading.Event()
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.portal = self
        self._servers[1].is_elsewhere = True
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.elsewhere = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closed.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
