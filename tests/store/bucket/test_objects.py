"""Files in pieces: how large, how many at a time, and what is left of those that break off."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import obstore
import pytest

from support.bad_way import BadWay
from support.buckets import Server
from support.conformance import begun, names
from xrun.errors import CheckpointCorrupt, StoreError, StoreUnavailable
from xrun.store.bucket.objects import AT_ONCE, PIECE
from xrun.store.protocol import StoredFile

from .conftest import Opener

pytestmark = pytest.mark.once


def test_a_file_lies_in_pieces_under_names_of_its_own(
    attempt: Opener, s3: Server, place: str
) -> None:
    """Each of one length but the last; the same content again is another file."""
    assert PIECE == 64 << 20
    store = attempt()
    begun(store)
    files = [store.put([b"x" * 2500]), store.put([b"x" * 2500]), store.put([b"y" * 2000])]
    sizes = [
        [size for key, size in sorted(s3.objects(place).items()) if file.copies[0] in key]
        for file in files
    ]
    assert sizes == [[1000, 1000, 500], [1000, 1000, 500], [1000, 1000]]
    assert files[0].hash == files[1].hash
    assert files[0].copies != files[1].copies


def test_no_more_of_a_file_is_in_memory_than_what_is_on_its_way(
    attempt: Opener, way: BadWay
) -> None:
    """While the server takes nothing, no more is asked for than the pieces that go at a time and
    the one after them."""
    store = attempt()
    begun(store)
    asked = 0

    def chunks() -> Iterator[bytes]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield bytes(100)

    def held(line: str) -> None:
        if line.startswith("PUT "):
            assert gate.wait(30)

    gate = threading.Event()
    way.met = held
    sending = threading.Thread(target=lambda: put.append(store.put(chunks())))
    put: list[StoredFile] = []
    sending.start()
    while way.count("PUT .*objects") < AT_ONCE:
        pass
    assert asked <= (AT_ONCE + 1) * 10
    gate.set()
    sending.join()
    assert (asked, put[0].size) == (100, 10_000)


def test_a_put_that_fails_leaves_nothing_after_a_sweep(
    attempt: Opener, way: BadWay, s3: Server, place: str
) -> None:
    """And raises what nobody can tell as that."""
    store = attempt()
    head = begun(store)
    way.faults.add(r"PUT .*objects/.*/00002", status=503, times=None)
    with pytest.raises(StoreUnavailable):
        store.put([bytes(9000)])
    way.faults.clear()
    assert [key for key in s3.objects(place) if "objects/" in key]
    store.sweep()
    assert [key for key in s3.objects(place) if "objects/" in key] == []
    assert store.head() == head


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_a_file_that_lacks_a_piece_is_missing(
    attempt: Opener, s3: Server, place: str, piece: int
) -> None:
    """Whichever it is, and nothing of it is left on this machine."""
    store = attempt()
    begun(store)
    file = store.put([bytes(2500)])
    obstore.delete(s3.library(place), f"{file.copies[0]}/{piece:05}")
    other = attempt("a2")
    with pytest.raises(CheckpointCorrupt, match="is missing"):
        other.fetch(file)
    assert not [
        path for path in other.cache.rglob("*") if path.is_file() and path.suffix != ".lock"
    ]


def test_a_place_is_one_that_this_store_makes(attempt: Opener) -> None:
    """What a record names cannot lead anywhere else."""
    store = attempt()
    head = begun(store)
    store.commit(names(), head)
    for place in ("../x", "objects/a1/../../x.1", "objects/a1/0123456789abcdef.0", "model/x"):
        with pytest.raises(CheckpointCorrupt, match="not a place"):
            store.fetch(StoredFile("0" * 32, 1, (place,)))
    with pytest.raises(StoreError, match="cannot be called"):
        attempt("a/1")
