"""What was sent to a store far away or fetched from it, on this machine: nothing depends on it, and
what it holds is verified before it is used.

Several processes of a run share it, and each may be killed anywhere.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..errors import CheckpointCorrupt
from ..lock import locked
from .blocks import Block
from .durable import Hashed, has_block, hash_file, hash_of, make_folder, remove, write_file, writing
from .protocol import Chunk, StoredFile

Download = Callable[[], None]
"""Puts a place's file into the cache's folder, in one move that replaces what is there."""
Read = Callable[[int, int], Chunk]
"""Reads the bytes of a place's file from the first number to before the second one."""
AT_ONCE = 4
"""Blocks of a file that come at a time, which is the memory that they take."""
PART = ".part"
"""How the name of a file ends that is as long as the one at the place before it and has some of its
blocks."""


class Cache:
    """The folder, for one attempt; a file lies at its place in the store."""

    def __init__(self, folder: Path, attempt: str) -> None:
        self.folder, self.attempt = folder, attempt
        self._put: set[str] = set()

    @contextlib.contextmanager
    def spooled(self, chunks: Iterable[Chunk], block: int = 0) -> Iterator[tuple[Path, Hashed]]:
        """The chunks as a file without a place, which is gone afterwards unless it was kept."""
        spool = self.folder / f".{self.attempt}.{uuid.uuid4().hex}"
        with writing(self.folder):
            make_folder(self.folder)
        hashed = write_file(spool, chunks, block)
        try:
            yield spool, hashed
        finally:
            remove(spool)

    def keep(self, spool: Path, file: StoredFile) -> None:
        """Move a spooled file to its place."""
        place = file.copies[0]
        self._put |= set(file.copies)
        with writing(self.folder):
            make_folder((self.folder / place).parent)
            spool.replace(self.folder / place)

    def fetch(self, file: StoredFile, place: str, download: Download) -> Path:
        """The file at one place, whole; downloaded at most twice, since a transfer can go wrong.

        Raises `CheckpointCorrupt`.
        """
        path = self.folder / place
        for last in (False, False, True):
            seen = identity(path)
            if seen is not None and is_intact(path, file):
                return path
            if not last:
                self._download_unless_changed(place, seen, download)
        raise CheckpointCorrupt(f"{place} has other content")

    def _download_unless_changed(self, place: str, seen: object, download: Download) -> None:
        """Download, unless another process of this machine has done it since the file was
        `seen`."""
        with writing(self.folder):
            make_folder((self.folder / place).parent)
        with locked(self.folder / f"{place}.lock"):
            if identity(self.folder / place) == seen:
                download()

    def fetch_blocks(
        self, file: StoredFile, place: str, blocks: Iterable[Block], read: Read
    ) -> Path:
        """A file at one place in which these blocks are whole: the file itself if it was sent or
        fetched here, else one that grows block by block. What is written into that one was verified
        before, so that processes which read it already read the same bytes.

        Raises `CheckpointCorrupt`.
        """
        blocks, whole, part = list(blocks), self.folder / place, self.folder / f"{place}{PART}"
        if _has(whole, blocks):
            return whole
        with writing(self.folder):
            make_folder(part.parent)

        def bring(block: Block) -> None:
            if _has(part, [block]):
                return
            for _ in range(2):  # a transfer can go wrong
                content = read(block.begin, block.end)
                if hash_of([content]) == block.hash:
                    with writing(part):
                        _write_at(target, content, block.begin)
                    return
            raise CheckpointCorrupt(f"{place} has other content")

        with (
            locked(self.folder / f"{place}.lock"),
            _sparse(part, file.size) as target,
            ThreadPoolExecutor(AT_ONCE, thread_name_prefix="xrun-fetch") as threads,
        ):
            list(threads.map(bring, blocks))
        return part

    def prune(self, named: Mapping[str, int], *, ours: bool) -> None:
        """Delete what a head does not name, of this process and, if the head is `ours`, of attempts
        before; the rest belongs to processes beside it."""
        for path in [*self.folder.glob("objects/*/*"), *self.folder.glob("*/objects/*/*")]:
            place = str(path.relative_to(self.folder)).removesuffix(".lock").removesuffix(PART)
            older = ours and path.parent.name != self.attempt
            if place not in named and (place in self._put or older):
                remove(path)
        for path in self.folder.glob(".*.*") if ours else ():
            if path.name[1:].rpartition(".")[0] != self.attempt:
                remove(path)
        self._put &= named.keys()


class Fetching:
    """Files on their way from a store that is called `where`, several at a time; `fetched` brings
    the one at a place, or raises `CheckpointCorrupt`."""

    def __init__(
        self, where: str, fetched: Callable[[StoredFile, str], Path], at_once: int
    ) -> None:
        self._where, self._fetched, self._at_once = where, fetched, at_once
        self._begun: dict[str, Future[Path]] = {}

    def fetch(self, file: StoredFile) -> Path:
        """See `Store.fetch`."""

        def fetched(place: str) -> Path:
            begun = self._begun.pop(place, None)
            return begun.result() if begun else self._fetched(file, place)

        return self.first_intact(file, fetched)

    def first_intact(self, file: StoredFile, fetched: Callable[[str], Path]) -> Path:
        """What is `fetched` from the first place that has the file.

        Raises `CheckpointCorrupt`.
        """
        wrong = []
        for place in file.copies:
            try:
                return fetched(place)
            except CheckpointCorrupt as error:
                wrong.append(error.message)
        what = "; ".join(wrong) or "it has no place"
        raise CheckpointCorrupt(f"File {file.hash} at {self._where} is not intact: {what}.")

    def soon(self, files: Iterable[StoredFile]) -> None:
        """See `Store.fetch_soon`."""
        threads = ThreadPoolExecutor(self._at_once, thread_name_prefix="xrun-fetch")
        for file in files:
            for place in file.copies[:1]:
                self._begun[place] = threads.submit(self._fetched, file, place)
        threads.shutdown(wait=False)


@contextlib.contextmanager
def _sparse(path: Path, size: int) -> Iterator[int]:
    """A file of so many bytes to write to, with what it has already."""
    with writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with writing(path):
            os.ftruncate(file, size)
        yield file
    finally:
        os.close(file)


def _has(path: Path, blocks: Iterable[Block]) -> bool:
    """Whether a file is there and has the bytes of these blocks, read now."""
    try:
        return path.exists() and all(has_block(path, block) for block in blocks)
    except OSError:
        return False


def _write_at(file: int, content: Chunk, place: int) -> None:
    rest = memoryview(content)
    while rest:
        count = os.pwrite(file, rest, place)
        place, rest = place + count, rest[count:]


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
