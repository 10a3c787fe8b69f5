"""The log of a run's points: a line of JSON each, and in the store a copy of it in pieces, so that
a machine that has nothing gets its metrics.jsonl back.

A line names the attempt that logged it. An attempt that was believed dead may go on to log after
its successor has begun; a point counts only while no later attempt has begun at its place or before
it. Lines of an older xrun name nobody, and all count.

The file goes along in pieces, each one a slice of it that ends with the points of a committed step.
Every commit adds a piece; pieces that are not larger than twice what follows them are put together,
so that there are few of them (a logarithm of their size) and each point is sent a few times at
most.
"""

from __future__ import annotations

import io
import logging
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointCorrupt, StoreError
from ..files import opened, parsed, with_numbers, write_bytes
from ..store.protocol import Store
from .record import Piece

log = logging.getLogger("xrun")

_TAIL_BYTES = 4096
_SPEED_BYTES = 64 * 1024
_FETCHED_BYTES = 1024 * 1024
"""So much of a log in a store is looked at, where it has as much."""
_SOME, _SPACING = 2_000, 1_024
"""So many places of a long log are looked at; one of fewer bytes for each of them is read whole."""
Point = dict[str, Any]
SPEED = "speed/"
"""How names begin that tell of the machine: `training/speed.py`."""
_KINDS = (b'"train/loss"', b'"val/', b'"speed/')
"""How the names begin that stand together in one point."""
Key = tuple[int, int]
"""The place of a point: its step, then training (0) before evaluation (1)."""


def key_of(values: Mapping[str, Any], step: int) -> Key:
    """The place of a point or of a row."""
    return step, int(any(name.startswith("val/") for name in values))


def reproducible(point: Mapping[str, Any]) -> Point:
    """What two runs with the same bits agree on: a point without its clock, its attempt, and what
    tells of the machine."""
    return {
        name: value
        for name, value in point.items()
        if name not in ("time", "attempt") and not name.startswith(SPEED)
    }


def parse(line: bytes) -> Point | None:
    """One line's point; None for a torn one, and for one that no xrun has written."""
    if not line.endswith(b"\n"):
        return None
    try:
        point = parsed(line)
    except ValueError:
        return None
    if not isinstance(point, dict) or type(point.get("step")) is not int:
        return None
    values = with_numbers(point)
    return values if all(map(_is_own, values.items())) else None


def _is_own(item: tuple[str, Any]) -> bool:
    """Whether a value is of a point: numbers of a size that everybody can show, and a name."""
    name, value = item
    if name == "attempt":
        return isinstance(value, str)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and isinstance(value, int) and abs(value) >= 2**1000:
        return False
    return number or name not in ("time", "step", "train/loss")


class Succession:
    """The attempts that have logged, in the order in which they began."""

    def __init__(self) -> None:
        self._begun: list[str] = []

    def begins(self, point: Point) -> bool:
        """Whether this is an attempt's first point."""
        attempt = point.get("attempt")
        if attempt is None or attempt in self._begun:
            return False
        self._begun.append(attempt)
        return True

    def counts(self, point: Point) -> bool:
        """Whether no later attempt has begun before this point was logged."""
        return point.get("attempt") in (None, *self._begun[-1:])


def counted(lines: Iterable[bytes]) -> list[tuple[bytes, Point]]:
    """The lines that count, with their points; torn ones do not."""
    kept: list[tuple[bytes, Point]] = []
    succession = Succession()
    for line in lines:
        if (point := parse(line)) is None:
            continue
        if succession.begins(point):
            first = key_of(point, point["step"])
            while kept and key_of(kept[-1][1], kept[-1][1]["step"]) >= first:
                kept.pop()
        if succession.counts(point):
            kept.append((line, point))
    return kept


def lines_of(path: Path) -> list[bytes]:
    """Every line of a file, with what ends it; none where there is no file. Raises StoreError."""
    with _opened(path) as file:
        return file.read().splitlines(keepends=True)


def _opened(path: Path) -> BinaryIO:
    """The log, or an empty one where there is none.

    Raises:
        StoreError: something else lies in its place.
    """
    try:
        return opened(path)
    except FileNotFoundError:
        return io.BytesIO()
    except OSError as error:
        raise StoreError(
            f"{path}, the log of the run's points, cannot be read: {error.strerror}.",
            "Move it away, or bring the log back; the run's state does not depend on it.",
        ) from error


def read_points(path: Path) -> list[Point]:
    """All points of a metrics.jsonl that count, in order."""
    return [point for _, point in counted(lines_of(path))]


def last_point(path: Path) -> Point:
    """The newest point of training, found without reading the whole file; empty if there is
    none."""
    with _opened(path) as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    points = (point for _, point in reversed(counted(lines)))
    return next((point for point in points if "train/loss" in point), {})


def last_speed(path: Path) -> dict[str, float]:
    """The newest of what tells how fast the run trains, without `speed/`; empty where there is
    none at the end of the file. Not every point has it."""
    with _opened(path) as file:
        file.seek(max(0, file.seek(0, 2) - _SPEED_BYTES))
        text = file.read()
    start = text.rfind(b"\n", 0, max(0, text.rfind(f'"{SPEED}'.encode()))) + 1
    return speed_of(parse(text[start : text.find(b"\n", start) + 1]) or {})


@dataclass(frozen=True)
class Seen:
    """What is read of a log, however long it is: the `newest` value of every metric, and `some`
    points from all over it."""

    newest: Mapping[str, float] = field(default_factory=dict)
    some: Sequence[Point] = ()


def seen_in(path: Path) -> Seen:
    """What a metrics.jsonl tells at once."""
    with _opened(path) as file:
        if not file.seek(0, 2):
            return Seen()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return Seen(newest_of(text), some_of(text))


def seen_stored(store: Store, pieces: Sequence[Piece]) -> Seen:
    """The same of the log that the store has; pieces are fetched from the end, until each kind of
    point is there, and a megabyte. Raises `StoreUnavailable`."""
    text = b""
    for piece in reversed(pieces):
        try:
            text = store.fetch(piece.file).read_bytes() + text
        except CheckpointCorrupt as error:
            log.warning("Points up to step %d are lost: %s", piece.last, error.message)
            break
        if len(text) >= _FETCHED_BYTES and all(kind in text for kind in _KINDS):
            break
    return Seen(newest_of(text), some_of(text))


def some_of(text: bytes | mmap.mmap) -> list[Point]:
    """The points of a log that count; of a long one some, at places that are evenly spread."""
    if len(text) <= _SOME * _SPACING:
        return [point for _, point in counted(text[:].splitlines(keepends=True))]
    starts = {text.find(b"\n", n * len(text) // _SOME) + 1 for n in range(_SOME)} - {0}
    ends = ((start, text.find(b"\n", start) + 1) for start in sorted(starts))
    return [point for _, point in counted(bytes(text[start:end]) for start, end in ends)]


def newest_of(text: bytes | mmap.mmap) -> dict[str, float]:
    """The newest value of every metric in a log: what stands at its end, and of each kind of point
    that is not there the last one before. No more than that is parsed."""
    start = max(0, len(text) - _SPEED_BYTES)
    found = {text.rfind(kind, 0, start) for kind in _KINDS if text.find(kind, start) < 0} - {-1}
    lines = [_line_at(text, place) for place in sorted(found)]
    values: dict[str, float] = {}
    for _, point in counted([*lines, *text[start:].splitlines(keepends=True)]):
        numbers = (item for item in point.items() if isinstance(item[1], int | float))
        values |= {name: value for name, value in numbers if "/" in name}
    return values


def _line_at(text: bytes | mmap.mmap, place: int) -> bytes:
    end = text.find(b"\n", place)
    return bytes(text[text.rfind(b"\n", 0, place) + 1 : end + 1])


def speed_of(point: Mapping[str, Any]) -> dict[str, float]:
    """What a point tells of the machine, without `speed/`."""
    return {
        name.removeprefix(SPEED): value
        for name, value in point.items()
        if name.startswith(SPEED) and isinstance(value, int | float)
    }


def usual_speed(some: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What points tell of the machine together: the median over the steps that each value is a mean
    of, of memory the most. The last point is often about a single step, and a short batch."""
    values: dict[str, list[tuple[float, int]]] = {}
    before = 0
    for point in some:
        if own := speed_of(point):
            step = int(point.get("step", 0))
            steps, before = max(1, step - before), step
            for name, value in own.items():
                values.setdefault(name, []).append((value, steps))
    return {
        name: max(found)[0] if name == "memory_gib" else _median(sorted(found))
        for name, found in values.items()
    }


def _median(ordered: Sequence[tuple[float, int]]) -> float:
    """Of values in order, each with how often it counts."""
    half, passed = sum(count for _, count in ordered) / 2, 0
    for number, (value, count) in enumerate(ordered):
        passed += count
        if passed == half:
            return (value + ordered[number + 1][0]) / 2
        if passed > half:
            break
    return value


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
    read = list(_contents(store, pieces, step))
    text = b"".join(line for line, _ in _up_to(step, read))
    after = b"".join(line for line in lines_of(path) if _step(line) > step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text + after)
    return tuple(_still_in(text, read))


def stored(store: Store, pieces: Sequence[Piece], step: int) -> list[Point]:
    """The points up to `step` as the store has them; nothing here changes. Raises
    `StoreUnavailable`."""
    return [point for _, point in _up_to(step, list(_contents(store, pieces, step)))]


def _up_to(step: int, read: Sequence[tuple[Piece, bytes]]) -> Iterator[tuple[bytes, Point]]:
    lines = b"".join(content for _, content in read).splitlines(keepends=True)
    return (each for each in counted(lines) if each[1]["step"] <= step)


def _contents(store: Store, pieces: Sequence[Piece], step: int) -> Iterator[tuple[Piece, bytes]]:
    """The pieces up to the one that has `step`, or up to one whose bytes are lost."""
    last = 0
    for piece in pieces:
        try:
            yield piece, store.fetch(piece.file).read_bytes()
        except CheckpointCorrupt as error:
            log.warning("Points after step %d are lost: %s", last, error.message)
            return
        last = piece.last
        if last > step:
            return


def _still_in(text: bytes, read: Sequence[tuple[Piece, bytes]]) -> Iterator[Piece]:
    """The pieces that the text begins with."""
    start = 0
    for piece, content in read:
        if not text.startswith(content, start):
            return
        start += len(content)
        yield piece


def _lines_until(path: Path, start: int, step: int) -> Iterator[bytes]:
    """The whole lines from byte `start` on whose points are not after `step`."""
    with _opened(path) as file:
        file.seek(start)
        for line in file:
            if _step(line) > step:
                return
            yield line


def _step(line: bytes) -> float:
    """A line's step; infinity for a torn one, which nobody keeps."""
    point = parse(line)
    return float("inf") if point is None else int(point["step"])
