"""A store on the Hugging Face Hub: `hub://owner/name`, or `hub-bucket://owner/name` with the bulk
in a bucket.

    branch state   head.json                                what is committed now: `branch`
                   objects/<attempt>/<sha256>.safetensors   the files it names: `objects`
    branch main    the finished model, tagged with the run

A commit is one commit of the branch: the head, the files that it names for the first time, and the
deletion of those it drops. Everything that was sent or fetched also lies in a folder of this
machine, under the same places (`cache`), where a restart finds it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ... import environment
from ...clock import now
from ...errors import CheckpointCorrupt, LeaseLost, StoreError, XrunError
from ..address import Address, NoAddressError
from ..blocks import BLOCK, Range
from ..cache import Cache, Fetching
from ..durable import Hashed
from ..protocol import Chunk, Head, StoredFile, lease_lost
from .api import ConflictError, HubApi, MissingError, NoAnswerError, NoRangesError, Patience
from .branch import BRANCH, StateBranch, TakenError, Tip, checked_line, title_of
from .model import HubModel
from .objects import NAME, BucketObjects, Objects, RepositoryObjects
from .rate_limiter import RateLimiter

log = logging.getLogger("xrun")

WISH = "stop-"
"""What the name of a branch begins with that asks the attempt in the rest of it to stop."""
READERS_PATIENCE = 10.0
"""Seconds: a person waits for what `xrun status` says."""
DOWNLOADS = 4
"""Files that are fetched at a time; each one of them by several connections where Xet does it."""


class HubStore:
    """The `Store` of one attempt of one run at `address`, and its `RateLimited`, `Publisher`,
    `KeepsHistory` and `StopRequests`; `cache` is a folder of the run on this machine.

    Whoever only wants to read may give "" as the run: then any run's head is right.

    `create`: make the private repository if it is not there. `spacing` seconds lie between two
    commits, at most `hourly` are made in an hour, and what the Hub refuses is tried again for
    `patience` seconds. `sleep` may return True for "give up now".
    """

    def __init__(
        self,
        address: str | Address,
        run: str,
        attempt: str,
        owner: str,
        cache: Path,
        *,
        token: str | None = None,
        create: bool = True,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], object] | None = None,
        spacing: float = float(environment.HUB_SPACING.default),
        hourly: float = float(environment.HUB_HOURLY.default),
        patience: float = float(environment.HUB_PATIENCE.default),
        block: int = BLOCK,
    ) -> None:
        address = _on_the_hub(address)
        if not re.fullmatch(NAME, attempt):
            what = f"An attempt cannot be called {attempt!r}: its name becomes a folder's."
            raise StoreError(what)
        self.run, self.attempt, self.owner, self.cache = run, attempt, owner, Path(cache)
        self._clock, self._create, self._spacing, self._block = clock, create, spacing, block
        sleep = sleep or threading.Event().wait
        patience = patience if create else min(patience, READERS_PATIENCE)
        self._api = HubApi(address.name, token, Patience(patience, clock, sleep))
        self._limiter = RateLimiter(spacing, int(hourly), clock, sleep)
        self._objects: Objects = (
            RepositoryObjects(self._api, attempt, clock)
            if address.kind == "hub"
            else BucketObjects(self._api, run, attempt)
        )
        self._branch = StateBranch(self._api, run, self._limiter, self._objects.are_elsewhere)
        self._kept_here = Cache(self.cache, attempt)
        self._tip: Tip | None = None
        self._looked = self._warned = 0.0
        self._commits_here = False
        self._coming = Fetching(self._api.where, self._fetched, DOWNLOADS)

    @property
    def damaged(self) -> list[str]:
        """The commits that the last look at the head had to skip, newest first."""
        return self._branch.damaged

    def head(self) -> Head | None:
        """See `Store.head`; without `create`, a repository that is not there holds nothing."""
        self._tip = self._branch.look() if self._create else self._branch.look_if_there()
        self._looked = self._clock()
        return self._tip.head if self._tip else None

    def put(
        self, chunks: Iterable[Chunk], suffix: str = ".safetensors", *, blocks: bool = False
    ) -> StoredFile:
        """See `Store.put`; by way of a file in the cache, so that memory stays flat; what the head
        names is not sent again."""
        self._look_now_and_then()
        with self._kept_here.spooled(chunks, self._block if blocks else 0) as (spool, hashed):
            file = self._again(hashed) or self._sent(spool, hashed, suffix)
            self._kept_here.keep(spool, file)
        return file

    def commit(self, record: dict[str, Any], parent: Head | None) -> Head:
        """See `Store.commit`; waits until the Hub takes the next commit, and tries again while
        nobody can tell."""
        named = files_named(record)
        tip = self._confirmed(parent)
        try:
            tip = self._branch.advance(
                tip,
                lambda tip: self._line(tip, record),
                lambda tip: self._objects.changes(tip, named),
            )
        except TakenError as taken:
            self._tip = None
            raise self._lost(taken.head) from None
        self._objects.committed(tip, named)
        self._tip, self._looked, self._commits_here = tip, self._clock(), True
        assert tip.head is not None
        return tip.head

    def commit_delay(self) -> float:
        """See `RateLimited`."""
        return self._limiter.delay()

    def fetch(self, file: StoredFile) -> Path:
        """See `Store.fetch`; what the cache has wrong is downloaded again."""
        return self._coming.fetch(file)

    def fetch_ranges(self, file: StoredFile, ranges: Sequence[Range]) -> Path:
        """See `Store.fetch_ranges`; whole where a server knows no ranges."""
        if not file.blocks:
            return self.fetch(file)
        blocks = file.blocks_of(ranges)

        def fetched(place: str) -> Path:
            self._check(place)
            read = functools.partial(self._read, place)
            return self._kept_here.fetch_blocks(file, place, blocks, read)

        try:
            return self._coming.first_intact(file, fetched)
        except NoRangesError:
            return self.fetch(file)

    def fetch_soon(self, files: Iterable[StoredFile]) -> None:
        """See `Store.fetch_soon`; downloads several files at a time."""
        self._coming.soon(files)

    def sweep(self) -> None:
        """See `Store.sweep`; on the Hub and in the cache. What cannot be deleted now can be later,
        and is no reason to fail."""
        tip = self._tip
        if tip is None or tip.head is None or tip.head.attempt != self.attempt or self._branch.sent:
            return
        self._prune_cache(tip.head)
        try:
            self._objects.sweep(tip, files_named(tip.head.record))
        except XrunError as error:
            if self._clock() - self._warned > 3600:
                log.warning("Old state could not be deleted: %s Trying again later.", error)
                self._warned = self._clock()

    # What others see, and what others ask

    def publish(self, folder: Path, run: str, message: str) -> str:
        """See `Publisher`; on `main` of the repository."""
        return HubModel(self._api, self._limiter, self.attempt).publish(folder, run, message)

    def drop_history(self) -> None:
        """See `KeepsHistory`; squashes `state`, which takes no parent and would make a living run's
        next commit fail once.

        It is no commit, and nothing follows it, so nobody pays for a machine that waits for it.
        """
        head = self.head()
        if head is None or head.attempt != self.attempt:
            return
        self._api.squash(BRANCH, title_of(head.number, self.run))
        self._tip = None

    def ask_to_stop(self) -> str:
        """See `StopRequests`; the wish is a branch with the attempt's name, which takes no
        commit."""
        head = self.head()
        if head is not None:
            with contextlib.suppress(ConflictError):  # asked before
                self._api.create_branch(f"{WISH}{head.attempt}")
        return head.attempt if head else ""

    def asked_to_stop(self) -> bool:
        """See `StopRequests`; wishes that came too late for an earlier attempt are removed too."""
        wishes = [branch for branch in self._api.branches() if branch.startswith(WISH)]
        for wish in wishes:
            if wish <= f"{WISH}{self.attempt}":
                with contextlib.suppress(XrunError):  # it has been heard, which is what counts
                    self._api.delete_branch(wish)
        return f"{WISH}{self.attempt}" in wishes

    # Commits

    def _confirmed(self, parent: Head | None) -> Tip:
        """The branch with `parent` as its head, or with this store's own commit that it could not
        confirm."""
        expected = parent.id if parent else ""
        tip = self._tip
        if tip is None or self._branch.sent or tip.id != expected:
            tip = self._tip = self._branch.look_again() if parent else self._branch.look()
        if tip.id != expected and tip.id not in self._branch.sent:
            raise self._lost(tip.head)
        return tip

    def _line(self, tip: Tip, record: dict[str, Any]) -> bytes:
        now = self._clock()
        recent = [*self._limiter.recent(), now]
        who = {"run": self.run, "attempt": self.attempt, "owner": self.owner, "time": now}
        place = {"number": tip.highest + 1, "parent": tip.id, "recent": recent}
        return checked_line({**place, **who, "record": record})

    def _lost(self, head: Head | None) -> LeaseLost:
        return lease_lost(f"at {self._api.where}", self.run, self.attempt, head)

    # Files

    def _look_now_and_then(self) -> None:
        """A process that never commits learns from the branch what its cache need not hold any
        more."""
        old = self._clock() - self._looked >= max(60.0, self._spacing)
        if self._tip is None or (not self._commits_here and old):
            self._tip = self._branch.look_again() if self._tip else self._branch.look()
            self._looked = self._clock()
            if self._tip.head:
                self._prune_cache(self._tip.head)
        if self._tip.head is None:
            raise StoreError(
                f"Nothing was committed at {self._api.where} yet: the run's first commit comes"
                " before its first file."
            )

    def _again(self, hashed: Hashed) -> StoredFile | None:
        """The same content if the head names it; only who commits knows what the head is now."""
        if not self._commits_here or self._tip is None or self._tip.head is None:
            return None
        content = hashed.hex, hashed.size
        named = stored_files(self._tip.head.record)
        same = (file for file in named if (file.hash, file.size) == content)
        return next((file for file in same if self._objects.place.fullmatch(file.copies[0])), None)

    def _sent(self, spool: Path, hashed: Hashed, suffix: str) -> StoredFile:
        place = self._objects.upload(spool, hashed, suffix)
        return hashed.stored(place)

    def _fetched(self, file: StoredFile, place: str) -> Path:
        self._check(place)
        return self._kept_here.fetch(file, place, lambda: self._download(place, file.size))

    def _check(self, place: str) -> None:
        """Raises CheckpointCorrupt."""
        if not self._objects.place.fullmatch(place) or "/.." in place:
            raise CheckpointCorrupt(f"{place} is not a place in this store")

    def _download(self, place: str, size: int) -> None:
        with self._found(place) as tip:
            self._objects.download(place, size, tip, self.cache)

    def _read(self, place: str, begin: int, end: int) -> bytes:
        with self._found(place) as tip:
            revision = None if isinstance(self._objects, BucketObjects) else tip.found_in
            return self._api.read_range(place, revision, begin, end)

    @contextlib.contextmanager
    def _found(self, place: str) -> Iterator[Tip]:
        """The branch as it was seen, for a body that reads the file at a place from it.

        Raises `CheckpointCorrupt` if it is not there.
        """
        if self._tip is None:
            self.head()
        if self._tip is None:
            raise CheckpointCorrupt(f"{place} is missing")
        try:
            yield self._tip
        except MissingError as error:
            if error.what not in ("file", "place"):
                what = f"Cannot download {place} from {self._api.where}: {error}."
                raise NoAnswerError(what) from error
            raise CheckpointCorrupt(f"{place} is missing") from error

    def _prune_cache(self, head: Head) -> None:
        self._kept_here.prune(files_named(head.record), ours=head.attempt == self.attempt)


def _on_the_hub(address: str | Address) -> Address:
    """The address of a repository or a bucket; raises `StoreError` for any other."""
    with contextlib.suppress(NoAddressError):
        found = Address.parse(address) if isinstance(address, str) else address
        if found.on_hub and found.name:
            return found
    raise StoreError(
        f"{str(address)!r} is no place on the Hub.",
        "Write hub://owner/name or hub-bucket://owner/name.",
    )


def stored_files(record: Any) -> Iterator[StoredFile]:
    """Every file that a record names, at any depth."""
    if isinstance(record, dict):
        hashed = record.keys() & {"hash", "blake3"}
        if isinstance(record.get("copies"), list) and hashed and record["copies"]:
            yield StoredFile.from_json(record)
        record = list(record.values())
    if isinstance(record, list):
        for value in record:
            yield from stored_files(value)


def files_named(record: Any) -> dict[str, int]:
    """The places that a record names, and the sizes of the files there."""
    return {place: file.size for file in stored_files(record) for place in file.copies}
