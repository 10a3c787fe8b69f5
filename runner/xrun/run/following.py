"""What an attempt on this machine prints while it does, and the attempts that follow it."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import opened
from .folder import RunFolder

POLL_SECONDS = 0.2


def follow(
    folder: RunFolder, rank: int = 0, wait: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """The log of one training process: all of the newest attempt's, then what comes, through the
    attempts that follow, until nobody runs the run here and everything was told."""
    read = _Reading()
    while True:
        lives = folder.owner_pid() is not None  # before reading: what was written by its end counts
        found = sorted((folder.path / "logs").glob(f"*/rank{rank}.log"))
        for path in found if read.path else found[-1:]:
            if read.path is None or path.parent.name >= read.path.parent.name:
                yield from read.rest_of(path)
        if not lives:
            return
        wait(POLL_SECONDS)


class _Reading:
    """How far one attempt's log was read. Attempts come one after the other."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def rest_of(self, path: Path) -> Iterator[str]:
        """What was added to this file, or all of another one; nothing of one that is gone."""
        if path != self.path:
            self.path, self._at = path, 0
        try:
            with opened(path) as file:
                file.seek(self._at)
                added = file.read()
        except OSError:  # ranks that were started ahead and not needed leave nothing
            return
        self._at += len(added)
        if text := self._decoder.decode(added):
            yield text
