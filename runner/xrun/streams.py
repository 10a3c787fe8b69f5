"""The standard streams of xrun's processes. What is said is best effort: a terminal that is gone or
stopped, a reader that has left or does not read, a full disk and closed descriptors never end or
delay what is trained.

Each process chooses once, before it says anything: `patient` where a reader that stops reading must
not hold it up, `deaf` where output goes to a log, `polite` where it is what the person wants.
Afterwards the descriptors 0, 1 and 2 are open, here and in child processes: one that was closed
would be the next file's, and what is printed would go into that.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import select
import sys
import threading
from typing import Any, Protocol

from .terminal import OnlyText

PATIENCE_SECONDS = 1.0
"""How long a reader that does not read is waited for, once."""
WAITING = 1000
"""Pieces that wait for such a reader; what comes after them is dropped."""


class _Raw(Protocol):
    def __call__(self, descriptor: int) -> io.RawIOBase: ...


def patient() -> None:
    """What is said is said by a thread of its own, and dropped where nobody takes it in time."""
    _replace(_Patient, _Patient, people=True)


def deaf() -> None:
    """What cannot be written is dropped; for processes that fork, and write to a file."""
    _replace(_Deaf, _Deaf, people=False)


def polite() -> None:
    """A reader that has left, as `| head` does, is a quiet end of the command; what cannot be
    written for another reason still raises OSError."""
    _replace(_Polite, _Deaf, people=True)


def _reserve() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _replace(out: _Raw, err: _Raw, people: bool) -> None:
    """Characters that a stream's encoding lacks are escaped, and for people those that a terminal
    would obey."""
    _reserve()
    for name, raw, descriptor in (("stdout", out, 1), ("stderr", err, 2)):
        before = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            before.flush()
        unbuffered: Any = raw(descriptor)  # a write takes all of its piece, so nobody has to buffer
        stream = io.TextIOWrapper(
            unbuffered,
            encoding=getattr(before, "encoding", None) or "utf-8",
            errors="backslashreplace",
            line_buffering=True,
            write_through=getattr(before, "write_through", False),
        )
        setattr(sys, name, OnlyText(stream) if people else stream)


class _Standard(io.RawIOBase):
    """A standard stream, which is never closed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._say(piece)
        return len(piece)

    def _say(self, piece: bytes) -> None:
        raise NotImplementedError

    def _write(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # somebody who shares it does not want to wait
                select.select([], [self._descriptor], [])


class _Deaf(_Standard):
    def _say(self, piece: bytes) -> None:
        with contextlib.suppress(OSError):
            self._write(piece)


class _Polite(_Standard):
    def _say(self, piece: bytes) -> None:
        try:
            self._write(piece)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._descriptor)
            sys.exit(0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "Standard output") from error


class _Patient(_Standard):
    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._waiting: queue.Queue[bytes] = queue.Queue()
        self._stuck = False
        threading.Thread(target=self._say_all, name="xrun-says", daemon=True).start()

    def _say(self, piece: bytes) -> None:
        """In its turn, whoever else speaks; waits for it unless nobody reads."""
        if self._waiting.qsize() < WAITING:
            self._waiting.put(piece)
        with self._waiting.all_tasks_done:
            seconds = 0.0 if self._stuck else PATIENCE_SECONDS
            self._stuck = not self._waiting.all_tasks_done.wait_for(self._is_said, seconds)

    def _is_said(self) -> bool:
        return not self._waiting.unfinished_tasks

    def _say_all(self) -> None:
        while True:
            piece = self._waiting.get()
            with contextlib.suppress(OSError):
                self._write(piece)
            self._waiting.task_done()
