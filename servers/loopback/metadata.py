"""The metadata server of a machine on AWS, Google Cloud or Azure, as far as a notice needs it: real
HTTP on 127.0.0.1."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "vm-7"


class Metadata:
    """`with Metadata("aws") as server:` serves at `server.url`; `server.preempt(120)` gives the
    notice.

    `requests` is everything that was asked, as `METHOD path`; `broken` answers every question with
    500; `ahead` is by how many seconds the server's clock is ahead of this machine's; `spot` is
    what kind of machine it is.
    """

    def __init__(self, cloud: str, ahead: float = 0.0, spot: bool = True) -> None:
        self.cloud, self.ahead, self.spot = cloud, ahead, spot
        self.broken = False
        self.requests: list[str] = []
        self.others: list[str] = []
        self.tokens = ["token-0"]
        self._notice: datetime | None = None

    def preempt(self, seconds: float) -> None:
        """This machine goes away in so many seconds."""
        self._notice = self.now() + timedelta(seconds=seconds)

    def now(self) -> datetime:
        """The server's clock."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    def expire(self) -> None:
        """The tokens that were given out are worth nothing any more."""
        self.tokens.append(f"token-{len(self.tokens)}")

    def __enter__(self) -> Metadata:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        """Status and text."""
        self.requests.append(f"{method} {path}")
        if self.broken:
            return 500, "Internal Server Error"
        return {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[self.cloud](
            method, path, headers
        )

    def _aws(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if path == "/latest/api/token":
            ok = method == "PUT" and headers["X-aws-ec2-metadata-token-ttl-seconds"]
            return (200, self.tokens[-1]) if ok else (400, "")
        if headers["X-aws-ec2-metadata-token"] != self.tokens[-1]:
            return 401, ""
        if path == "/latest/meta-data/instance-life-cycle":
            return 200, "spot" if self.spot else "on-demand"
        if path != "/latest/meta-data/spot/instance-action" or self._notice is None:
            return 404, ""
        return 200, json.dumps(
            {"action": "terminate", "time": f"{self._notice:%Y-%m-%dT%H:%M:%SZ}"}
        )

    def _gcp(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if headers["Metadata-Flavor"] != "Google":
            return 403, ""
        if path == "/computeMetadata/v1/instance/scheduling/preemptible":
            return 200, "TRUE" if self.spot else "FALSE"
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, ""
        return 200, "TRUE" if self._notice else "FALSE"

    def _azure(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if headers["Metadata"] != "true":
            return 400, ""
        if path.startswith("/metadata/instance/compute/name?"):
            return 200, NAME
        if path.startswith("/metadata/instance/compute/priority?"):
            return 200, "Spot" if self.spot else "Regular"
        if not path.startswith("/metadata/scheduledevents?api-version="):
            return 404, ""
        events = [self._event(name, "") for name in self.others]
        if self._notice is not None:
            events.append(self._event(NAME, format_datetime(self._notice, usegmt=True)))
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": events})

    def _event(self, name: str, before: str) -> dict[str, Any]:
        return {
            "EventId": "1",
            "EventType": "Preempt",
            "ResourceType": "VirtualMachine",
            "Resources": [name],
            "NotBefore": before,
            "EventStatus": "Scheduled" if before else "Started",
            "Description": "",
            "EventSource": "Platform",
        }

    @property
    def times(self) -> int:
        """How often it was asked."""
        return len(self.requests)


def _handler(server: Metadata) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            status, text = server.answer(self.command, self.path, self.headers)
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _serve  # noqa: N815  named by the library

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + server.ahead)

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    return Handler
