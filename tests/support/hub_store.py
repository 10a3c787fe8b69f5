"""A run's store on a loopback Hub: how tests open it, and what is there then."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from loopback.hub import Hub
from xrun.store.hub.store import HubStore
from xrun.store.protocol import Head, StoredFile

HUB_WARNINGS = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning"),
]
"""The library's own use of httpx and of hf_xet."""
REPO = "alice/digits"
COMMIT = r"POST .*/commit/state"


class Clock:
    """A time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


Opener = Callable[..., HubStore]


def own(name: str, content: bytes) -> bytes:
    """A file that says which attempt wrote it, as a checkpoint's do."""
    return b'{"attempt": "%b"}' % name.encode() + content


def saved(store: HubStore, parent: Head | None, *contents: bytes) -> tuple[Head, list[StoredFile]]:
    """Put these files and commit a record that names exactly them; without a parent, take the lease
    first."""
    parent = parent or store.commit({}, store.head())
    files = [store.put([content]) for content in contents]
    return store.commit({"files": [file.to_json() for file in files]}, parent), files


def files_of(head: Head | None) -> list[StoredFile]:
    return [StoredFile.from_json(file) for file in head.record["files"]] if head else []


def contents(store: HubStore) -> list[bytes]:
    """Every file of the newest head."""
    return [store.fetch(file).read_bytes() for file in files_of(store.head())]


def ours(hub: Hub, repo: str = REPO) -> list[str]:
    """The run's commits, newest first."""
    return [
        commit.title for commit in hub.history(repo, "state") if commit.title.startswith("Commit ")
    ]


def requests(hub: Hub, since: int = 0) -> list[str]:
    return [request.line for request in hub.requests[since:]]


def seen_now(hub: Hub) -> dict[str, Any]:
    """head.json as it is on the server."""
    return json.loads(hub.read(REPO, "head.json", "state"))
