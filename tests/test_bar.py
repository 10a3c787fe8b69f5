"""What takes long says what it does: on a terminal a bar that leaves again, elsewhere plain
lines."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from support.running import until
from xrun.bar import bar

pytestmark = pytest.mark.once

PROGRAM = """\
import sys
from xrun import terminal
from xrun.bar import bar

terminal.only_text()
with bar("Fetching \\x1b[31mit", 4, "files", patience=0.0) as shown:
    shown.advance(3)
    sys.stdin.readline()
    print("a line is said", file=sys.stderr)
    print("half of", end=" ", file=sys.stderr, flush=True)
    print("another one", file=sys.stderr)
    sys.stdin.readline()
    raise SystemExit("xrun: it has failed.")
"""


class Terminal:
    """A program on a terminal of its own, which is told when to go on."""

    def __init__(self, **environ: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", **environ},
        )
        os.close(theirs)

    def shows(self, happened: Callable[[str], bool]) -> None:
        while not happened(self.text):
            self.text += os.read(self._ours, 4096).decode()

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self) -> str:
        try:
            while piece := os.read(self._ours, 4096):
                self.text += piece.decode()
        except OSError:  # how a terminal says that nobody writes any more
            pass
        os.close(self._ours)
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait() == 1
        return self.text


def screen(text: str) -> list[str]:
    """What is left on a terminal's lines."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_a_bar_leaves_the_terminal_as_it_was() -> None:
    """What is said meanwhile stands above it whole, what it shows is text, and the error stands
    alone."""
    terminal = Terminal()
    terminal.shows(lambda text: "75%" in text)
    assert "Fetching \\u001b[31mit" in terminal.text
    before = len(terminal.text)
    terminal.goes_on()
    terminal.shows(lambda text: "75%" in text[before:].rpartition("another one")[2])
    terminal.goes_on()
    text = terminal.end()
    assert max(map(len, text.replace("\r", "\n").split("\n"))) <= 60
    assert screen(text) == ["a line is said", "half of another one", "xrun: it has failed.", ""]


def test_a_terminal_that_cannot_draw_has_lines() -> None:
    terminal = Terminal(TERM="dumb")
    terminal.shows(lambda text: "\n" in text)
    terminal.goes_on()
    terminal.goes_on()
    first, *lines = terminal.end().replace("\r\n", "\n").splitlines()
    assert re.fullmatch(r"Fetching \\u001b\[31mit \.\.\. (0 s|75 %)", first)
    assert lines == ["a line is said", "half of another one", "xrun: it has failed."]


def test_a_file_has_plain_lines(tmp_path: Path) -> None:
    """With the share where that is known, and nothing of what ends soon."""
    with (tmp_path / "log").open("w") as log:
        with bar("Quick", stream=log):
            pass
        with bar("Packing", stream=log, patience=0.0):
            until(lambda: (tmp_path / "log").read_text(), "the line")
    assert (tmp_path / "log").read_text() == "Packing ... 0 s\n"


def test_what_cannot_be_shown_ends_nothing() -> None:
    """A stream that is closed, and a full disk."""
    closed = io.StringIO()
    closed.close()
    with open("/dev/full", "w") as full:
        for stream in (closed, full):
            with bar("Packing", stream=stream, patience=0.0) as shown:
                shown.advance(1)
            assert shown.done == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that closing it may write
