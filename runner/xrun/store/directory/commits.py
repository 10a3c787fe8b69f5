"""The numbered commit files of a `DirectoryStore`: one line of canonical JSON, then the BLAKE3 of
that line.

A file is written aside and linked into place, so it appears with all of its text, and of two
attempts that want a number one gets it. A file that was cut short or changed fails its hash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from pathlib import Path
from typing import Any

from blake3 import blake3

from ...errors import StoreError, StoreUnavailable
from ...files import json_text, parsed, read_small
from ..durable import (
    FULL,
    list_folder,
    make_folder,
    reading,
    remove,
    sync_folder,
    write_file,
    writing,
)
from ..protocol import Head

FILE = re.compile(r"\d{8,}\.json")
KEPT = 32
"""Commit files that a sweep leaves, so that a damaged newest one has a predecessor."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class NumberTakenError(Exception):
    """The number is taken, or somebody else sweeps here: the attempt that wanted to commit has a
    successor."""


class CommitFolder:
    """The folder `path` of commit files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def numbers(self) -> list[int]:
        """Return the numbers of all commit files, damaged ones too, highest first."""
        return sorted(
            (int(name[:-5]) for name in list_folder(self.path) if FILE.fullmatch(name)),
            reverse=True,
        )

    def read(self, number: int) -> Head | None:
        """Return one commit, None if it is damaged; raises FileNotFoundError."""
        path = self.path / file_name(number)
        with reading(path, "what was committed"):
            content = _content(path)
        return checked(content, number)

    def add(self, number: int, line: bytes, attempt: str) -> None:
        """Make a commit file appear with all of its text and be durable.

        Raises `NumberTakenError`, `StoreError` if nothing was added, and `StoreUnavailable` if
        nobody can tell.
        """
        with writing(self.path):
            make_folder(self.path)
        temporary = self.path / f".{attempt}.{os.getpid()}.{uuid.uuid4().hex}"
        try:
            write_file(temporary, [sealed(line)])
            with writing(self.path):
                _link(temporary, self.path / file_name(number))
        finally:
            remove(temporary)
        with reading(self.path, f"whether commit {number} is durable", but=()):
            sync_folder(self.path)

    def prune(self, numbers: list[int], attempts: set[str]) -> None:
        """Delete all but the newest of these commit files, and what these attempts left
        half-written."""
        for number in numbers[KEPT:]:
            remove(self.path / file_name(number))
        for name in list_folder(self.path):
            if name.startswith(".") and name[1:].rsplit(".", 2)[0] in attempts:
                (self.path / name).unlink(missing_ok=True)


def _link(temporary: Path, final: Path) -> None:
    try:
        final.hardlink_to(temporary)
    except FileNotFoundError:
        raise NumberTakenError from None
    except FileExistsError:
        if not final.samefile(temporary):  # the same: NFS made it, lost the answer and asked again
            raise NumberTakenError from None
    except OSError as error:
        if error.errno in FULL:
            raise
        if error.errno in NO_LINKS:
            raise StoreError(
                f"{final.parent} is on a filesystem without hard links ({error.strerror})."
            ) from error
        raise StoreUnavailable(
            f"Cannot tell whether {final} was committed: {error.strerror or error}."
        ) from error


def _content(path: Path) -> bytes:
    """What a commit file holds; nothing of a folder or a pipe, which is a damaged one."""
    try:
        return read_small(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO, errno.EISDIR):
            return b""
        raise


def file_name(number: int) -> str:
    return f"{number:08}.json"


def line_of(head: dict[str, Any]) -> bytes:
    """Return the canonical line of a commit."""
    return json_text(head, sort_keys=True, separators=(",", ":")).encode()


def head_of(line: bytes) -> Head:
    """Read a commit's line; unknown keys are ignored."""
    value = parsed(line)
    keys = ("number", "parent", "run", "attempt", "owner", "time", "record")
    return Head(id=blake3(line).hexdigest(), **{key: value[key] for key in keys})


def sealed(line: bytes) -> bytes:
    """A commit as it is written: its line, and the BLAKE3 of that."""
    return line + b"\n" + blake3(line).hexdigest().encode() + b"\n"


def checked(content: bytes, number: int) -> Head | None:
    """The commit of this number from what was written; None if it is damaged."""
    line = content.partition(b"\n")[0]
    if content != sealed(line):
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        head = head_of(line)
        return head if head.number == number and isinstance(head.record, dict) else None
    return None
