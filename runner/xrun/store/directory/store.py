"""A store in a folder on any filesystem with hard links and rename.

    commits/00000012.json       see `commits`
    objects/<attempt>/<hash>    a file as that attempt wrote it; its own second copy ends in "-2"
    quarantine/                 copies that did not have the bytes that were committed

Why a machine that was believed dead can do no harm: its commit needs a number that is free and the
highest, it writes under its own name only, and it deletes only what its last head had already
dropped, which no later head names again.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...clock import now
from ...errors import CheckpointCorrupt, LeaseLost, StoreError, StoreUnavailable
from ..blocks import BLOCK, Block, Range
from ..durable import (
    file_slices,
    has_block,
    hash_file,
    list_folder,
    make_folder,
    remove,
    sync_folder,
    write_file,
    writing,
)
from ..protocol import Chunk, Head, StoredFile, copies_named, lease_lost
from .commits import CommitFolder, NumberTakenError, file_name, head_of, line_of

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
OBJECT = re.compile(rf"objects/({NAME})/{NAME}")

_WAY_ON = "Bring the folder's files back from a copy, or start another run with --again."
"""After state that cannot be read; nothing is started from step 0."""


class DirectoryStore:
    """The `Store` of one attempt of one run in the folder `root`, which the first put or commit
    makes.

    Whoever only wants to read may give "" as the run: then any run's head is right.
    """

    def __init__(
        self,
        root: Path,
        run: str,
        attempt: str,
        owner: str,
        clock: Callable[[], float] = now,
        block: int = BLOCK,
    ) -> None:
        if not re.fullmatch(NAME, attempt):
            raise StoreError(
                f"An attempt cannot be called {attempt!r}: its name becomes a folder's."
            )
        self.root, self.run, self.attempt, self.owner = Path(root), run, attempt, owner
        self.damaged: list[str] = []
        self._clock, self._block = clock, block
        self._commits = CommitFolder(self.root / "commits")
        self._attempts = {attempt}
        self._unsure: Head | None = None
        self._begun = False
        self._hashing: dict[str, Future[str]] = {}

    def head(self) -> Head | None:
        """See `Store.head`; damaged commit files are skipped and listed in `damaged`."""
        return self._scan()[1]

    def put(self, chunks: Iterable[Chunk], suffix: str = "", *, blocks: bool = False) -> StoredFile:
        """See `Store.put`; a file's name is its hash alone.

        Files without any commit would make a new run look like one whose commits are gone, so it
        refuses; where this store has seen one, they are.
        """
        if not self._commits.numbers():
            if self._begun:
                raise self._lost(None)
            raise StoreError(
                f"Nothing was committed in {self.root} yet: the run's first commit comes before its"
                " first file."
            )
        return self._write_object(chunks, block=self._block if blocks else 0)

    def duplicate(self, file: StoredFile) -> StoredFile:
        """See `Duplicating`; a copy counts if it is there with its size, and the one copied
        from is verified."""
        if sum(self._has(copy, file.size) for copy in file.copies) >= 2:
            return file
        source = self.fetch(file)
        kept = str(source.relative_to(self.root))
        suffix = "-2" if kept == f"objects/{self.attempt}/{file.hash}" else ""
        second = self._write_object(file_slices(source), suffix)
        if second.hash != file.hash:
            raise StoreError(f"{source} changed while it was copied.")
        return replace(file, copies=(kept, *second.copies))

    def commit(self, record: dict[str, Any], parent: Head | None) -> Head:
        """See `Store.commit`; link(2) is the compare-and-swap, since it fails if the number is
        taken."""
        highest, head = self._scan()
        line = self._line(highest + 1, self._confirmed(head, parent), record)
        try:
            newest = self._add(highest + 1, line)
        except NumberTakenError:
            raise self._lost(self.head()) from None
        if newest != highest + 1:  # ours was an old number that a successor's sweep had freed
            raise self._lost(self.head())
        return head_of(line)

    def fetch(self, file: StoredFile) -> Path:
        """See `Store.fetch`; every call reads and hashes the whole file, whatever an earlier call
        found.

        Only what `fetch_soon` has begun to hash is not hashed once more.
        """
        return self._first_intact(file, lambda copy: self._fault(copy, file))

    def fetch_ranges(self, file: StoredFile, ranges: Sequence[Range]) -> Path:
        """See `Store.fetch_ranges`; a copy with a bad block stays where it is, for others may be
        reading what is right of it."""
        if not file.blocks:
            return self.fetch(file)
        blocks = file.blocks_of(ranges)
        return self._first_intact(file, lambda copy: self._bad_block(copy, file, blocks))

    def _first_intact(self, file: StoredFile, fault_of: Callable[[str], str]) -> Path:
        """The path of the first copy without a fault."""
        wrong, unreadable = [], False
        for copy in file.copies:
            try:
                fault = fault_of(copy)
            except OSError as error:
                fault, unreadable = f"cannot be read ({error.strerror})", True
            if not fault:
                return self.root / copy
            wrong.append(f"{copy} {fault}")
        what = (
            f"No copy of file {file.hash} in {self.root} is intact:"
            f" {'; '.join(wrong) or 'it has no copies'}."
        )
        raise StoreUnavailable(what) if unreadable else CheckpointCorrupt(what)

    def fetch_soon(self, files: Iterable[StoredFile]) -> None:
        """See `Store.fetch_soon`; one thread hashes."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="xrun-fetch")
        for file in files:
            for copy in filter(OBJECT.fullmatch, file.copies[:1]):
                self._hashing[copy] = thread.submit(hash_file, self.root / copy, file.hash)
        thread.shutdown(wait=False)

    def ask_to_stop(self) -> str:
        """See `StopRequests`; the wish is an empty file with the attempt's name."""
        head = self.head()
        if head is not None:
            with writing(self.root):
                (self.root / f"stop-{head.attempt}").touch()
        return head.attempt if head else ""

    def asked_to_stop(self) -> bool:
        """See `StopRequests`."""
        wish = self.root / f"stop-{self.attempt}"
        asked = wish.exists()
        remove(wish)
        return asked

    def sweep(self) -> None:
        """See `Store.sweep`; also deletes what killed attempts left half-written, and all but the
        newest commit files.

        It deletes in the folders of attempts that the commits up to this attempt's head mention.
        Any other folder may be a successor's, who is writing.
        """
        highest, head = self._scan()
        if (
            head is None
            or head.attempt != self.attempt
            or head.number != highest
            or head == self._unsure
        ):
            return
        numbers = self._commits.numbers()
        self._learn_attempts(numbers)
        named = set(copies_named(head.record))
        with writing(self.root):
            for attempt in self._attempts:
                self._sweep_objects(attempt, named)
            self._commits.prune(numbers, self._attempts - {self.attempt})

    def _scan(self) -> tuple[int, Head | None]:
        """Return the highest number seen, valid or not, and the newest valid head; both from one
        listing."""
        for _ in range(3):
            numbers = self._commits.numbers()
            self.damaged = []
            try:
                for number in numbers:
                    if head := self._commits.read(number):
                        self._begun = True
                        return numbers[0], self._ours(head)
                    self.damaged.append(file_name(number))
                return self._without_head(numbers)
            except FileNotFoundError:  # swept since it was listed
                continue
        raise StoreUnavailable(f"The commits in {self.root} change while they are being read.")

    def _without_head(self, numbers: list[int]) -> tuple[int, None]:
        """Return that nothing was ever committed, if that is certain."""
        if numbers:
            raise CheckpointCorrupt(
                f"Every commit in {self.root} is damaged: {', '.join(self.damaged)}.",
                _WAY_ON,
            )
        # The first commit precedes the first object, so commits are listed once more after an
        # object was seen.
        if self._has_files():
            if self._commits.numbers():
                raise FileNotFoundError
            raise CheckpointCorrupt(
                f"{self.root} holds files, but its commits are gone: cannot tell what was"
                " committed.",
                _WAY_ON,
            )
        return 0, None

    def _has_files(self) -> bool:
        objects = self.root / "objects"
        written = (
            name for attempt in list_folder(objects) for name in list_folder(objects / attempt)
        )
        return any(not name.startswith(".") for name in written) or bool(
            list_folder(self.root / "quarantine")
        )

    def _ours(self, head: Head) -> Head:
        if self.run and head.run != self.run:
            raise StoreError(
                f"{self.root} belongs to run {head.run}, not to {self.run}.", "Use another folder."
            )
        return head

    def _confirmed(self, head: Head | None, parent: Head | None) -> str:
        """Return the id of the head to replace, which is `parent` or this store's own commit that
        it could not confirm."""
        now, expected = head.id if head else "", parent.id if parent else ""
        if now != expected and not (head and head == self._unsure and head.parent == expected):
            raise self._lost(head)
        return now

    def _line(self, number: int, parent: str, record: dict[str, Any]) -> bytes:
        who = {"run": self.run, "attempt": self.attempt, "owner": self.owner, "time": self._clock()}
        return line_of({"number": number, "parent": parent, **who, "record": record})

    def _add(self, number: int, line: bytes) -> int:
        """Add a commit file and return the highest number then; what cannot be confirmed now is
        recognised later."""
        try:
            self._commits.add(number, line, self.attempt)
            newest = max(self._commits.numbers(), default=0)
        except StoreUnavailable:
            self._unsure = head_of(line)
            raise
        self._unsure, self._begun = None, True
        return newest

    def _lost(self, head: Head | None) -> LeaseLost:
        return lease_lost(f"in {self.root}", self.run, self.attempt, head, self.damaged)

    def _write_object(
        self, chunks: Iterable[Chunk], suffix: str = "", block: int = 0
    ) -> StoredFile:
        folder = self.root / "objects" / self.attempt
        with writing(folder):
            make_folder(folder)
        temporary = folder / f".tmp-{uuid.uuid4().hex}"
        hashed = write_file(temporary, chunks, block)
        name = hashed.hex + suffix
        try:
            with writing(folder, hashed):
                temporary.rename(folder / name)
                sync_folder(folder)
        finally:
            remove(temporary)
        return hashed.stored(f"objects/{self.attempt}/{name}")

    def _has(self, copy: str, size: int) -> bool:
        try:
            return bool(OBJECT.fullmatch(copy)) and (self.root / copy).stat().st_size == size
        except OSError:
            return False

    def _fault(self, copy: str, file: StoredFile) -> str:
        """Return what is wrong with one copy, "" if nothing is; a bad one is in quarantine then.
        Raises OSError."""
        path = self.root / copy
        if not OBJECT.fullmatch(copy):
            return "is not a place in this store"
        try:
            size = path.stat().st_size
            if size != file.size:
                return f"has {size} bytes instead of {file.size} and {self._quarantine(copy, file)}"
            begun = self._hashing.pop(copy, None)
            found = begun.result() if begun else hash_file(path, file.hash)
            return (
                ""
                if found == file.hash
                else f"has other content and {self._quarantine(copy, file)}"
            )
        except FileNotFoundError:
            return self._gone(copy, file)

    def _bad_block(self, copy: str, file: StoredFile, blocks: Iterable[Block]) -> str:
        """Return what is wrong with these blocks of one copy, "" if nothing is. Raises OSError."""
        path = self.root / copy
        if not OBJECT.fullmatch(copy):
            return "is not a place in this store"
        try:
            if (size := path.stat().st_size) != file.size:
                return f"has {size} bytes instead of {file.size}"
            bad = (block for block in blocks if not has_block(path, block))
            block = next(bad, None)
            return f"has other content in bytes {block.begin} to {block.end}" if block else ""
        except FileNotFoundError:
            return self._gone(copy, file)

    def _gone(self, copy: str, file: StoredFile) -> str:
        """What is known of a copy that is not in its place."""
        first = f"quarantine/{copy.split('/')[1]}-{file.hash}-0"
        return f"was damaged and is in {first}" if (self.root / first).exists() else "is missing"

    def _quarantine(self, copy: str, file: StoredFile) -> str:
        """Move a bad copy aside, because exact recomputation finds the same name again, and say
        where it is."""
        folder, count = self.root / "quarantine", 0
        try:
            make_folder(folder)
            while (place := folder / f"{copy.split('/')[1]}-{file.hash}-{count}").exists():
                count += 1
            (self.root / copy).rename(place)
            sync_folder(folder)
        except OSError as error:
            return f"cannot be moved to quarantine ({error.strerror})"
        return f"was moved to quarantine/{place.name}"

    def _learn_attempts(self, numbers: list[int]) -> None:
        """Remember the attempts that made these commits or that they name: earlier ones, since the
        newest is this one's."""
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                if head := self._commits.read(number):
                    places = (OBJECT.fullmatch(copy) for copy in copies_named(head.record))
                    self._attempts |= {head.attempt} | {place[1] for place in places if place}

    def _sweep_objects(self, attempt: str, named: set[str]) -> None:
        folder = self.root / "objects" / attempt
        for name in list_folder(folder):
            if f"objects/{attempt}/{name}" not in named:
                (folder / name).unlink(missing_ok=True)
        if attempt != self.attempt:
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()
