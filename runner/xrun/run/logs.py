"""What an attempt's processes have printed, in the store: a machine that is gone tells nothing any
more.

They go along with each commit of a run whose store is far away, and with the record of the
attempt's end. Another node tells the first one the end of its processes' logs every minute and once
they have ended; of one that has gone without a word there is what it said last.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import StoreError
from ..files import opened, write_bytes
from ..store.protocol import Store, StoredFile

LARGEST = 256 * 1024
"""Bytes: so much of the end of a process's log is kept."""
TOLD = 16 * 1024
"""The same of what one node tells another: all of its processes' go into one message."""
ATTEMPTS = 50
"""The newest attempts' logs are kept."""
_OWN, _TOLD = "rank{}.log", "told{}.log"
"""A process's own file, and what another node has told of it."""
_ASIDE = "  | "
"""How lines begin that are for the log alone; a person who watches is told where they stand."""
Logs = Mapping[str, Mapping[str, StoredFile]]
"""By attempt and rank."""


def end_file(folder: Path, rank: int) -> Path:
    """Where a process of an attempt says how it has ended."""
    return folder / f"end-{rank}.json"


def aside(text: str) -> str:
    """A text, such as a traceback, as a process prints it for its log alone."""
    return "\n".join(_ASIDE + line for line in text.splitlines())


def is_aside(line: str) -> bool:
    """Whether a line of a log is for the log alone."""
    return line.startswith(_ASIDE)


def kept(store: Store, folder: Path, attempt: str, before: Logs) -> Logs:
    """The logs of the next record: what lies in `folder` now is put into the store.

    Where the store takes none, those of before stay, and nothing else fails because of it.
    """
    own = dict(before.get(attempt, {}))
    with contextlib.suppress(OSError, StoreError):
        told = {path.stem.removeprefix("told"): path for path in folder.glob(_TOLD.format("*"))}
        here = {path.stem.removeprefix("rank"): path for path in folder.glob(_OWN.format("*"))}
        for rank, path in sorted({**told, **here}.items()):
            if text := _end_of(path):
                own[rank] = store.put([_title(attempt, rank, text), text], suffix=".log")
    attempts = {**before, attempt: own} if own else before
    return {name: attempts[name] for name in sorted(attempts)[-ATTEMPTS:]}


def here(folder: Path, rank: int) -> str | None:
    """What a process of an attempt has printed on this machine; None if it has left nothing.

    Raises StoreError.
    """
    path, told = folder / _OWN.format(rank), folder / _TOLD.format(rank)
    path = told if told.exists() and not path.exists() else path
    try:
        with opened(path) as file, io.TextIOWrapper(file, errors="replace") as text:
            return text.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.", "Move it away.") from error


def read(store: Store, logs: Logs, attempt: str, rank: int) -> str | None:
    """What a process of an attempt has printed, as far as the store has it; None if it has nothing.

    Raises `CheckpointCorrupt` and `StoreUnavailable`.
    """
    found = logs.get(attempt, {}).get(str(rank))
    return store.fetch(found).read_text(errors="replace") if found else None


def _title(attempt: str, rank: str, text: bytes) -> bytes:
    """The first line; with the id in quotes no other attempt writes the same file."""
    end = ", the end" if len(text) == LARGEST else ""
    return f"Attempt {json.dumps(attempt)}, process {rank}{end}:\n".encode()


def told(folder: Path, ranks: Iterable[int]) -> dict[str, str]:
    """The end of what these processes have printed, by rank, for the first node."""
    ends: dict[str, str] = {}
    for rank in ranks:
        with contextlib.suppress(OSError):
            if text := _end_of(folder / _OWN.format(rank), TOLD):
                ends[str(rank)] = text.decode(errors="replace")
    return ends


def heard(folder: Path, ends: Mapping[str, str]) -> None:
    """Keep here what another node has told, in files of their own: nodes may share the folder, and
    no process's log is ever replaced. Best effort."""
    for rank, text in ends.items():
        if rank.isdecimal():
            with contextlib.suppress(OSError):
                write_bytes(folder / _TOLD.format(rank), text.encode())


def _end_of(path: Path, most: int = LARGEST) -> bytes:
    with opened(path) as file:
        file.seek(max(0, file.seek(0, 2) - most))
        return file.read(most)
