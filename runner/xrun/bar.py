"""What takes longer than two seconds says what it does: on a terminal a bar that leaves again, in
pipes and files a plain line now and then.

It is drawn by a thread of its own, so what is waited for need not call anybody, and what ends
sooner costs nothing. Whatever else is said meanwhile stands above it (`terminal.LAST_LINE`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from . import terminal

PATIENCE_SECONDS = 2.0
"""So long nothing is shown."""
_REFRESH_SECONDS = 0.2
_SLOWER, _LINE_SECONDS = 5.0, 30.0
"""In pipes and files the first line comes so much later, and then one in so many seconds."""
_BYTES = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}


class Bar:
    """How far something is: `advance` by so many of its `total`, `say` what it does now. Where
    nobody knows how much there is (0), the seconds are shown."""

    def __init__(
        self, what: str, total: int, unit: str, stream: TextIO, patience: float = PATIENCE_SECONDS
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._patience = patience
        self._stream = stream
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._show, name="xrun-bar", daemon=True)

    def advance(self, count: int = 1) -> None:
        """So much more is done; from any thread."""
        with self._lock:
            self.done += count

    def say(self, what: str) -> None:
        """What is done now."""
        self.what = what

    def begin(self) -> None:
        """Show it from here on, once it has taken its time."""
        self._thread.start()

    def end(self) -> None:
        """Afterwards the terminal is as it was, if it takes what is drawn."""
        self._over.set()
        self._thread.join(PATIENCE_SECONDS)

    def _show(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # what only shows ends nothing
            drawn = self._stream.isatty() and os.environ.get("TERM") != "dumb"
            self._patience *= 1 if drawn else _SLOWER
            if not self._over.wait(self._patience):
                (self._draw if drawn else self._tell)()

    def _tell(self) -> None:
        seconds = self._patience
        while True:
            known = self.total and self.done
            share = f" {100 * self.done // self.total} %" if known else f" {seconds:.0f} s"
            self._stream.write(terminal.shown(f"{self.what} ...{share}") + "\n")
            self._stream.flush()
            if self._over.wait(_LINE_SECONDS):
                return
            seconds += _LINE_SECONDS

    def _columns(self) -> int:
        """How wide the terminal is now; some say that they have no width."""
        with contextlib.suppress(OSError, ValueError):
            if columns := os.get_terminal_size(self._stream.fileno()).columns:
                return columns
        return shutil.get_terminal_size().columns

    def _draw(self) -> None:
        from tqdm import tqdm

        layout = None if self.total else "{desc} ... {elapsed}"
        sizes: dict[str, Any] = _BYTES if self.unit == "B" else {"unit": f" {self.unit}"}
        with (
            tqdm(
                desc=terminal.shown(self.what),
                total=self.total or None,
                bar_format=layout,
                file=self._stream,
                leave=False,
                ncols=self._columns(),
                delay=1e-9,  # it draws itself only when it is told to
                **sizes,
            ) as drawn,
            terminal.LAST_LINE.taken(drawn.clear),
        ):
            drawn.start_t -= self._patience
            while True:
                drawn.n = self.done
                drawn.ncols = columns = self._columns()
                what = terminal.shown(self.what)[: max(10, columns - 12)]
                drawn.set_description_str(what, refresh=False)
                terminal.LAST_LINE.draw(drawn.refresh)
                if self._over.wait(_REFRESH_SECONDS):
                    return


@contextlib.contextmanager
def bar(
    what: str,
    total: int = 0,
    unit: str = "B",
    *,
    stream: TextIO | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[Bar]:
    """While this lasts people see, after so much `patience`, `what` is done and how much of its
    `total`, in bytes or whatever the `unit` is. An error that ends it stands alone."""
    made = Bar(what, total, unit, stream or terminal.bare(sys.stderr), patience)
    made.begin()
    try:
        yield made
    finally:
        made.end()
