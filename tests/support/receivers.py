"""Who receives alerts: a web server and a mail server on loopback."""

from __future__ import annotations

import json
import socket
import threading
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from .running import until


class Webhook:
    """`with Webhook() as hook:` takes what is posted to `hook.address`, apprise's for JSON.

    `status` is what it answers; while it `hangs` it answers nobody. `posted` has the path and the
    JSON of each request, `headers` the newest one's.
    """

    def __init__(self, status: int = 200, *, hangs: bool = False) -> None:
        self.status = status
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.headers: dict[str, str] = {}
        self.asked = threading.Event()
        self.answers = threading.Event()
        if not hangs:
            self.answers.set()

    def __enter__(self) -> Webhook:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.place = f"127.0.0.1:{self._http.server_port}/s3cret-path"
        self.address = f"json://{self.place}"
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.answers.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def titles(self) -> list[str]:
        """What has arrived, without the run's name."""
        return [_of(told) for _, told in self.posted]

    def body(self, beginning: str) -> str:
        """The text of the one message whose title begins so."""
        found = [told["message"] for _, told in self.posted if _of(told).startswith(beginning)]
        assert len(found) == 1, (beginning, self.titles)
        return found[0]

    def until(self, count: int) -> None:
        """Wait until so many messages are here."""
        until(lambda: len(self.posted) >= count, f"{count} messages")


def _of(told: dict[str, Any]) -> str:
    return told["title"].split(" ", 2)[2]


def _handler(hook: Webhook) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.headers = dict(self.headers)
            hook.asked.set()
            hook.answers.wait()
            if hook.status == 200:
                hook.posted.append((self.path, json.loads(body)))
            self.send_response(hook.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    return Handler


class Mailbox:
    """`with Mailbox() as box:` takes the letters that are sent by `box.address`."""

    def __init__(self) -> None:
        self.letters: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802  aiosmtpd's name
        """A letter has come."""
        self.letters.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def __enter__(self) -> Mailbox:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._smtp = Controller(self, hostname="127.0.0.1", port=port)
        self._smtp.start()
        self.address = f"mailto://127.0.0.1:{port}?from=xrun@example.org&to=me@example.org"
        return self

    def __exit__(self, *error: object) -> None:
        self._smtp.stop()
