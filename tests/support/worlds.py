"""The worlds of xrun's own stores, for the suite of `conformance`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import obstore
import pytest
from huggingface_hub import HfApi

from loopback.faults import Faults
from loopback.hub import Hub
from xrun.store.address import Address
from xrun.store.bucket.store import BucketStore
from xrun.store.directory.store import DirectoryStore
from xrun.store.hub.store import HubStore
from xrun.store.protocol import StoredFile

from .bad_way import BadWay
from .buckets import Server
from .hub_store import REPO, Clock

BLOCK = 1000
"""Bytes of a block, in which a file's parts are read."""
GET_FILE = r"GET .*/resolve/.*objects"
TORN = {"status": 500, "when": "after"}
CUT = {"cut": True, "when": "after"}


def damaged(content: bytes) -> bytes:
    """With another last byte."""
    return content[:-1] + bytes([content[-1] ^ 1])


class FolderWorld:
    """A folder of this machine, on which no answer is ever lost."""

    def __init__(self, root: Path) -> None:
        self.root, self.block = root / "state", BLOCK

    def open(self, attempt: str, run: str = "digits-1") -> DirectoryStore:
        return DirectoryStore(self.root, run, attempt, f"{attempt}@host", block=self.block)

    def damaged_commit(self, number: int) -> None:
        (self.root / "commits" / f"{number:08}.json").write_bytes(b"{}\n")

    def lose_commits(self) -> None:
        for path in (self.root / "commits").iterdir():
            path.unlink()

    def damage_file(self, file: StoredFile, *, lose: bool) -> None:
        path = self.root / file.copies[0]
        content = path.read_bytes()
        path.unlink()
        if not lose:
            path.write_bytes(damaged(content))

    def files(self) -> int:
        return sum(path.is_file() for path in (self.root / "objects").rglob("*"))

    def read(self) -> int:
        """By read(2), which is how this process reads files."""
        told = Path("/proc/self/io").read_text()
        return int(told.split("rchar: ")[1].split()[0])

    def trouble(self, kind: str) -> bool:
        return False

    def peace(self) -> None:
        """There was none."""


class FarWorld:
    """What the worlds behind a network have in common: a clock in hand, and faults."""

    faults: Faults
    troubles: dict[str, dict[str, Any]]

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.opened, self.block = folder, Clock(), 0, BLOCK

    def cache(self) -> Path:
        """Each attempt is on an empty machine of its own."""
        self.opened += 1
        return self.folder / f"cache-{self.opened}"

    def trouble(self, kind: str) -> bool:
        if kind in self.troubles:
            self.faults.add(**self.troubles[kind])
        return kind in self.troubles

    def peace(self) -> None:
        self.faults.clear()


class BucketWorld(FarWorld):
    """A run's place in a bucket, behind a bad way."""

    def __init__(self, folder: Path, server: Server, place: str, way: BadWay) -> None:
        super().__init__(folder)
        self.server, self.place, self.way, self.faults = server, place, way, way.faults
        self.environ = server.at(way.url)
        look = r"GET .*(list.*commits%2F|/commits/)"
        self.troubles = {
            "commit not done": {"match": r"PUT .*/commits/", "status": 503},
            "commit done, answer lost": {"match": r"PUT .*/commits/", **TORN},
            "commit done, answer cut": {"match": r"PUT .*/commits/", **CUT},
            "file not done": {"match": r"PUT .*/objects/", "status": 503},
            "file done, answer lost": {"match": r"PUT .*/objects/", **TORN},
            "look refused": {"match": look, "status": 502},
            "look cut": {"match": look, **CUT},
            "look stale": {"match": look, "stale": True},
            "file read short": {"match": r"GET .*/objects/.*/", "truncate": 10},
            "file read cut": {"match": r"GET .*/objects/.*/", **CUT},
            "slow": {"stall": 0.05},
        }

    def open(self, attempt: str, run: str = "digits-1") -> BucketStore:
        address = Address.parse(self.place)
        return BucketStore(
            address,
            run,
            attempt,
            f"{attempt}@host",
            self.cache(),
            environ=self.environ,
            clock=self.clock,
            sleep=self.clock.sleep,
            piece=self.block,
        )

    def damaged_commit(self, number: int) -> None:
        obstore.put(self.server.library(self.place), f"commits/{number:08}.json", b"{}\n")

    def lose_commits(self) -> None:
        commits = [key for key in self.server.objects(self.place) if key.startswith("commits/")]
        obstore.delete(self.server.library(self.place), commits)

    def damage_file(self, file: StoredFile, *, lose: bool) -> None:
        library = self.server.library(self.place)
        key = max(key for key in self.server.objects(self.place) if file.copies[0] in key)
        if lose:
            obstore.delete(library, key)
        else:
            obstore.put(library, key, damaged(bytes(obstore.get(library, key).bytes())))

    def files(self) -> int:
        keys = self.server.objects(self.place)
        return len({key.rpartition("/")[0] for key in keys if key.startswith("objects/")})

    def read(self) -> int:
        return sum(size for line, size in self.way.bodies if re.match(r"GET .*/objects/.*/", line))


class HubWorld(FarWorld):
    """A run's repository on a loopback Hub, its bulk there (`hub`) or in a bucket
    (`hub-bucket`)."""

    def __init__(self, folder: Path, hub: Hub, form: str) -> None:
        super().__init__(folder)
        self.hub, self.form, self.faults = hub, form, hub.faults
        hub.clock = self.clock
        commit, sent = r"POST .*/commit/state", r"PUT /lfs|POST .*(objects|buckets.*)/batch"
        self.troubles = {
            "commit not done": {"match": commit, "status": 503},
            "commit done, answer lost": {"match": commit, **TORN},
            "commit done, answer cut": {"match": commit, **CUT},
            "file not done": {"match": sent, "status": 503},
            "look refused": {"match": r"GET .*(refs|resolve)", "status": 502},
            "look cut": {"match": r"GET .*(refs|resolve)", **CUT},
            "look stale": {"match": r"GET .*/refs", "stale": True},
            "file read short": {"match": GET_FILE, "truncate": 10},
            "slow": {"stall": 0.05},
        }

    def open(self, attempt: str, run: str = "digits-1") -> HubStore:
        return HubStore(
            f"{self.form}://{REPO}",
            run,
            attempt,
            f"{attempt}@host",
            self.cache(),
            token=self.hub.token("alice"),
            clock=self.clock,
            sleep=self.clock.sleep,
            spacing=0.0,
            hourly=1e9,
            block=self.block,
        )

    def api(self) -> HfApi:
        return HfApi(endpoint=self.hub.url, token=self.hub.token("alice"))

    def damaged_commit(self, number: int) -> None:
        operations = [huggingface_hub.CommitOperationAdd("head.json", b"{}")]
        title = f"Commit {number} of digits-1"
        self.api().create_commit(REPO, operations, commit_message=title, revision="state")

    def lose_commits(self) -> None:
        self.api().delete_file("head.json", REPO, revision="state")
        self.api().super_squash_history(REPO, branch="state")

    def damage_file(self, file: StoredFile, *, lose: bool) -> None:
        place = file.copies[0]
        if not lose:
            content = damaged(self.open("reader").fetch(file).read_bytes())
            if self.form == "hub-bucket":
                self.api().batch_bucket_files(REPO, add=[(content, place)])
            else:
                self.hub.write(REPO, {place: content}, branch="state")
        elif self.form == "hub-bucket":
            self.api().batch_bucket_files(REPO, delete=[place])
        else:
            self.hub.repository(REPO).forget([Path(place).name.partition(".")[0]], rewrite=False)

    def files(self) -> int:
        if self.form == "hub-bucket":
            path = self.hub.root / "buckets" / f"{REPO.replace('/', '--')}.json"
            return len(json.loads(path.read_text())["files"])
        listed = self.api().list_repo_files(REPO, revision="state")
        return sum(name.startswith("objects/") for name in listed)

    def read(self) -> int:
        """By the ranges that were asked for; whole files count as more than any part of one."""
        asked = [each for each in self.hub.requests if re.match(GET_FILE, each.line)]
        ranges = [each.headers.get("range", f"bytes=0-{1 << 40}") for each in asked]
        ends = [each.removeprefix("bytes=").split("-") for each in ranges]
        return sum(int(last) + 1 - int(first) for first, last in ends)


@contextmanager
def hub_world(folder: Path, form: str, patch: pytest.MonkeyPatch) -> Iterator[HubWorld]:
    """An empty Hub. The library reads these once, when it is imported, which was long ago."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with Hub(folder / "hub") as hub:
        patch.setenv("HF_ENDPOINT", hub.url)
        yield HubWorld(folder, hub, form)


@contextmanager
def bucket_world(folder: Path, server: Server, bucket: str) -> Iterator[BucketWorld]:
    """An empty bucket."""
    place = f"{server.make(bucket)}/runs/digits-1"
    with BadWay(server.url) as way:
        yield BucketWorld(folder, server, place, way)
