"""The run's points in the store, so that a machine that has nothing gets its metrics.jsonl back.

The file goes along in pieces, each one a slice of it that ends with the points of a committed step.
Every commit adds a piece; pieces that are not larger than twice what follows them are put together,
so that there are few of them (a logarithm of their size) and each point is sent a few times at
most.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointCorrupt
from ..store.protocol import Store, StoredFile

log = logging.getLogger("xrun")

Piece = Mapping[str, Any]
"""A `StoredFile`'s JSON, and `last`: the step of its last point."""


def extended(store: Store, path: Path, pieces: Sequence[Piece], step: int) -> list[Piece]:
    """The pieces with the points up to `step` that the file has gained since; what is new is put
    into the store.

    Raises `StoreError`.
    """
    before = list(pieces)
    start = sum(piece["size"] for piece in before)
    new = _lines_until(path, start, step)
    if not new:
        return before
    while before and before[-1]["size"] <= 2 * len(new):
        start -= before.pop()["size"]
        new = _lines_until(path, start, step)
    return [*before, {**store.put([new], suffix=".jsonl").to_json(), "last": step}]


def restore(store: Store, path: Path, pieces: Sequence[Piece], step: int) -> list[Piece]:
    """Make the file as it was at `step`, followed by what this machine has logged after that;
    returns the pieces that hold on.

    A piece whose bytes are lost costs the points in it and in the pieces after it, and never the
    training. Raises `StoreUnavailable`.
    """
    kept: list[Piece] = []
    text = b""
    for piece in pieces:
        try:
            content = store.fetch(StoredFile.from_json(dict(piece))).read_bytes()
        except CheckpointCorrupt as error:
            log.warning(
                "Points after step %d are lost: %s", kept[-1]["last"] if kept else 0, error.message
            )
            break
        if piece["last"] <= step:
            kept.append(piece)
            text += content
        else:
            text += b"".join(
                line for line in content.splitlines(keepends=True) if _step(line) <= step
            )
            break
    own = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text + b"".join(line for line in own if _step(line) > step))
    return kept


def _lines_until(path: Path, start: int, step: int) -> bytes:
    """The whole lines from byte `start` on whose points are not after `step`."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(start)
        lines = []
        for line in file:
            if _step(line) > step:
                break
            lines.append(line)
    return b"".join(lines)


def _step(line: bytes) -> float:
    """A line's step; infinity for a torn one, which nobody keeps."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
