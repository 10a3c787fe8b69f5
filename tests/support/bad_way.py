"""A bad way to a server: a proxy on loopback that cuts connections, delays, answers errors before
or after the server has done the work, and repeats old answers."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from loopback.faults import Fault, Faults

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
Answer = tuple[int, list[tuple[str, str]], bytes]


class BadWay:
    """A context manager; `faults` are armed as on a loopback server (`stale` repeats the answer
    before the last one that was different), `lines` are the requests that came, and `bodies` those
    that were answered, with the bytes that were said."""

    def __init__(self, target: str) -> None:
        asked = urllib.parse.urlsplit(target)
        assert asked.hostname
        self.target = (asked.hostname, asked.port)
        self.faults, self.lines = Faults(), list[str]()
        self.bodies = list[tuple[str, int]]()
        self._answers: dict[str, list[Answer]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = target.replace(
            f"{asked.hostname}:{asked.port}", f"127.0.0.1:{self._server.server_address[1]}"
        )

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    def count(self, pattern: str) -> int:
        """How many requests have come that match."""
        return sum(bool(re.search(pattern, line)) for line in self.lines)

    def before(self, line: str, fault: Fault | None) -> bool:
        """What goes wrong ahead of the work; False if there is no answer then."""
        self.lines.append(line)
        self.met(line)
        if fault and fault.stall:
            threading.Event().wait(fault.stall)
        return not (fault and fault.cut and fault.when == "before")

    def met(self, line: str) -> None:
        """For tests that hold somebody at a request."""

    def ask(self, line: str, headers: list[tuple[str, str]], body: bytes, stale: bool) -> Answer:
        """The server's answer, or an older one."""
        method, path = line.split(" ", 1)
        kept = self._answers.setdefault(line, [])
        if stale and kept:
            return kept[0]
        upstream = http.client.HTTPConnection(*self.target, timeout=60)
        upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body)
        answered = upstream.getresponse()
        answer = (answered.status, answered.getheaders(), answered.read())
        upstream.close()
        if not kept or kept[-1][2] != answer[2]:
            kept[:] = [*kept[-1:], answer]
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        way = self

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                self.close_connection = True
                line = f"{self.command} {self.path}"
                fault = way.faults.take(line)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if not way.before(line, fault):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if fault and fault.status and fault.when == "before":
                    self.say((fault.status, [], b""), None)
                    return
                headers = [(n, v) for n, v in self.headers.items() if n.lower() not in _HOP]
                answer = way.ask(line, headers, body, bool(fault and fault.stale))
                if fault and fault.status:
                    answer = (fault.status, [], b"")
                self.say(answer, fault)

            def say(self, answer: Answer, fault: Fault | None) -> None:
                status, headers, body = answer
                if fault and fault.truncate is not None:
                    body = body[: fault.truncate]
                if fault and fault.cut and not body:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                way.bodies.append((f"{self.command} {self.path}", len(body)))
                cut = bool(fault and fault.cut)
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if cut else body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = pass_on  # noqa: N815  the server's names

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler
