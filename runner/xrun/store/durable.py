"""Bytes that are on the disk when a call returns, and what the operating system says when they are
not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3
from xxhash import xxh3_128

from ..errors import DiskFull, StoreError, StoreUnavailable
from .blocks import Block, lengths
from .protocol import StoredFile

SLICE = 8 << 20
"""Bytes read and gathered at once: long enough for the GIL to be released, short enough for memory
to stay flat."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class Hashed:
    """The hash and size of what has gone past so far: XXH3-128, or what the hash `like` is. With
    `block`, also the hashes of its blocks."""

    def __init__(self, like: str = "", block: int = 0) -> None:
        self._hasher = blake3() if len(like) == 2 * blake3.digest_size else xxh3_128()
        self.size, self._block = 0, block
        self._lengths, self._left = lengths(block), 0
        self._blocks = list[Any]()

    def update(self, piece: bytes | memoryview) -> None:
        self.size += len(piece)
        if not self._block:
            self._hasher.update(piece)
            return
        rest = memoryview(piece)
        while len(rest):
            if not self._left:
                self._left = next(self._lengths)
                self._blocks.append(xxh3_128())
            # In slices that the processor still has near for the second hash.
            part = rest[: min(self._left, SLICE)]
            self._hasher.update(part)
            self._blocks[-1].update(part)
            self._left, rest = self._left - len(part), rest[len(part) :]

    @property
    def hex(self) -> str:
        return self._hasher.hexdigest()

    def stored(self, *copies: str) -> StoredFile:
        """What is to be found again at these places."""
        if len(self._blocks) < 2:  # of one block the file's own hash says all
            return StoredFile(self.hex, self.size, copies)
        blocks = tuple(each.hexdigest() for each in self._blocks)
        return StoredFile(self.hex, self.size, copies, self._block, blocks)


def file_slices(path: Path, begin: int = 0, end: int = sys.maxsize) -> Iterator[memoryview]:
    """Yield a file's bytes, or those from `begin` to before `end`, in one reused buffer, each piece
    valid until the next is asked for.

    Not by mmap: a bad sector or a stale network handle would then end the process by SIGBUS instead
    of raising.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        size = min(os.fstat(file.fileno()).st_size + 1, end) - begin
        buffer = memoryview(bytearray(max(0, min(SLICE, size))))
        while count := file.readinto(buffer[: end - begin]):
            yield buffer[:count]
            begin += count


def hash_of(chunks: Iterable[bytes | memoryview], like: str = "") -> str:
    """Return the hash of these bytes, of the same kind as `like`."""
    hashed = Hashed(like)
    for chunk in chunks:
        hashed.update(chunk)
    return hashed.hex


def hash_file(path: Path, like: str = "") -> str:
    """Return the hash of a file, of the same kind as `like`; raises OSError."""
    return hash_of(file_slices(path), like)


def has_block(path: Path, block: Block) -> bool:
    """Whether a file has the bytes of this block, read now; raises OSError."""
    return hash_of(file_slices(path, block.begin, block.end)) == block.hash


def write_file(path: Path, chunks: Iterable[bytes | memoryview], block: int = 0) -> Hashed:
    """Make the new file `path` of the chunks and sync it; what is written is what was hashed, with
    its blocks if they have a size. On any failure no file is left."""
    hashed = Hashed(block=block)
    try:
        with writing(path.parent, hashed):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                _write(file, chunks, hashed)
                os.fsync(file)
            finally:
                os.close(file)
    except BaseException:
        remove(path)
        raise
    return hashed


def _write(file: int, chunks: Iterable[bytes | memoryview], hashed: Hashed) -> None:
    """Hash and write chunks that begin with a page, past the page cache; what does not is gathered
    in such a piece first.

    The kernel's copy into its cache costs the processors, which belong to the training, many times
    what the disk's own does. A gigabyte at once: a thread that now hashes and now waits for the
    disk disturbs the training's threads more often.
    """
    gathered, filled = memoryview(mmap.mmap(-1, SLICE)), 0
    for chunk in chunks:
        rest = memoryview(chunk)
        rest = rest.cast("B") if rest.nbytes else rest
        while len(rest):
            if (
                filled % mmap.PAGESIZE == 0
                and len(rest) >= mmap.PAGESIZE
                and _begins_with_a_page(rest)
            ):
                _append(file, gathered[:filled], hashed)
                count, filled = len(rest) // mmap.PAGESIZE * mmap.PAGESIZE, 0
                _append(file, rest[:count], hashed)
            else:
                count = min(len(rest), SLICE - filled)
                gathered[filled : filled + count] = rest[:count]
                filled += count
            rest = rest[count:]
            if filled == SLICE:
                _append(file, gathered, hashed)
                filled = 0
    _append(file, gathered[:filled], hashed)


def _begins_with_a_page(piece: memoryview) -> bool:
    """Whether it lies so in memory; what cannot be written to is small and need not."""
    return (
        not piece.readonly
        and ctypes.addressof(ctypes.c_char.from_buffer(piece)) % mmap.PAGESIZE == 0
    )


def _append(file: int, piece: memoryview, hashed: Hashed) -> None:
    """Hash and write a piece; whole pages go past the page cache, from a place in the file where
    pages begin."""
    _past_the_cache(file, len(piece) % mmap.PAGESIZE == 0)
    hashed.update(piece)
    while len(piece):  # write(2) may take less than it was given
        try:
            piece = piece[os.write(file, piece) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _past_the_cache(file, False):
                raise


def _past_the_cache(file: int, wanted: bool) -> bool:
    """Ask for writes of whole aligned blocks past the page cache, or not; says whether it was the
    other way before.

    Filesystems that cannot do it refuse, here or in write(2), and are written to as usual.
    """
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    if bool(flags & os.O_DIRECT) == wanted:
        return False
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags ^ os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return True


def remove(path: Path) -> None:
    """Delete a file that is on no head's list; that it cannot be deleted is never the news, so
    errors are dropped."""
    with contextlib.suppress(OSError):
        path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each one synced into its own parent; raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames and links in a folder durable; raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing(path: Path, hashed: Hashed | None = None) -> Iterator[None]:
    """Translate every OSError of the block into a StoreError with a sentence; `hashed` knows how
    many bytes were needed."""
    try:
        yield
    except OSError as error:
        raise _refused(error, path, hashed) from error


def _refused(error: OSError, path: Path, hashed: Hashed | None) -> StoreError:
    if error.errno in FULL:
        needed = f"; at least {hashed.size} bytes were needed" if hashed else ""
        hint = "Free some space there; what was committed before is intact."
        return DiskFull(f"Disk full: no space left on {path}{needed}.", hint)
    return StoreError(f"Cannot write to {path}: {error.strerror or error}.")


@contextlib.contextmanager
def reading(
    path: Path, question: str, but: type[OSError] | tuple[()] = FileNotFoundError
) -> Iterator[None]:
    """Translate every OSError of the block except `but` into StoreUnavailable: nobody can tell
    `question`."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        raise StoreUnavailable(
            f"Cannot tell {question}: {path}: {error.strerror or error}."
        ) from error


def list_folder(path: Path) -> list[str]:
    """Return the names in a folder; one that certainly is not there is empty. Raises
    StoreUnavailable if that is not certain."""
    try:
        with reading(path, "what was committed"):
            return [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        if any(place.is_symlink() and not place.exists() for place in (path, *path.parents)):
            raise StoreUnavailable(
                f"Cannot tell what was committed: {path} lies behind a link to nowhere."
            ) from None
        return []
