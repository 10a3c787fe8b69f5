"""The log of a run's points: a line of JSON each, and in the store a copy of it in pieces, so that
a machine that has nothing gets its metrics.jsonl back.

The file goes along in pieces, each one a slice of it that ends with the points of a committed step.
Every commit adds a piece; pieces that are not larger than twice what follows them are put together,
so that there are few of them (a logarithm of their size) and each point is sent a few times at
most.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointCorrupt
from ..files import with_numbers
from ..store.protocol import Store
from .record import Piece

log = logging.getLogger("xrun")

_TAIL_BYTES = 4096


def parse(line: bytes) -> dict[str, Any] | None:
    """One line's point; None for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        point = json.loads(line)
    except ValueError:
        return None
    is_point = isinstance(point, dict) and isinstance(point.get("step"), int)
    return with_numbers(point) if is_point else None


def read_points(path: Path) -> list[dict[str, Any]]:
    """All whole points of a metrics.jsonl, in order."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [point for line in lines if (point := parse(line)) is not None]


def last_point(path: Path) -> dict[str, Any]:
    """The newest point of training, found without reading the whole file; empty if there is
    none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    points = (parse(line) for line in reversed(lines))
    return next((point for point in points if point and "train/loss" in point), {})


def extended(store: Store, path: Path, pieces: Sequence[Piece], step: int) -> tuple[Piece, ...]:
    """The pieces with the points up to `step` that the file has gained since; what is new is put
    into the store.

    Raises `StoreError`.
    """
    before = list(pieces)
    start = sum(piece.file.size for piece in before)
    new = b"".join(_lines_until(path, start, step))
    if not new:
        return tuple(before)
    while before and before[-1].file.size <= 2 * len(new):
        start -= before.pop().file.size
        new = b"".join(_lines_until(path, start, step))
    return (*before, Piece(store.put([new], suffix=".jsonl"), step))


def restore(store: Store, path: Path, pieces: Sequence[Piece], step: int) -> tuple[Piece, ...]:
    """Make the file as it was at `step`, followed by what this machine has logged after that;
    returns the pieces that hold on.

    A piece whose bytes are lost costs the points in it and in the pieces after it, and never the
    training. Raises `StoreUnavailable`.
    """
    kept: list[Piece] = []
    text = b""
    for piece in pieces:
        try:
            content = store.fetch(piece.file).read_bytes()
        except CheckpointCorrupt as error:
            last = kept[-1].last if kept else 0
            log.warning("Points after step %d are lost: %s", last, error.message)
            break
        if piece.last > step:
            lines = content.splitlines(keepends=True)
            text += b"".join(line for line in lines if _step(line) <= step)
            break
        kept.append(piece)
        text += content
    own = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text + b"".join(line for line in own if _step(line) > step))
    return tuple(kept)


def _lines_until(path: Path, start: int, step: int) -> Iterator[bytes]:
    """The whole lines from byte `start` on whose points are not after `step`."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if _step(line) > step:
                return
            yield line


def _step(line: bytes) -> float:
    """A line's step; infinity for a torn one, which nobody keeps."""
    point = parse(line)
    return float("inf") if point is None else int(point["step"])
