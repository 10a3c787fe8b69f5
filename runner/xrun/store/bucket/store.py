"""A store in a bucket: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. Below
the prefix and the run's id lies what a folder's store has, as objects:

    commits/00000012.json                made with "must not exist", in one request
    objects/<attempt>/<random>.<bytes>/  the pieces of a file: `objects`
    model/                               the finished model
    stop/<attempt>                       the wish that this attempt stop

A machine that was believed dead can do no harm: its commit needs a number that is free and the
highest afterwards, each of its files has a name that nobody else has, and it deletes only what was
listed while it had the head and that head does not name; no later head names that again.

What was fetched also lies in a folder of this machine (`cache`), where a restart finds it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import environment
from ...clock import now
from ...errors import CheckpointCorrupt, LeaseLost, StoreError, StoreUnavailable, XrunError
from ..address import Address
from ..blocks import Range
from ..cache import Cache, Fetching
from ..directory.commits import KEPT, checked, file_name, head_of, line_of, sealed
from ..protocol import Chunk, Head, StoredFile, copies_named, lease_lost
from .client import BucketClient
from .model import BucketModel
from .objects import NAME, PIECE, PLACE, Pieces, place_of

log = logging.getLogger("xrun")

READERS_PATIENCE = 10.0
"""Seconds: a person waits for what `xrun status` says."""
DOWNLOADS = 2
"""Files that are fetched at a time, each one in several pieces."""
_COMMIT = re.compile(r"commits/(\d{8,})\.json")
_WAY_ON = "Bring the bucket's objects back from a copy, or start another run with --again."


class BucketStore:
    """The `Store` of one attempt of one run at `address`, the run's own, and its `Publisher`,
    `KeepsHistory` and `StopRequests`; `cache` is a folder of the run on this machine.

    Whoever only wants to read may give "" as the run: then any run's head is right. A reader
    (`reads`) is not patient.
    """

    def __init__(
        self,
        address: Address,
        run: str,
        attempt: str,
        owner: str,
        cache: Path,
        *,
        reads: bool = False,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], object] | None = None,
        patience: float = float(environment.BUCKET_PATIENCE.default),
        piece: int = PIECE,
    ) -> None:
        if not re.fullmatch(NAME, attempt):
            raise StoreError(
                f"An attempt cannot be called {attempt!r}: its name becomes a folder's."
            )
        self.run, self.attempt, self.owner, self.cache = run, attempt, owner, Path(cache)
        self.damaged: list[str] = []
        self._clock = clock
        self._client = BucketClient(
            address,
            environ=environ,
            patience=min(patience, READERS_PATIENCE) if reads else patience,
            clock=clock,
            sleep=sleep,
        )
        self._pieces = Pieces(self._client, attempt, piece)
        self._kept_here = Cache(self.cache, attempt)
        self._seen: tuple[int, Head | None] | None = None
        """The highest number and the head, at the last look or commit."""
        self._highest = 0
        self._sent: set[str] = set()
        """The ids of commits that this store could not confirm."""
        self._coming = Fetching(self.where, self._fetched, DOWNLOADS)
        self._warned = 0.0
        self._swept = False

    @property
    def where(self) -> str:
        """The address, for people."""
        return self._client.where

    def head(self) -> Head | None:
        """See `Store.head`; damaged commits are skipped and listed in `damaged`."""
        self._seen = self._scan()
        return self._seen[1]

    def put(self, chunks: Iterable[Chunk], suffix: str = "", *, blocks: bool = False) -> StoredFile:
        """See `Store.put`.

        Files without any commit would make a new run look like one whose commits are gone, so it
        refuses.
        """
        if not (self._seen and self._seen[0]) and not self._numbers():
            raise StoreError(
                f"Nothing was committed at {self.where} yet: the run's first commit comes before"
                " its first file."
            )
        if not self._swept:  # what killed attempts have left is not to add up
            self._sweep(own=False)
        return self._pieces.put(chunks, blocks=blocks)

    def commit(self, record: dict[str, Any], parent: Head | None) -> Head:
        """See `Store.commit`; two requests where nobody came between: the number is taken, and it
        is the highest."""
        for _ in range(3):
            highest, replaced = self._confirmed(parent)
            line = self._line(highest + 1, replaced, record)
            head = head_of(line)
            if self._added(head, line, parent):
                self._seen, self._sent = (head.number, head), set()
                return head
            self._seen = None  # taken, maybe by a commit of this store's own that came late
        raise StoreUnavailable(f"The commits at {self.where} change while one is added.")

    def fetch(self, file: StoredFile) -> Path:
        """See `Store.fetch`; what the cache has wrong is downloaded again."""
        return self._coming.fetch(file)

    def fetch_ranges(self, file: StoredFile, ranges: Sequence[Range]) -> Path:
        """See `Store.fetch_ranges`; a block is a piece, or the first part of one."""
        if not file.blocks:
            return self.fetch(file)
        blocks = file.blocks_of(ranges)

        def fetched(place: str) -> Path:
            read = functools.partial(self._pieces.read, _checked(place), file.size)
            return self._kept_here.fetch_blocks(file, place, blocks, read)

        return self._coming.first_intact(file, fetched)

    def fetch_soon(self, files: Iterable[StoredFile]) -> None:
        """See `Store.fetch_soon`; downloads several files at a time."""
        self._coming.soon(files)

    def sweep(self) -> None:
        """See `Store.sweep`; also deletes all but the newest commits. What cannot be deleted now
        can be later, and is no reason to fail."""
        self._sweep(own=True)

    def publish(self, folder: Path, run: str, message: str) -> str:
        """See `Publisher`; below `model/`, and what lay there before is gone. The revision is a
        digest of the files."""
        return BucketModel(self._client).publish(folder)

    def drop_history(self) -> None:
        """See `KeepsHistory`; what a sweep leaves is the history."""
        self.head()
        self.sweep()

    def ask_to_stop(self) -> str:
        """See `StopRequests`; the wish is an object with the attempt's name."""
        head = self.head()
        if head is not None:
            self._client.put(f"stop/{head.attempt}", b"stop\n")
        return head.attempt if head else ""

    def asked_to_stop(self) -> bool:
        """See `StopRequests`; wishes that came too late for an earlier attempt are removed too."""
        own, wishes = f"stop/{self.attempt}", self._client.keys("stop")
        self._client.delete([wish for wish in wishes if wish <= own])
        return own in wishes

    # Commits

    def _numbers(self) -> list[int]:
        """The numbers of all commits, damaged ones too, highest first."""
        found = map(_COMMIT.fullmatch, self._client.keys("commits"))
        return sorted((int(each[1]) for each in found if each), reverse=True)

    def _scan(self) -> tuple[int, Head | None]:
        """The highest number seen, valid or not, and the newest valid head; both from one
        listing."""
        for _ in range(3):
            numbers, self.damaged = self._numbers(), []
            if numbers and numbers[0] < self._highest:  # an old answer
                continue
            self._highest = max([self._highest, *numbers[:1]])
            try:
                if not numbers:
                    return self._nothing()
                return numbers[0], self._ours(self._newest(numbers))
            except FileNotFoundError:  # swept since it was listed, or begun
                continue
        raise StoreUnavailable(f"The commits at {self.where} change while they are being read.")

    def _newest(self, numbers: list[int]) -> Head:
        """The newest valid one of these commits; one that seems damaged is read twice, since a
        transfer can go wrong. Raises FileNotFoundError."""
        for number in numbers:
            for _ in range(2):
                content = self._client.read(_key(number))
                if content is None:
                    raise FileNotFoundError
                if head := checked(content, number):
                    return head
            self.damaged.append(file_name(number))
        raise CheckpointCorrupt(
            f"Every commit at {self.where} is damaged: {', '.join(self.damaged)}.", _WAY_ON
        )

    def _nothing(self) -> tuple[int, None]:
        """That nothing was ever committed, if that is certain: the first commit precedes the first
        file, so commits are listed once more after a file was seen."""
        if self._client.keys("objects"):
            if self._numbers():
                raise FileNotFoundError
            raise CheckpointCorrupt(
                f"{self.where} holds files, but its commits are gone: cannot tell what was"
                " committed.",
                _WAY_ON,
            )
        return 0, None

    def _ours(self, head: Head) -> Head:
        if self.run and head.run != self.run:
            raise StoreError(
                f"{self.where} belongs to run {head.run}, not to {self.run}.", "Use another prefix."
            )
        return head

    def _confirmed(self, parent: Head | None) -> tuple[int, str]:
        """The highest number, and the id of the head to replace: `parent`, or this store's own
        commit that it could not confirm."""
        expected = parent.id if parent else ""
        self._highest = max(self._highest, parent.number if parent else 0)
        seen = self._seen
        if parent is None or seen is None or self._sent or _id(seen[1]) != expected:
            seen = self._seen = self._scan()
        if _id(seen[1]) != expected and _id(seen[1]) not in self._sent:
            raise self._lost(seen[1])
        return seen[0], _id(seen[1])

    def _line(self, number: int, parent: str, record: dict[str, Any]) -> bytes:
        """A commit's line; no two are the same, so that one is known by its bytes."""
        who = {"run": self.run, "attempt": self.attempt, "owner": self.owner, "time": self._clock()}
        mark = {"number": number, "parent": parent, "mark": uuid.uuid4().hex}
        return line_of({**mark, **who, "record": record})

    def _added(self, head: Head, line: bytes, parent: Head | None) -> bool:
        """Make a commit appear and be sure that it is the newest; False if its number is taken.
        What cannot be confirmed now is recognised later.

        Raises:
            LeaseLost: it was an old number that a successor's sweep had freed.
        """
        self._sent.add(head.id)
        if not self._client.create(_key(head.number), sealed(line)):
            self._sent.discard(head.id)
            return False
        numbers = self._numbers()
        if numbers and numbers[0] > head.number:
            raise self._lost(self.head())
        if head.number not in numbers:
            raise StoreUnavailable(f"{self.where} does not show commit {head.number} yet.")
        if parent is not None and parent.number not in numbers:
            self._client.delete([_key(head.number)])  # or it would be the head of what is gone
            raise self._lost(None)
        return True

    def _lost(self, head: Head | None) -> LeaseLost:
        return lease_lost(f"at {self.where}", self.run, self.attempt, head, self.damaged)

    # Files

    def _fetched(self, file: StoredFile, place: str) -> Path:
        return self._kept_here.fetch(
            file, _checked(place), lambda: self._pieces.download(place, file.size, self.cache)
        )

    def _sweep(self, *, own: bool) -> None:
        """Sweep if the head is this attempt's; without `own` only what attempts before it have
        left, since other processes of this one may be between `put` and `commit`."""
        head = self._seen[1] if self._seen else None
        if head is None or head.attempt != self.attempt or self._sent:
            return
        self._swept = True
        named = set(copies_named(head.record))
        self._kept_here.prune(dict.fromkeys(named, 0), ours=True)
        try:
            self._delete(head, named, f"objects/{self.attempt}/" if not own else "")
        except XrunError as error:
            if self._clock() - self._warned > 3600:
                log.warning("Old state could not be deleted: %s Trying again later.", error)
                self._warned = self._clock()

    def _delete(self, head: Head, named: set[str], spared: str) -> None:
        """Delete what the head does not name and what was there while it was the head: whoever
        writes here then is this attempt, or one before. `spared`: how keys begin that stay."""
        listed = self._client.keys("objects")
        numbers = self._numbers()
        if numbers[:1] != [head.number]:
            return
        gone = [key for key in listed if place_of(key) not in named]
        gone = [key for key in gone if not (spared and key.startswith(spared))]
        self._client.delete([*gone, *map(_key, numbers[KEPT:])])


def _key(number: int) -> str:
    return f"commits/{file_name(number)}"


def _checked(place: str) -> str:
    """Raises CheckpointCorrupt where it is no place."""
    if not PLACE.fullmatch(place):
        raise CheckpointCorrupt(f"{place} is not a place in this store")
    return place


def _id(head: Head | None) -> str:
    return head.id if head else ""
