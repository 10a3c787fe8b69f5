"""Small files that are replaced as a whole: a reader, or a kill at any moment, finds the old one or
the new one."""

from __future__ import annotations

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
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
