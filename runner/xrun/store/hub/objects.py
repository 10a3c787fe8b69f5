"""Where a run's bulk files lie on the Hub: in its repository, beside git (LFS or Xet), or in a
bucket.

When may a file's content be deleted for good, on a machine that may have been believed dead and
have a successor? A delete cannot be fenced: it may arrive at any later moment, after the successor
has committed. So it must be harmless whenever it arrives, which it is if nobody names that content,
ever again. The server keeps one object for equal content, so no two attempts may send the same.

* A file lies in the folder of its attempt, and its bytes are ones which that attempt alone sends:
  its id stands in them, or is sent after them with a random mark (in a bucket: the place is used
  once). Once a commit has dropped a file, no later one names it: heads name what the head before
  named, and what their own attempt has put. So it goes at once, whoever had written it. That is
  what bounds the repository.
* Objects that no commit has ever named, which a killed attempt has left, go when they are older
  than an hour: their place is not known, and another process of this attempt may have sent one for
  the next commit. An attempt lists them first and makes sure that it still has the head after that,
  so whatever it has listed is of its own time or before.
* Nothing goes that any branch, tag or pull request names. If the answer to a delete was lost, it
  may still come, so this attempt does not put that content again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from huggingface_hub import CommitOperationDelete
from huggingface_hub.hf_api import LFSFileInfo

from ...errors import StoreError, StoreUnavailable
from ..durable import Hashed, make_folder, remove
from .api import HubApi, MissingError, Operation, uploaded
from .branch import BRANCH, Tip

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
SIGNED = "-signed"
"""What the name of a place has in it whose bytes are followed by a signature."""
LARGE = ".lfs"
"""What else is in the name of a place that is no safetensors file: `*.lfs.*` is a pattern of every
new repository's .gitattributes, to which the Hub would add a line for each file that none names."""
MARK = 16
"""Characters of the random mark in a signature."""
ORPHAN_SECONDS = 3600.0
LOOK_FOR_ORPHANS = 600.0
"""Seconds between looks at what killed attempts have left."""
FIRST_BYTES = 1 << 20
"""Where a file's bytes name the attempt that wrote them: a safetensors header begins with its
metadata."""

Named = Mapping[str, int]
"""The places that a record names, and their sizes."""


class Objects(Protocol):
    """Bulk files of one attempt of one run."""

    place: re.Pattern[str]
    """What a place looks like; group 1 is the attempt's folder."""

    def upload(self, path: Path, hashed: Hashed, suffix: str) -> str:
        """Send a file's content, durable and named by nothing yet; returns its place."""

    def changes(self, tip: Tip, named: Named) -> list[Operation]:
        """What a commit on top of the tip does so that exactly these files are named."""

    def committed(self, tip: Tip, named: Named) -> None:
        """`tip` was committed with the last `changes` and names these files."""

    def download(self, place: str, size: int, tip: Tip, folder: Path) -> None:
        """Download a file of so many bytes to `folder/place`. Raises `MissingError`."""

    def are_elsewhere(self) -> bool:
        """Whether the run has files that the branch's trees do not have."""

    def sweep(self, tip: Tip, named: Named) -> None:
        """Delete for good what nobody names and nobody will; `tip` is this attempt's own commit."""


class RepositoryObjects:
    """`objects/<attempt>/<sha256>.safetensors` on the branch `state`; an older xrun has put what
    names no attempt into `objects/shared`, and so will nobody again."""

    place = re.compile(rf"objects/({NAME})/([0-9a-f]{{64}})([A-Za-z0-9_.-]*)")

    def __init__(self, api: HubApi, attempt: str, clock: Callable[[], float]) -> None:
        self.api, self.attempt, self.clock = api, attempt, clock
        self._own: set[str] = set()
        """Hashes of content that nobody writes again, and that a sweep may delete as soon as nobody
        names it."""
        self._sent = "", 0.0
        """What was uploaded last, and when by this machine's clock."""
        self._doubtful: set[str] = set()
        self._tree: tuple[str, frozenset[str]] = ("", frozenset())
        self._others: dict[str, set[str]] = {}
        self._looked = -LOOK_FOR_ORPHANS

    def upload(self, path: Path, hashed: Hashed, suffix: str) -> str:
        """See `Objects.upload`; small files, too, never go into git itself."""
        if suffix != ".safetensors":
            suffix = f"{LARGE}{suffix}"
        if not names_attempt(path, self.attempt):
            suffix = f"{SIGNED}{suffix}"
        with _signed(path, signature(self.attempt) if suffix.startswith(SIGNED) else b""):
            sha256 = self.api.upload(path, f"objects/{self.attempt}/{hashed.hex}{suffix}", BRANCH)
        self._sent = sha256, self.clock()
        if sha256 in self._doubtful:
            raise StoreError(
                f"The deletion of {sha256} was asked for a moment ago, and may still come."
            )
        self._own.add(sha256)
        return f"objects/{self.attempt}/{sha256}{suffix}"

    def changes(self, tip: Tip, named: Named) -> list[Operation]:
        """See `Objects.changes`; the content of what is added was uploaded before, maybe by another
        process."""
        there = self._files(tip)
        added = [
            uploaded(place, self._sha256(place), self._sent_bytes(place, size))
            for place, size in named.items()
            if place not in there
        ]
        return [*added, *(CommitOperationDelete(place) for place in sorted(there - named.keys()))]

    def committed(self, tip: Tip, named: Named) -> None:
        """See `Objects.committed`."""
        self._own |= {self._sha256(place) for place in self._tree[1] - named.keys()}
        self._tree = (tip.commit, frozenset(named))

    def download(self, place: str, size: int, tip: Tip, folder: Path) -> None:
        """See `Objects.download`; from the commit that names it, and without its signature."""
        sent = self._sent_bytes(place, size)
        self.api.download(place, sent, tip.found_in, folder)
        if sent != size:  # who reads it before finds that it is not what was committed
            os.truncate(folder / place, size)

    def are_elsewhere(self) -> bool:
        """See `Objects.are_elsewhere`."""
        return False

    def sweep(self, tip: Tip, named: Named) -> None:
        """See `Objects.sweep`. Raises `StoreError`; trying again later is harmless."""
        kept = {self._sha256(place) for place in named}
        if not self._own - kept and self.clock() - self._looked < LOOK_FOR_ORPHANS:
            return
        listed = self.api.lfs_objects()
        refs = self.api.all_refs()
        if refs.pop(f"refs/heads/{BRANCH}", "") != tip.commit:
            return
        kept |= self._named_elsewhere(set(refs.values()))
        old = self._server_time(listed) - ORPHAN_SECONDS
        gone = [
            o
            for o in listed
            if o.file_oid not in kept and (o.file_oid in self._own or o.pushed_at.timestamp() < old)
        ]
        if gone:
            self._delete(gone)
        self._own &= kept
        self._looked = self.clock()

    def _server_time(self, listed: Sequence[LFSFileInfo]) -> float:
        """Seconds since 1970 by the Hub's clock, or less: this machine's may be days ahead, so that
        what others write now would look old."""
        sha256, when = self._sent
        pushed = [o.pushed_at.timestamp() for o in listed if o.file_oid == sha256]
        return max(pushed, default=-math.inf) + self.clock() - when

    def _delete(self, gone: list[LFSFileInfo]) -> None:
        try:
            self.api.delete_lfs_objects(gone)
        except StoreUnavailable:
            self._doubtful |= {item.file_oid for item in gone}
            raise

    def _files(self, tip: Tip) -> frozenset[str]:
        if self._tree[0] != tip.commit:
            self._tree = (tip.commit, frozenset(self.api.large_files(tip.commit, "objects")))
        return self._tree[1]

    def _named_elsewhere(self, commits: set[str]) -> set[str]:
        """What the trees of other refs name; a commit's tree is listed once."""
        new = {
            commit: set(self.api.large_files(commit).values())
            for commit in commits - self._others.keys()
        }
        self._others = {commit: {**self._others, **new}[commit] for commit in commits}
        return set().union(*self._others.values())

    def _sha256(self, place: str) -> str:
        return self._parts(place)[2]

    def _sent_bytes(self, place: str, size: int) -> int:
        """The size there of a file of `size` bytes."""
        match = self._parts(place)
        signed = match[3].startswith(SIGNED)
        return size + (len(signature(match[1])) if signed else 0)

    def _parts(self, place: str) -> re.Match[str]:
        match = self.place.fullmatch(place)
        if match is None:
            raise StoreError(f"{place} is not a place in {self.api.where}.")
        return match


class BucketObjects:
    """`<run>/objects/<attempt>/<hash>-<random>.safetensors` in the bucket; the branch has the head
    alone.

    Buckets overwrite in place and know no versions, so no place is ever used twice, not even by the
    same attempt.
    """

    def __init__(self, api: HubApi, run: str, attempt: str) -> None:
        self.api, self.run, self.attempt = api, run, attempt
        self.place = re.compile(rf"{re.escape(run)}/objects/({NAME})/{NAME}")
        self._created = False

    def upload(self, path: Path, hashed: Hashed, suffix: str) -> str:
        """See `Objects.upload`; the bucket is made when there is something to keep in it."""
        if not self._created:
            self.api.create_bucket()
            self._created = True
        place = f"{self.run}/objects/{self.attempt}/{hashed.hex}-{uuid.uuid4().hex[:8]}{suffix}"
        self.api.upload_to_bucket(path, place)
        return place

    def changes(self, tip: Tip, named: Named) -> list[Operation]:
        """See `Objects.changes`; the record alone names what the bucket holds."""
        return []

    def committed(self, tip: Tip, named: Named) -> None:
        """See `Objects.committed`."""

    def download(self, place: str, size: int, tip: Tip, folder: Path) -> None:
        """See `Objects.download`; written aside and moved into place."""
        aside = folder / f".{self.attempt}.{uuid.uuid4().hex}"
        try:
            self.api.download_from_bucket(place, size, aside)
            make_folder((folder / place).parent)
            aside.replace(folder / place)
        finally:
            remove(aside)

    def are_elsewhere(self) -> bool:
        """See `Objects.are_elsewhere`; a reader who names no run asks for any run's."""
        return any("/objects/" in place for place in self._listed())

    def _listed(self) -> list[str]:
        """The run's files; there is no bucket before the first one."""
        try:
            return self.api.bucket_files(f"{self.run}/objects" if self.run else "")
        except MissingError:
            return []

    def sweep(self, tip: Tip, named: Named) -> None:
        """See `Objects.sweep`; nobody else uses a place that was listed while this attempt had the
        head, so it goes at once."""
        listed = self._listed()
        if self.api.branches().get(BRANCH) != tip.commit:
            return
        if gone := [place for place in listed if place not in named]:
            self.api.delete_from_bucket(gone)


def names_attempt(path: Path, attempt: str) -> bool:
    """Whether a file's first bytes hold the attempt's id in quotes, so that no other attempt writes
    a file like it."""
    with path.open("rb") as file:
        return json.dumps(attempt).encode() in file.read(FIRST_BYTES)


def signature(attempt: str) -> bytes:
    """What follows the bytes of a file that do not name their attempt: of the same length for all
    of an attempt's, and never twice the same."""
    return b"\n%b %b\n" % (json.dumps(attempt).encode(), secrets.token_hex(MARK // 2).encode())


@contextlib.contextmanager
def _signed(path: Path, end: bytes) -> Iterator[None]:
    """The file has this at its end, for as long as the block."""
    size = path.stat().st_size
    if end:
        with path.open("ab") as file:
            file.write(end)
    try:
        yield
    finally:
        os.truncate(path, size)
