"""What answers in a server's place answers as it was told, whoever asks."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from loopback.portal import ANSWERS, Heard, Portal

BEGINNINGS = {
    "html": b"HTTP/1.1 200", "circle": b"HTTP/1.1 307", "elsewhere": b"HTTP/1.1 307",
    "500": b"HTTP/1.1 500", "403": b"HTTP/1.1 403", "404": b"HTTP/1.1 404", "nothing": b"",
    "garbage": b"\0\xff",
}  # fmt: skip


def asked(portal: Portal, path: str, *headers: str) -> bytes:
    """The beginning of the answer; all of it where the connection is to be closed."""
    place = urlsplit(portal.url)
    request = "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {place.netloc}", *headers, "", ""])
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as line:
        line.sendall(request.encode())
        answer = line.recv(65536)
        while "Connection: close" in headers and (more := line.recv(65536)):
            answer += more
        return answer


@pytest.mark.parametrize("how", ANSWERS)
def test_it_answers_as_it_was_told(how: str) -> None:
    """And notes who came with what."""
    with Portal(how) as portal:
        answer = asked(portal, "/any", "Authorization: Bearer x")
    assert answer.startswith(BEGINNINGS.get(how, b"HTTP/1.1 200"))
    assert portal.heard == [Heard("GET", "/any", elsewhere=False, authorized=True)]


def test_what_comes_first_is_a_servers() -> None:
    """A sign-in page may come after a first answer that was right."""
    with Portal("html", {"/api/whoami-v2": {"name": "alice"}}) as portal:
        assert asked(portal, "/api/whoami-v2?x=1", "Connection: close").endswith(
            b'{"name": "alice"}'
        )
        assert b"Sign in" in asked(portal, "/api/models", "Connection: close")
