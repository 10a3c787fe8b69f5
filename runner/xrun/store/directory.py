"""A store in a folder on any filesystem with hard links and rename.

    commits/00000012.json       canonical JSON on one line, then its BLAKE3; linked into place, so a number has one winner
    objects/<attempt>/<blake3>  a file as that attempt wrote it; a second copy made by the same attempt ends in "-2"
    quarantine/                 copies that did not have the bytes that were committed

Why a machine that was believed dead can do no harm: its commit needs a number that is free and the highest, it writes under its
own name only, and it deletes only what its last head had already dropped, which no later head names again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3

from xrun.errors import CheckpointCorrupt, LeaseLost, StoreError, StoreUnavailable
from xrun.store import Chunk, Head, StoredFile, copies_named
from xrun.store.durable import (
    FULL,
    NO_LINKS,
    file_slices,
    hash_file,
    make_folder,
    reading,
    remove,
    sync_folder,
    write_file,
    writing,
)

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
COMMIT = re.compile(r"\d{8,}\.json")
OBJECT = re.compile(rf"objects/({NAME})/{NAME}")
KEPT_COMMITS = 32
"""Commit files that a sweep leaves, so that a damaged newest one has a predecessor."""


class DirectoryStore:
    """The `Store` of one attempt of one run in the folder `root`, which the first put or commit makes."""

    def __init__(
        self,
        root: Path,
        run: str,
        attempt: str,
        owner: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not re.fullmatch(NAME, attempt):
            raise StoreError(
                f"An attempt cannot be called {attempt!r}: its name becomes a folder's."
            )
        self.root, self.run, self.attempt, self.owner = Path(root), run, attempt, owner
        self.damaged: list[str] = []
        """The commit files that the last look at the head had to skip, newest first."""
        self._clock = clock
        self._known = {attempt}

    def head(self) -> Head | None:
        """See `Store.head`; damaged commit files are skipped and listed in `damaged`."""
        return self._scan()[1]

    def put(self, chunks: Iterable[Chunk]) -> StoredFile:
        """See `Store.put`."""
        return self._write_object(chunks)

    def duplicate(self, file: StoredFile) -> StoredFile:
        """See `Store.duplicate`; a copy counts if it is there with its size, and the one copied from is verified."""
        if sum(self._size(copy) == file.size for copy in file.copies) >= 2:
            return file
        source = self.fetch(file)
        kept = str(source.relative_to(self.root))
        suffix = "-2" if kept == f"objects/{self.attempt}/{file.blake3}" else ""
        second = self._write_object(file_slices(source), suffix)
        if second.blake3 != file.blake3:
            raise StoreError(f"{source} changed while it was copied.")
        return StoredFile(file.blake3, file.size, (kept, *second.copies))

    def commit(self, record: dict[str, Any], parent: Head | None) -> Head:
        """See `Store.commit`; link(2) is the compare-and-swap, since it fails if the number is taken."""
        highest, head = self._scan()
        if (head.id if head else "") != (parent.id if parent else ""):
            raise self._lost(head)
        line = self._line(highest + 1, parent.id if parent else "", record)
        final = self.root / "commits" / f"{highest + 1:08}.json"
        self._link(line + b"\n" + _digest(line) + b"\n", final)
        with reading(final, "whether the commit is durable", but=()):
            sync_folder(final.parent)
        if self._numbers()[:1] != [
            highest + 1
        ]:  # ours was an old number that a successor's sweep had freed
            raise self._lost(self.head())
        return _head_of(line)

    def fetch(self, file: StoredFile) -> Path:
        """See `Store.fetch`; every call reads and hashes the whole file, whatever an earlier call found."""
        wrong, unreadable = [], False
        for copy in file.copies:
            try:
                fault = self._fault(copy, file)
            except OSError as error:
                fault, unreadable = f"cannot be read ({error.strerror})", True
            if not fault:
                return self.root / copy
            wrong.append(f"{copy} {fault}")
        what = f"No copy of file {file.blake3} in {self.root} is intact: {'; '.join(wrong) or 'it has no copies'}."
        raise StoreUnavailable(what) if unreadable else CheckpointCorrupt(what)

    def sweep(self) -> None:
        """See `Store.sweep`; also deletes what killed attempts left half-written, and all but the newest commit files.

        It deletes in the folders of attempts that the commits up to this attempt's head mention. Any other folder may be a
        successor's, who is writing.
        """
        highest, head = self._scan()
        if head is None or head.attempt != self.attempt or head.number != highest:
            return
        numbers = self._learn_attempts()
        named = set(copies_named(head.record))
        with writing(self.root):
            for attempt in self._known:
                self._sweep_objects(attempt, named)
            self._sweep_commits(numbers)

    def _scan(self) -> tuple[int, Head | None]:
        """Return the highest number seen, valid or not, and the newest valid head; both from one listing."""
        for _ in range(3):
            numbers = self._numbers()
            self.damaged = []
            try:
                for number in numbers:
                    if head := self._read(number):
                        return numbers[0], self._ours(head)
                    self.damaged.append(_commit_name(number))
                return self._without_head(numbers)
            except FileNotFoundError:  # swept since it was listed
                continue
        raise StoreUnavailable(
            f"The commits in {self.root} change while they are being read."
        )

    def _without_head(self, numbers: list[int]) -> tuple[int, None]:
        """Return that nothing was ever committed, if that is certain."""
        if numbers:
            raise CheckpointCorrupt(
                f"Every commit in {self.root} is damaged: {', '.join(self.damaged)}."
            )
        # The first commit precedes the first object, so commits are listed once more after an object was seen.
        if self._has_files():
            if self._numbers():
                raise FileNotFoundError
            raise CheckpointCorrupt(
                f"{self.root} holds files, but its commits are gone: cannot tell what was committed."
            )
        return 0, None

    def _has_files(self) -> bool:
        written = (
            name
            for attempt in self._list("objects")
            for name in self._list(f"objects/{attempt}")
        )
        return any(not name.startswith(".") for name in written) or bool(
            self._list("quarantine")
        )

    def _numbers(self) -> list[int]:
        """Return the numbers of all commit files, valid or not, highest first."""
        return sorted(
            (
                int(name[:-5])
                for name in self._list("commits")
                if COMMIT.fullmatch(name)
            ),
            reverse=True,
        )

    def _list(self, folder: str) -> list[str]:
        """Return the names in a folder of the store; a folder that certainly is not there is empty."""
        path = self.root / folder
        try:
            with reading(path, "what was committed"):
                return os.listdir(path)
        except FileNotFoundError:
            if path.is_symlink() or self.root.is_symlink() and not self.root.exists():
                raise StoreUnavailable(
                    f"Cannot tell what was committed: {path} is a link to nowhere."
                ) from None
            return []

    def _read(self, number: int) -> Head | None:
        """Return one commit, None if it is damaged; raises FileNotFoundError."""
        path = self.root / "commits" / _commit_name(number)
        with reading(path, "what was committed"):
            line, _, rest = path.read_bytes().partition(b"\n")
        if rest != _digest(line) + b"\n":
            return None
        head = _head_of(line)
        return head if head.number == number else None

    def _ours(self, head: Head) -> Head:
        if head.run != self.run:
            raise StoreError(
                f"{self.root} belongs to run {head.run}, not to {self.run}.",
                "Use another folder.",
            )
        return head

    def _lost(self, head: Head | None) -> LeaseLost:
        if head is None:
            return LeaseLost(
                f"The commits in {self.root} are gone: somebody has deleted the run's state."
            )
        if head.attempt == self.attempt:
            damaged = f" Damaged: {', '.join(self.damaged)}." if self.damaged else ""
            return LeaseLost(
                f"The head in {self.root} is now commit {head.number} of this attempt, {self.attempt}.{damaged}"
            )
        who = f"attempt {head.attempt} of {head.owner}"
        return LeaseLost(
            f"Run {self.run} was taken over by {who} (commit {head.number}); attempt {self.attempt} stops."
        )

    def _line(self, number: int, parent: str, record: dict[str, Any]) -> bytes:
        about = {
            "number": number,
            "parent": parent,
            "run": self.run,
            "attempt": self.attempt,
            "owner": self.owner,
        }
        about |= {"time": self._clock(), "record": record}
        try:
            return json.dumps(
                about, sort_keys=True, separators=(",", ":"), allow_nan=False
            ).encode()
        except (TypeError, ValueError) as error:
            raise StoreError(f"The record to commit is not JSON: {error}.") from error

    def _link(self, text: bytes, final: Path) -> None:
        """Make `final` appear with all of its text, or raise LeaseLost because it is there."""
        with writing(final.parent):
            make_folder(final.parent)
        temporary = final.parent / f".{self.attempt}.{os.getpid()}.{uuid.uuid4().hex}"
        try:
            write_file(temporary, [text])
            with writing(final.parent):
                self._win(temporary, final)
        finally:
            remove(temporary)

    def _win(self, temporary: Path, final: Path) -> None:
        try:
            os.link(temporary, final)
        except FileNotFoundError:  # a successor has swept the temporary file
            raise self._lost(self.head()) from None
        except FileExistsError:
            if not os.path.samefile(
                temporary, final
            ):  # the same: NFS did it, lost the answer and asked again
                raise self._lost(self.head()) from None
        except OSError as error:
            if error.errno in FULL:
                raise
            if error.errno in NO_LINKS:
                raise StoreError(
                    f"{final.parent} is on a filesystem without hard links ({error.strerror})."
                ) from error
            raise StoreUnavailable(
                f"Cannot tell whether {final} was committed: {error.strerror or error}."
            ) from error

    def _write_object(self, chunks: Iterable[Chunk], suffix: str = "") -> StoredFile:
        folder = self.root / "objects" / self.attempt
        with writing(folder):
            make_folder(folder)
        temporary = folder / f".tmp-{uuid.uuid4().hex}"
        hashed = write_file(temporary, chunks)
        name = hashed.hex + suffix
        try:
            with writing(folder, hashed):
                os.rename(temporary, folder / name)
                sync_folder(folder)
        finally:
            remove(temporary)
        return StoredFile(hashed.hex, hashed.size, (f"objects/{self.attempt}/{name}",))

    def _size(self, copy: str) -> int:
        try:
            return (self.root / copy).stat().st_size if OBJECT.fullmatch(copy) else -1
        except OSError:
            return -1

    def _fault(self, copy: str, file: StoredFile) -> str:
        """Return what is wrong with one copy, "" if nothing is; a bad one is in quarantine then. Raises OSError."""
        path = self.root / copy
        if not OBJECT.fullmatch(copy):
            return "is not a place in this store"
        try:
            size = path.stat().st_size
            if size != file.size:
                return f"has {size} bytes instead of {file.size} and {self._quarantine(copy, file)}"
            return (
                ""
                if hash_file(path) == file.blake3
                else f"has other content and {self._quarantine(copy, file)}"
            )
        except FileNotFoundError:
            return "is missing"

    def _quarantine(self, copy: str, file: StoredFile) -> str:
        """Move a bad copy aside, because exact recomputation finds the same name again, and say where it is."""
        folder, count = self.root / "quarantine", 0
        try:
            make_folder(folder)
            while (
                place := folder / f"{copy.split('/')[1]}-{file.blake3}-{count}"
            ).exists():
                count += 1
            os.rename(self.root / copy, place)
            sync_folder(folder)
        except OSError as error:
            return f"cannot be moved to quarantine ({error.strerror})"
        return f"was moved to quarantine/{place.name}"

    def _learn_attempts(self) -> list[int]:
        """Add the attempts that wrote or are named in any commit, all earlier than this one; return the commits' numbers."""
        numbers = self._numbers()
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                if head := self._read(number):
                    places = (
                        OBJECT.fullmatch(copy) for copy in copies_named(head.record)
                    )
                    self._known |= {head.attempt} | {
                        place[1] for place in places if place
                    }
        return numbers

    def _sweep_objects(self, attempt: str, named: set[str]) -> None:
        folder = f"objects/{attempt}"
        for name in self._list(folder):
            if f"{folder}/{name}" not in named:
                (self.root / folder / name).unlink(missing_ok=True)
        if attempt != self.attempt:
            with contextlib.suppress(OSError):  # not empty, or not there
                (self.root / folder).rmdir()

    def _sweep_commits(self, numbers: list[int]) -> None:
        for number in numbers[KEPT_COMMITS:]:
            (self.root / "commits" / _commit_name(number)).unlink(missing_ok=True)
        for name in self._list("commits"):
            attempt = name[1:].rsplit(".", 2)[0]
            if name.startswith(".") and attempt in self._known - {self.attempt}:
                (self.root / "commits" / name).unlink(missing_ok=True)


def _commit_name(number: int) -> str:
    return f"{number:08}.json"


def _digest(line: bytes) -> bytes:
    return blake3(line).hexdigest().encode()


def _head_of(line: bytes) -> Head:
    """Read a commit's line; unknown keys are ignored."""
    value = json.loads(line)
    keys = ("number", "parent", "run", "attempt", "owner", "time", "record")
    return Head(id=_digest(line).decode(), **{key: value[key] for key in keys})
