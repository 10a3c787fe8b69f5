"""A file's lock (flock(2)), which the kernel lets go of however the process that holds it ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Held(Exception):
    """Another process holds it."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold a file's lock, and the file, which is made where there is none; what it says stays.

    Raises `Held` if another process holds it and this one shall not `wait`.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Held from None
        yield file


def held_by(path: Path) -> str | None:
    """What the process that holds a file's lock has written into it; None if nobody holds it."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except FileNotFoundError:
        pass
    return None
