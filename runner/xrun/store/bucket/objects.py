"""A run's bulk files in a bucket: each one in pieces of at most 64 MB, under names that are used
once.

    objects/<attempt>/<random>.<bytes of a piece>/00000, 00001, ...

Pieces go and come several at a time, and no more of a file is in memory than those. A piece is one
request: either all of it is there or nothing, and nothing has to be cleaned up after it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...errors import CheckpointCorrupt, StoreError
from ..durable import Hashed, make_folder, remove, writing
from ..protocol import Chunk, StoredFile
from .client import ONE_REQUEST, BucketClient

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
PIECE = ONE_REQUEST
"""Bytes of a piece."""
AT_ONCE = 4
"""Pieces that go or come at a time."""
PLACE = re.compile(rf"objects/({NAME})/[0-9a-f]{{16}}\.([1-9]\d*)")


class Pieces:
    """The bulk files of one attempt."""

    def __init__(self, client: BucketClient, attempt: str, piece: int = PIECE) -> None:
        self._client, self._attempt, self._piece = client, attempt, piece

    def put(self, chunks: Iterable[Chunk], *, blocks: bool = False) -> StoredFile:
        """Send a file, hashed on the way, with its blocks if wanted, which are its pieces. What a
        failure leaves is swept, for nobody names it."""
        place = f"objects/{self._attempt}/{uuid.uuid4().hex[:16]}.{self._piece}"
        hashed, sent = Hashed(block=self._piece if blocks else 0), deque[Future[None]]()
        threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="xrun-send")
        try:
            for number, piece in enumerate(_pieces(chunks, self._piece, hashed)):
                if len(sent) == AT_ONCE:
                    sent.popleft().result()
                sent.append(threads.submit(self._client.put, _key(place, number), piece))
            for each in sent:
                each.result()
        finally:
            threads.shutdown(cancel_futures=True)
        return hashed.stored(place)

    def download(self, place: str, size: int, folder: Path) -> None:
        """Put a file into `folder/place`, in one move.

        Raises:
            CheckpointCorrupt: pieces of it are missing.
        """
        aside = folder / f".{self._attempt}.{uuid.uuid4().hex}"
        try:
            with writing(folder):
                make_folder((folder / place).parent)
                self._fill(aside, place, size)
                aside.replace(folder / place)
        finally:
            remove(aside)

    def read(self, place: str, size: int, begin: int, end: int) -> Chunk:
        """Some bytes of the file of this size at a place.

        Raises:
            CheckpointCorrupt: pieces of it are missing.
        """
        length = self._length(place)
        pieces = list[Chunk]()
        for number in range(begin // length, -(-end // length)):
            start = number * length
            of_piece = max(begin - start, 0), min(end - start, length)
            whole = min(length, size - start)
            piece = self._client.read_range(_key(place, number), *of_piece, whole)
            if piece is None:
                raise CheckpointCorrupt(f"{place} is missing")
            pieces.append(piece)
        return b"".join(pieces) if pieces[1:] else pieces[0]

    def _length(self, place: str) -> int:
        """The bytes of a piece, which a place tells."""
        found = PLACE.fullmatch(place)
        if found is None:
            raise StoreError(f"{place} is not a place in {self._client.where}.")
        return int(found[2])

    def _fill(self, path: Path, place: str, size: int) -> None:
        length = self._length(place)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="xrun-fetch")
        try:
            starts = range(0, size, length)
            arguments = ((n, start, min(length, size - start)) for n, start in enumerate(starts))
            coming = [
                threads.submit(self._client.write_to, file, start, _key(place, n), bytes_)
                for n, start, bytes_ in arguments
            ]
            if not all(each.result() for each in coming):
                raise CheckpointCorrupt(f"{place} is missing")
        finally:
            threads.shutdown(cancel_futures=True)
            os.close(file)


def place_of(key: str) -> str:
    """The file that a piece belongs to."""
    return key.rpartition("/")[0]


def _key(place: str, number: int) -> str:
    return f"{place}/{number:05}"


def _pieces(chunks: Iterable[Chunk], length: int, hashed: Hashed) -> Iterator[bytearray]:
    """The chunks' bytes in pieces of one length but for the last, which are the taker's; each
    chunk is valid until the next is asked for."""
    piece = bytearray()
    for chunk in chunks:
        rest = memoryview(chunk)
        if not rest.nbytes:
            continue
        rest = rest.cast("B")
        hashed.update(rest)
        while rest.nbytes:
            room = length - len(piece)
            piece += rest[:room]
            rest = rest[room:]
            if len(piece) == length:
                yield piece
                piece = bytearray()
    if piece:
        yield piece
