"""What passes between wandb-core and Weights & Biases, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from loopback.wandb import Wandb
from xrun.tracker.wandb.api import api_key
from xrun.tracker.wandb.gate import Gate

VIEWER = {"query": "query Viewer { viewer { entity } }", "variables": {}}


class Guarded:
    """A loopback W&B, the gate before it, and whether it is open."""

    def __init__(self, wandb: Wandb) -> None:
        self.wandb, self.open = wandb, True
        self.gate = Gate(lambda: self.open)

    def ask(self, **how: object) -> requests.Response:
        """Who the key's owner is, asked at the gate."""
        options: dict[str, Any] = {"json": VIEWER, "auth": ("api", api_key()), **how}
        return requests.post(f"{self.gate.url}/graphql", timeout=30, **options)


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    with Wandb(tmp_path / "wandb") as wandb:
        for name, value in wandb.environ("alice").items():
            monkeypatch.setenv(name, value)
        made = Guarded(wandb)
        yield made
        made.gate.close()


def test_an_open_gate_changes_nothing(guarded: Guarded) -> None:
    """The answer, its status and its kind are the server's."""
    answer = guarded.ask()
    assert answer.json() == {"data": {"viewer": answer.json()["data"]["viewer"]}}
    assert answer.json()["data"]["viewer"]["entity"] == "alice"
    assert answer.headers["content-type"] == "application/json"
    assert guarded.ask(auth=("api", "0" * 40)).status_code == 401
    (first, _) = guarded.wandb.requests
    assert first.json == VIEWER
    assert first.headers["host"] == guarded.wandb.url.removeprefix("http://")


def test_nothing_passes_a_shut_gate(guarded: Guarded) -> None:
    """It is asked for each request, also of one connection; the client may come again."""
    with requests.Session() as session:
        for guarded.open, status in [(True, 200), (False, 503), (False, 503), (True, 200)]:
            url, auth = f"{guarded.gate.url}/graphql", ("api", api_key())
            assert session.post(url, json=VIEWER, auth=auth, timeout=30).status_code == status
    assert len(guarded.wandb.requests) == 2


def test_a_body_in_chunks_arrives_whole(guarded: Guarded) -> None:
    """Whichever way the client sends it."""
    pieces = iter([b'{"query": "query Viewer ', b"{ viewer { entity } }", b'"}'])
    answer = guarded.ask(json=None, data=pieces, headers={"Content-Type": "application/json"})
    assert answer.json()["data"]["viewer"]["entity"] == "alice"


def test_a_server_that_is_down_is_no_answer_of_its(guarded: Guarded) -> None:
    """502, which clients try again."""
    guarded.wandb.stop()
    assert guarded.ask().status_code == 502
    guarded.wandb.start()
    assert guarded.ask().status_code == 200


def test_the_key_is_the_clients(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ~/.netrc of this machine does not replace what the client says."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {'0' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert guarded.ask().status_code == 200
