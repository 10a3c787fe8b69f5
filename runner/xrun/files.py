"""Small files that are replaced as a whole: a reader, or a kill at any moment, finds the old one or
the new one."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; afterwards it survives a power cut. Raises OSError."""
    write_bytes(path, json.dumps(value, indent=1).encode() + b"\n")


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
