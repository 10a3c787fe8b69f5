"""A store on the Hugging Face Hub: `hub://owner/name`, or `hub-bucket://owner/name` with the bulk
in a bucket.

    branch state   head.json                           what is committed now, see `hub_branch.py`
                   objects/<attempt>/<sha256>.safetensors   the files it names, see `hub_objects.py`
    branch main    the finished model, tagged with the run

A commit is one commit of the branch: the head, the files that it names for the first time, and the
deletion of those it drops. Everything that was sent or fetched also lies in the folder `cache`
under the same places, where a restart on the same machine finds it; nothing depends on it, and what
it holds is verified before it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd

from ...errors import CheckpointCorrupt, LeaseLost, StoreError, XrunError
from ..durable import Hashed, hash_file, make_folder, remove, write_file, writing
from ..protocol import Chunk, Head, StoredFile
from .api import ConflictError, HubApi, MissingError, NoAnswerError, Patience
from .branch import BRANCH, Pace, StateBranch, TakenError, Tip, checked_line
from .objects import NAME, SHARED, BucketObjects, Objects, RepositoryObjects

log = logging.getLogger("xrun")

ADDRESS = re.compile(r"(hub|hub-bucket)://([^/\s]+/[^/\s]+)")
WISH = "stop-"
"""What the name of a branch begins with that asks the attempt in the rest of it to stop."""
READERS_PATIENCE = 10.0
"""Seconds: a person waits for what `xrun status` says."""
DOWNLOADS = 4
"""Files that are fetched at a time; each one of them by several connections where Xet does it."""


class HubStore:
    """The `Store` of one attempt of one run at `address`; `cache` is a folder of the run on this
    machine.

    Whoever only wants to read may give "" as the run: then any run's head is right.

    `create`: make the private repository if it is not there. `spacing` seconds lie between two
    commits, at most `hourly` are made in an hour, and what the Hub refuses is tried again for
    `patience` seconds. `sleep` may return True for "give up now".
    """

    def __init__(
        self,
        address: str,
        run: str,
        attempt: str,
        owner: str,
        cache: Path,
        *,
        token: str | None = None,
        create: bool = True,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] | None = None,
        spacing: float = 30.0,
        hourly: float = 100,
        patience: float = 300.0,
    ) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise StoreError(
                f"{address!r} is no place on the Hub.",
                "Write hub://owner/name or hub-bucket://owner/name.",
            )
        if not re.fullmatch(NAME, attempt) or attempt == SHARED:
            raise StoreError(
                f"An attempt cannot be called {attempt!r}: its name becomes a folder's."
            )
        self.run, self.attempt, self.owner, self.cache = run, attempt, owner, Path(cache)
        self._clock, self._create, self._spacing = clock, create, spacing
        sleep = sleep or threading.Event().wait
        patience = patience if create else min(patience, READERS_PATIENCE)
        self._api = HubApi(match[2], token, lambda: Patience(patience, clock, sleep))
        self._pace = Pace(spacing, int(hourly), clock, sleep)
        self._branch = StateBranch(self._api, run, self._pace)
        self._objects: Objects = (
            RepositoryObjects(self._api, attempt, clock)
            if match[1] == "hub"
            else BucketObjects(self._api, run, attempt)
        )
        self._tip: Tip | None = None
        self._looked = self._warned = 0.0
        self._commits_here = False
        self._put: set[str] = set()
        self._fetching: dict[str, Future[Path]] = {}

    @property
    def damaged(self) -> list[str]:
        """The commits that the last look at the head had to skip, newest first."""
        return self._branch.damaged

    def head(self) -> Head | None:
        """See `Store.head`; without `create`, a repository that is not there holds nothing."""
        self._tip = self._branch.look() if self._create else self._branch.look_if_there()
        self._looked = self._clock()
        return self._tip.head if self._tip else None

    def put(self, chunks: Iterable[Chunk], suffix: str = ".safetensors") -> StoredFile:
        """See `Store.put`; by way of a file in the cache, so that memory stays flat; what the head
        names is not sent again."""
        self._look_now_and_then()
        spool = self.cache / f".{self.attempt}.{uuid.uuid4().hex}"
        with writing(self.cache):
            make_folder(self.cache)
        hashed = write_file(spool, chunks)
        try:
            file = self._again(hashed) or StoredFile(
                hashed.hex, hashed.size, (self._objects.upload(spool, hashed, suffix),)
            )
            self._put |= set(file.copies)
            with writing(self.cache):
                make_folder((self.cache / file.copies[0]).parent)
                spool.replace(self.cache / file.copies[0])
        finally:
            remove(spool)
        return file

    def duplicate(self, file: StoredFile) -> StoredFile:
        """See `Store.duplicate`; the Hub keeps copies of its own."""
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
        """See `Store.commit_delay`."""
        return self._pace.delay()

    def fetch(self, file: StoredFile) -> Path:
        """See `Store.fetch`; what the cache has wrong is downloaded again."""
        wrong = []
        for place in file.copies:
            begun = self._fetching.pop(place, None)
            try:
                return begun.result() if begun else self._fetched(file, place)
            except CheckpointCorrupt as error:
                wrong.append(error.message)
        what = "; ".join(wrong) or "it has no place"
        raise CheckpointCorrupt(f"File {file.hash} at {self._api.where} is not intact: {what}.")

    def fetch_soon(self, files: Iterable[StoredFile]) -> None:
        """See `Store.fetch_soon`; downloads several files at a time."""
        threads = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="xrun-fetch")
        for file in files:
            for place in file.copies[:1]:
                self._fetching[place] = threads.submit(self._fetched, file, place)
        threads.shutdown(wait=False)

    def publish(self, folder: Path, run: str, message: str) -> str:
        """See `Store.publish`; one commit of these files on `main`, whatever else lies there."""
        self._pace.wait()
        mark, patience = (
            f"Published by attempt {self.attempt}, {uuid.uuid4().hex}",
            self._api.patience(),
        )
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        additions = [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in paths]
        self._api.upload_all(additions, "main")
        while True:
            self._pace.note()
            try:
                revision = self._api.commit(
                    "main", additions, message, mark, self._api.branches()["main"]
                )
                break
            except (ConflictError, NoAnswerError) as error:
                failure = error if isinstance(error, NoAnswerError) else NoAnswerError(str(error))
            landed = [commit for commit, title in self._api.titles("main") if mark in title]
            if landed:
                revision = landed[0]
                break
            patience.wait(failure)
        self._api.tag(run, revision)
        return revision

    def finish(self) -> None:
        """See `Store.finish`; squashes `state`, which takes no parent and would make a living run's
        next commit fail once.

        It is no commit, and nothing follows it, so nobody pays for a machine that waits for it.
        """
        head = self.head()
        if head is None or head.attempt != self.attempt:
            return
        self._api.squash(BRANCH, f"Commit {head.number} of {self.run}")
        self._tip = None

    def ask_to_stop(self) -> str:
        """See `Store.ask_to_stop`; the wish is a branch with the attempt's name, which takes no
        commit."""
        head = self.head()
        if head is not None:
            with contextlib.suppress(ConflictError):  # asked before
                self._api.create_branch(f"{WISH}{head.attempt}")
        return head.attempt if head else ""

    def asked_to_stop(self) -> bool:
        """See `Store.asked_to_stop`; wishes that came too late for an earlier attempt are removed
        too."""
        wishes = [branch for branch in self._api.branches() if branch.startswith(WISH)]
        for wish in wishes:
            if wish <= f"{WISH}{self.attempt}":
                with contextlib.suppress(XrunError):  # it has been heard, which is what counts
                    self._api.delete_branch(wish)
        return f"{WISH}{self.attempt}" in wishes

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
        who = {"run": self.run, "attempt": self.attempt, "owner": self.owner, "time": now}
        place = {"number": tip.highest + 1, "parent": tip.id, "recent": [*self._pace.recent(), now]}
        return checked_line({**place, **who, "record": record})

    def _lost(self, head: Head | None) -> LeaseLost:
        if head is None:
            return LeaseLost(
                f"The commits at {self._api.where} are gone: somebody has deleted the run's state."
            )
        if head.attempt == self.attempt:
            return LeaseLost(
                f"The head at {self._api.where} is now commit {head.number} of this attempt,"
                f" {self.attempt}."
            )
        who = f"attempt {head.attempt} of {head.owner}"
        return LeaseLost(
            f"Run {self.run} was taken over by {who} (commit {head.number}); attempt {self.attempt}"
            " stops."
        )

    # Files

    def _look_now_and_then(self) -> None:
        """A process that never commits learns from the branch what its cache need not hold any
        more."""
        if self._tip is None or (
            not self._commits_here and self._clock() - self._looked >= max(60.0, self._spacing)
        ):
            self._tip, self._looked = (
                self._branch.look_again() if self._tip else self._branch.look(),
                self._clock(),
            )
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
        same = (
            file
            for file in stored_files(self._tip.head.record)
            if (file.hash, file.size) == (hashed.hex, hashed.size)
        )
        return next((file for file in same if self._objects.place.fullmatch(file.copies[0])), None)

    def _fetched(self, file: StoredFile, place: str) -> Path:
        """The file at one place, whole, in the cache; downloaded at most twice, since a transfer
        can go wrong."""
        if not self._objects.place.fullmatch(place) or "/.." in place:
            raise CheckpointCorrupt(f"{place} is not a place in this store")
        path = self.cache / place
        for last in (False, False, True):
            seen = identity(path)
            if seen is not None and is_intact(path, file):
                return path
            if not last:
                self._download(place, seen)
        raise CheckpointCorrupt(f"{place} has other content")

    def _download(self, place: str, seen: object) -> None:
        """Download unless another process of this machine has done it since the file was `seen`."""
        with self._locked(place):
            if identity(self.cache / place) != seen:
                return
            if self._tip is None:
                self.head()
            if self._tip is None:
                raise CheckpointCorrupt(f"{place} is missing")
            try:
                self._objects.download(place, self._tip, self.cache)
            except MissingError as error:
                if error.what not in ("file", "place"):
                    raise NoAnswerError(
                        f"Cannot download {place} from {self._api.where}: {error}."
                    ) from error
                raise CheckpointCorrupt(f"{place} is missing") from error

    @contextlib.contextmanager
    def _locked(self, place: str) -> Iterator[None]:
        with writing(self.cache):
            make_folder((self.cache / place).parent)
            lock = (self.cache / f"{place}.lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prune_cache(self, head: Head) -> None:
        """Delete what the head does not name, of this process and of attempts before; the rest
        belongs to processes beside it."""
        named = files_named(head.record)
        before = head.attempt == self.attempt
        for path in [*self.cache.glob("objects/*/*"), *self.cache.glob("*/objects/*/*")]:
            place = str(path.relative_to(self.cache)).removesuffix(".lock")
            if place not in named and (
                place in self._put or (before and path.parent.name != self.attempt)
            ):
                remove(path)
        for path in self.cache.glob(".*.*") if before else ():
            if path.name[1:].rpartition(".")[0] != self.attempt:
                remove(path)
        self._put &= named.keys()


def stored_files(record: Any) -> Iterator[StoredFile]:
    """Every file that a record names, at any depth."""
    if isinstance(record, dict):
        if (
            isinstance(record.get("copies"), list)
            and record.keys() & {"hash", "blake3"}
            and record["copies"]
        ):
            yield StoredFile.from_json(record)
        record = list(record.values())
    if isinstance(record, list):
        for value in record:
            yield from stored_files(value)


def files_named(record: Any) -> dict[str, int]:
    """The places that a record names, and the sizes of the files there."""
    return {place: file.size for file in stored_files(record) for place in file.copies}


def identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None if it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def is_intact(path: Path, file: StoredFile) -> bool:
    """Whether a file has the bytes that were committed, read now."""
    try:
        return path.stat().st_size == file.size and hash_file(path, file.hash) == file.hash
    except OSError:
        return False
