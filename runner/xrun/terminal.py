"""What people read: text, and nothing that a terminal obeys.

Recipes, names of folders, servers, exceptions and logs may hold escape sequences, which colour,
overwrite or erase what stands there, fill a clipboard, or turn the direction of writing around. In
a program that people start (`streams`, or `only_text` without it) everything that is said, also
click's errors and tracebacks, shows such characters spelled (`\\u001b`) and does not send them. The
spelling is JSON's, so JSON stays JSON.
"""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TextIO

_OBEYED = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tabs and ends of lines
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"  # what has no width, changes the direction, or is half
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def shown(text: str) -> str:
    """The text with every character spelled that a terminal would obey."""
    return _OBEYED.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def without_colours(text: str) -> str:
    """The text of a program that was not told that nobody wants its colours."""
    return _COLOUR.sub("", text)


class LastLine:
    """The terminal's last line, where what is drawn draws itself anew: what is said meanwhile
    stands above it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._clears: list[Callable[[], object]] = []
        self._open = False

    @property
    def is_taken(self) -> bool:
        """Whether something is drawn there."""
        return bool(self._clears)

    @contextmanager
    def taken(self, clear: Callable[[], object]) -> Iterator[None]:
        """While this lasts something is drawn there, which `clear` takes away."""
        self._open = self._open and self.is_taken
        self._clears.append(clear)
        try:
            yield
        finally:
            self._clears.remove(clear)

    def draw(self, refresh: Callable[[], object]) -> None:
        """Draw it, unless a line is there that is still being said."""
        with self._lock:
            if not self._open:
                refresh()

    @contextmanager
    def left_for(self, text: str) -> Iterator[None]:
        """While this lasts the line is free for a text."""
        with self._lock:
            if not self._open:
                for clear in tuple(self._clears):
                    clear()
            yield
            self._open = not text.endswith("\n")


LAST_LINE = LastLine()


class OnlyText(io.TextIOWrapper):
    """A stream that shows what is written. `bare` is what it was: for a bar of our own."""

    def __init__(self, bare: TextIO) -> None:
        bare.flush()
        super().__init__(
            bare.buffer,
            encoding=bare.encoding,
            errors="backslashreplace",
            line_buffering=True,
            write_through=True,
        )
        self.bare = bare

    def write(self, text: str) -> int:
        """Write it as people may see it, and above what is drawn."""
        if text and LAST_LINE.is_taken and self.bare.isatty():
            with LAST_LINE.left_for(text):
                super().write(shown(text))
        else:
            super().write(shown(text))
        return len(text)

    def isatty(self) -> bool:
        """A library that asks is not to draw: it would see its colours spelled."""
        return False


class Plain(io.TextIOBase):
    """A stream for another program's log, passed on line by line: without colours, and each state
    of a bar on a line of its own."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def write(self, text: str) -> int:
        """Write what can be read of it."""
        self.out.write(re.sub("\r\n?", "\n", without_colours(text)))
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self.out.flush()


def only_text() -> None:
    """Afterwards standard output and standard error show what they are given."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, OnlyText):
            setattr(sys, name, OnlyText(stream))


def bare(stream: TextIO) -> TextIO:
    """The stream as it was, for what is drawn and not said."""
    return stream.bare if isinstance(stream, OnlyText) else stream
