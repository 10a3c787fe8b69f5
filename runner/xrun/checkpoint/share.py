"""What one process reads of a checkpoint: of tensors that were saved in shards its own rows, of all
others everything. Found out from the files alone, before there is a model, and without torch, so
that reading can begin while torch is being imported.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import XrunError
from ..run.plan import Plan
from ..run.record import RunRecord
from ..store.blocks import Range
from ..store.durable import reading
from ..store.protocol import Store, StoredFile

_LENGTH = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""


@dataclass(frozen=True)
class Share:
    """One of the `size` processes that hold a sharded model together; alone it holds all of it."""

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> tuple[int, int]:
        """Which of a tensor's rows are its own, from the first to before the last one
        (torch.chunk's cut)."""
        each = -(-count // self.size)
        return min(self.rank * each, count), min((self.rank + 1) * each, count)

    def reads(self, file: StoredFile) -> bool:
        """Whether it reads parts of a file, and does not need a whole one."""
        return self.size > 1 and bool(file.blocks)


ALL = Share()


def share_of(plan: Plan, rank: int, size: int) -> Share:
    """What one of so many processes of a run reads."""
    return Share(rank, size) if plan.is_sharded else ALL


def fetched(store: Store, file: StoredFile, share: Share) -> Path:
    """The path of a checkpoint's file in which all is verified that this process needs.

    Raises what `Store.fetch` raises.
    """
    if not share.reads(file):
        return store.fetch(file)
    begin = _LENGTH + int.from_bytes(_beginning(store, file, _LENGTH), "little")
    header = json.loads(_beginning(store, file, begin)[_LENGTH:])
    return store.fetch_ranges(file, [(0, begin), *needed(header, begin, share)])


def _beginning(store: Store, file: StoredFile, size: int) -> bytes:
    path = store.fetch_ranges(file, [(0, size)])
    with reading(path, "what a checkpoint holds", ()), path.open("rb") as content:
        return content.read(size)


def needed(header: Mapping[str, Any], begin: int, share: Share) -> Iterator[Range]:
    """The bytes that a process needs of a file with this header, whose tensors lie from `begin`
    on."""
    sharded = json.loads(header.get("__metadata__", {}).get("rows", "{}"))
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        first, last = tensor["data_offsets"]
        if name in sharded and first < last:
            start, whole = sharded[name]
            count = tensor["shape"][0]
            low, high = (min(max(row - start, 0), count) for row in share.rows(whole[0]))
            row = (last - first) // count
            first, last = first + low * row, first + high * row
        yield begin + first, begin + last


def fetch_soon(store: Store, share: Share, *, first: bool) -> None:
    """Begin with what the attempt will probably restore; a store that cannot be read is somebody
    else's news. Of the files that all processes of a machine read whole, the `first` one begins
    with them."""
    if not first and share.size == 1:
        return
    with contextlib.suppress(XrunError):
        newest = RunRecord.of(store.head()).newest
        files = list(newest.files.values()) if newest else []
        if first:
            store.fetch_soon(file for file in files if not share.reads(file))
        for file in filter(share.reads, files):
            fetched(store, file, share)
