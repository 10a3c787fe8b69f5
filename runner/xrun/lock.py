"""A file's lock (flock(2)), which the kernel lets go of however the process that holds it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import StoreError

_SAID = 4096
"""Characters that whoever holds a lock says of itself."""


class Held(Exception):
    """Another process holds it."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold a file's lock, and the file, which is made where there is none; what it says stays.

    Raises `Held` if another process holds it and this one shall not `wait`.
    """
    with _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Held from None
        yield file


def held_by(path: Path) -> str | None:
    """What the process that holds a file's lock has written into it; None if nobody holds it."""
    try:
        with _opened(path, os.O_RDONLY) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(_SAID)
    except (OSError, StoreError):  # what is not there, or is no file, nobody holds
        pass
    return None


def _opened(path: Path, flags: int) -> IO[str]:
    """The file, without waiting for anybody.

    Raises:
        StoreError: something else lies in its place.
    """
    try:
        place = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(place).st_mode):
        os.close(place)
        raise _no_file(path)
    return os.fdopen(place, "r+" if flags & os.O_RDWR else "r", errors="replace")


def _no_file(path: Path) -> StoreError:
    return StoreError(
        f"{path} must be a lock file, by which processes keep out of each other's way, and is"
        " something else.",
        "Move it away, then run the same command again.",
    )
