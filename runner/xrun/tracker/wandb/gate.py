"""The way of the wandb library's own process to its server: through this one, which lets a request
pass only while the attempt may speak for its run.

`wandb-core` sends rows, summary, heartbeat and state in its own time, also those that it was handed
before the machine fell asleep, and it cannot be told to stop. So it is told that its server is
here. What is refused it sends again; when this process is gone, it reaches nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from .api import base_url

_SECONDS = 60.0
_CONNECTION = ("connection", "content-length", "host", "keep-alive", "transfer-encoding")
"""Headers that are about one connection."""
_SHUT = b"the store has not confirmed that this attempt still has the run"


class Gate:
    """A server on this machine, at `url`, for one client; `may_pass` is asked for each request."""

    def __init__(self, may_pass: Callable[[], bool]) -> None:
        self.may_pass = may_pass
        self._server = _Server(("127.0.0.1", 0), _Passing)
        self._server.gate = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="xrun-gate", daemon=True).start()

    def close(self) -> None:
        """Nothing passes any more."""
        self.may_pass = lambda: False
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    gate: Gate


class _Passing(BaseHTTPRequestHandler):
    """One connection of wandb-core's."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.session = requests.Session()
        self.session.auth = _as_it_is  # else a ~/.netrc would replace what wandb-core says

    def finish(self) -> None:
        self.session.close()
        super().finish()

    def _pass(self) -> None:
        body = b"".join(self._body())
        if not self.server.gate.may_pass():
            self._answer(503, {"Retry-After": "1"}, _SHUT)
            return
        try:
            answer = self.session.request(
                self.command,
                f"{base_url()}{self.path}",
                data=body,
                headers=_without(_CONNECTION, self.headers.items()),
                timeout=_SECONDS,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            self._answer(502, {}, type(error).__name__.encode())
            return
        headers = _without((*_CONNECTION, "content-encoding"), answer.headers.items())
        self._answer(answer.status_code, headers, answer.content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass  # noqa: N815  as the base class calls them

    def _body(self) -> Iterator[bytes]:
        """What the request carries, whole or in chunks (RFC 9112, 7.1)."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def log_message(self, *said: object) -> None:
        """Nobody reads it."""


def _without(names: Sequence[str], headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in names}


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
