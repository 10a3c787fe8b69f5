"""Small files that are replaced as a whole: a reader, or a kill at any moment, finds the old one or
the new one. And what JSON written by xrun looks like."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers; they are written as these strings, as in Protobuf's JSON and W&B's."""


def json_text(value: Any, **layout: Any) -> str:
    """JSON that every reader takes, where `json.dumps` would write a bare NaN; `layout` is its
    own."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_spelled(value), allow_nan=False, **layout)


def with_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, with numbers where `json_text` has written strings."""
    return {
        name: NOT_FINITE.get(value, value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _spelled(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; afterwards it survives a power cut. Raises OSError."""
    write_bytes(path, json_text(value, indent=1).encode() + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file; afterwards it survives a power cut. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if it is not there, or not whole after a full disk."""
    try:
        return json.loads(path.read_bytes().rstrip(b"\0"))
    except (OSError, ValueError):
        return None


def reserve(path: Path, size: int) -> None:
    """Make a file of so many zero bytes, for which the disk has room from now on; without it, an
    empty one."""
    with contextlib.suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def write_in_place(path: Path, data: bytes) -> None:
    """Write into a file that was reserved; a reader takes zero bytes at the end away. Raises
    OSError."""
    path.touch()
    with path.open("r+b") as file:
        file.write(data)
