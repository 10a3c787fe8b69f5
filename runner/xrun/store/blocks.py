"""A file's blocks: what of it is hashed by itself, so that it can be read and verified by itself.

A block has 64 MB. The first one is cut once more, at a 64th of it: a file begins with what says
where things are in it, and whoever needs nothing else of the file reads a megabyte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

BLOCK = 64 << 20
"""Bytes of a block."""
_LEADS = 64
"""The first part of the first block is one of so many."""

Range = tuple[int, int]
"""Bytes of a file: the first one, and the one after the last."""


@dataclass(frozen=True)
class Block:
    """Bytes of a file, from `begin` to before `end`, and their hash (hex)."""

    begin: int
    end: int
    hash: str


def lengths(block: int) -> Iterator[int]:
    """The bytes of each block of a file that does not end."""
    lead = -(-block // _LEADS)
    yield lead
    if lead < block:
        yield block - lead
    yield from repeat(block)


def cut(size: int, block: int) -> list[Range]:
    """Where the blocks of a file of so many bytes lie."""
    ranges, begin, length = list[Range](), 0, lengths(block)
    while begin < size:
        ranges.append((begin, min(size, begin + next(length))))
        begin = ranges[-1][1]
    return ranges


def count(size: int, block: int) -> int:
    """How many blocks a file of so many bytes has."""
    lead = -(-block // _LEADS)
    return -(-size // block) + (lead < min(size, block))


def covering(blocks: Iterable[Block], ranges: Iterable[Range]) -> list[Block]:
    """The blocks that have bytes of one of these ranges."""
    wanted = [(begin, end) for begin, end in ranges if begin < end]
    return [
        block
        for block in blocks
        if any(begin < block.end and block.begin < end for begin, end in wanted)
    ]
