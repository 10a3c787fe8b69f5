"""A way to SkyPilot's API server on which a launcher can die: at its n-th call, before the server
hears it or after.

The server is the real one, and so is the SIGKILL.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class DeadlyProxy:
    """A context manager on 127.0.0.1; `calls` are the lines `METHOD /path` that came since
    `arm`."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._victim, self._heard = 0, False
        self._at: int | str = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def arm(self, victim: int = 0, at: int | str = 0, *, heard: bool = False) -> None:
        """Kill `victim` at its call number `at` (from 1), or at the first such line; with `heard`
        the server still gets it."""
        with self._lock:
            self.calls = []
            self._victim, self._at, self._heard = victim, at, heard

    def passes(self, line: str, forward: bool) -> bool:
        """Count a call, or the answer to the last one; False if the victim has died of it."""
        with self._lock:
            if not forward:
                return not (self._due() and self._heard and self._kill())
            self.calls.append(line)
            return not (self._due() and not self._heard and self._kill())

    def _due(self) -> bool:
        return self._at in (len(self.calls), self.calls[-1])

    def _kill(self) -> bool:
        if self._victim:
            os.kill(self._victim, signal.SIGKILL)
        return bool(self._victim)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_call(self) -> None:
                self.close_connection = True
                body = self._body()
                if not proxy.passes(f"{self.command} {self.path.partition('?')[0]}", forward=True):
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=120)
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() not in _HOP
                }
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                if proxy.passes("", forward=False):
                    self._answer(answer)
                upstream.close()

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(self, answer: http.client.HTTPResponse) -> None:
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                while chunk := answer.read1(65536):
                    self.wfile.write(chunk)
                    self.wfile.flush()

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one_call  # noqa: N815  the server's names

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler
