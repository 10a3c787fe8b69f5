"""Commands on a terminal of their own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator

from .running import Project, ended


def on_a_terminal(project: Project, columns: int, *arguments: str, **environ: str) -> str:
    """What the command writes on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {"TERM": "xterm", **environ}
    process = project.start(*arguments, environ=environ, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    text = b"".join(_pieces(ours))
    os.close(ours)
    done = ended(process)
    assert (done.code, done.err) == (0, "")
    return text.decode().replace("\r\n", "\n")


def _pieces(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # as a terminal ends
            return
        if not piece:
            return
        yield piece
