"""What an attempt's processes have printed, in the store: a machine that is gone tells nothing any
more.

The first node's logs go along with each commit of a run whose store is far away, and with the
record of the attempt's end. What another node's processes have printed stays there; why they failed
stands in the record.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..store.protocol import Store, StoredFile

LARGEST = 256 * 1024
"""Bytes: so much of the end of a process's log is kept."""
ATTEMPTS = 50
"""The newest attempts' logs are kept."""


def kept(store: Store, folder: Path, attempt: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `logs` of the next record: by attempt and process what lies in `folder` now, put
    into the store.

    Where the store takes none, those of before stay, and nothing else fails because of it.
    """
    before: dict[str, dict[str, Any]] = dict(record.get("logs", {}))
    own = dict(before.get(attempt, {}))
    with contextlib.suppress(OSError, StoreError):
        for path in sorted(folder.glob("rank*.log")):
            rank = path.stem.removeprefix("rank")
            if text := _end_of(path):  # with the id in quotes no other attempt writes the same file
                title = (
                    f"Attempt {json.dumps(attempt)}, process"
                    f" {rank}{', the end' if len(text) == LARGEST else ''}:\n"
                )
                own[rank] = store.put([title.encode(), text], suffix=".log").to_json()
    attempts = {**before, attempt: own} if own else before
    return {"logs": {name: attempts[name] for name in sorted(attempts)[-ATTEMPTS:]}}


def read(store: Store, record: Mapping[str, Any], attempt: str, rank: int) -> str | None:
    """What a process of an attempt has printed, as far as the store has it; None if it has nothing.

    Raises `CheckpointCorrupt` and `StoreUnavailable`.
    """
    found = record.get("logs", {}).get(attempt, {}).get(str(rank))
    return store.fetch(StoredFile.from_json(found)).read_text(errors="replace") if found else None


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - LARGEST))
        return file.read(LARGEST)
