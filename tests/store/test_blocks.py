"""How a file is cut into blocks."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from xxhash import xxh3_128

from xrun.store.blocks import BLOCK, Block, count, covering, cut, lengths
from xrun.store.durable import Hashed, has_block, write_file
from xrun.store.protocol import StoredFile

MB = 1 << 20
pytestmark = pytest.mark.once


def test_a_block_has_64_mb_and_the_first_megabyte_is_one_of_its_own() -> None:
    """A bucket's pieces of 64 MB are whole blocks but for the first, whose first megabyte says
    where things are in the file."""
    assert BLOCK == 64 * MB
    first = list(itertools.islice(lengths(BLOCK), 4))
    assert first == [MB, 63 * MB, 64 * MB, 64 * MB]
    assert cut(130 * MB, BLOCK) == [
        (0, MB),
        (MB, 64 * MB),
        (64 * MB, 128 * MB),
        (128 * MB, 130 * MB),
    ]
    assert cut(MB, BLOCK) == [(0, MB)]
    assert cut(0, BLOCK) == []


@pytest.mark.parametrize("block", [1, 2, 63, 64, 65, 1000])
def test_every_byte_is_in_one_block(block: int) -> None:
    """Of a file of any size."""
    assert cut(0, block) == []
    assert count(0, block) == 0
    for size in (1, 2, block - 1 or 1, block, block + 1, 10 * block + 1):
        ranges = cut(size, block)
        assert len(ranges) == count(size, block)
        assert ranges[0][0] == 0
        assert ranges[-1][1] == size
        assert all(begin < end for begin, end in ranges)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


def test_only_blocks_with_wanted_bytes_cover_them() -> None:
    """An empty range wants nothing, and a block's end is not its own."""
    blocks = [Block(0, 10, "a"), Block(10, 20, "b"), Block(20, 25, "c")]
    assert covering(blocks, [(0, 10)]) == blocks[:1]
    assert covering(blocks, [(9, 11)]) == blocks[:2]
    assert covering(blocks, [(24, 25), (0, 1)]) == [blocks[0], blocks[2]]
    assert covering(blocks, [(5, 5)]) == []


@pytest.mark.parametrize("pieces", [1, 7, 640, 5000])
def test_blocks_are_hashed_while_a_file_is_written(tmp_path: Path, pieces: int) -> None:
    """In whatever pieces it comes; the whole file's hash is what it is without blocks."""
    content = bytes(range(256)) * 20
    chunks = [content[at : at + pieces] for at in range(0, len(content), pieces)]
    file = write_file(tmp_path / f"{pieces}", chunks, block=640).stored("here")
    assert (file.hash, file.size) == (xxh3_128(content).hexdigest(), len(content))
    whole = file.blocks_of([(0, file.size)])
    assert [block.end - block.begin for block in whole] == [10, 630, *[640] * 7]
    assert all(xxh3_128(content[b.begin : b.end]).hexdigest() == b.hash for b in whole)
    assert all(has_block(tmp_path / f"{pieces}", block) for block in whole)
    assert not has_block(tmp_path / f"{pieces}", Block(0, 11, whole[0].hash))


def test_a_manifest_without_blocks_is_as_it_was() -> None:
    """A file of one block needs none, and what an older xrun has written has none; one that is cut
    in a way that nobody here knows is read whole."""
    hashed = Hashed(block=640)
    hashed.update(b"0123456789")
    assert hashed.stored("here").to_json().keys() == {"hash", "size", "copies"}
    hashed.update(b"x")
    told = hashed.stored("here").to_json()
    assert StoredFile.from_json(told).to_json() == told
    assert len(StoredFile.from_json(told).blocks) == 2
    for strange in ({**told, "size": 5000}, {**told, "block": 5}, {**told, "block": 0}):
        assert StoredFile.from_json(strange).blocks == ()
        assert StoredFile.from_json(strange).hash == told["hash"]
