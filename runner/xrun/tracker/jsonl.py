"""The tracker that is always on: files in the run's folder.

`metrics.jsonl` has one JSON object a line, each step once (a point of training and one of
evaluation may share a step); `config.json` the configuration; `committed.json` the newest commit. A
line is one `write`, so it survives a SIGKILL of its process; `committed` syncs the lines before it,
so that no point up to a commit is lost with the power. On a full disk points wait in memory until
there is room again.

Each attempt begins with a file of its own, which takes the name of the one before: an attempt that
was believed dead and logs on writes into a file that has no name any more.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any

from ..clock import now
from ..files import json_text, number, read_json, write_bytes, write_json
from ..run.folder import commit_in
from ..run.points import counted, lines_of
from .protocol import Dropped

log = logging.getLogger("xrun")


class JsonlTracker:
    """Keeps points in `folder`/metrics.jsonl."""

    def __init__(self, folder: Path, clock: Callable[[], float] = now) -> None:
        self.folder, self.clock = folder, clock
        self.path = folder / "metrics.jsonl"
        self._file = -1
        self._waiting = b""
        self._own: dict[str, Any] = {}
        """What every line says of the attempt."""

    def start(self, config: Mapping[str, Any], step: int) -> Dropped | None:
        """See Tracker; `started` in config.json is when this attempt began to log, `first_step` the
        step that it went on from.

        config.json comes last: who follows the points from outside sees by it that they are this
        attempt's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept, dropped = self._cut(step)
        self._own = {"attempt": config["attempt"]} if "attempt" in config else {}
        write_bytes(self.path, kept)
        own = {"started": round(self.clock(), 3), "first_step": step}
        write_json(self.folder / "config.json", {**config, **own})
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return dropped

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """See Tracker."""
        point = {"step": step, **values, "time": round(self.clock(), 3), **self._own}
        room = not self._waiting
        self._waiting += _line(point)
        try:
            self._write()
        except OSError as error:
            if room:
                log.warning(
                    "%s cannot be written (%s); points wait in memory.", self.path, error.strerror
                )

    def committed(self, step: int, head: str) -> None:
        """See Tracker."""
        try:
            os.fsync(self._file)
            if self._config().get("attempt") != self._own.get("attempt"):
                return  # the folder is another attempt's by now, which may have committed more
            write_json(self.folder / "committed.json", {"step": step, "head": head})
        except OSError as error:
            log.warning(
                "%s cannot remember the commit of step %d (%s).", self.folder, step, error.strerror
            )

    def last_commit(self) -> tuple[int, str] | None:
        """See Tracker."""
        return commit_in(self.folder / "committed.json")

    def committed_step(self) -> int:
        """The step of that commit; -1 where none is known."""
        known = self.last_commit()
        return known[0] if known else -1

    def finish(self) -> None:
        """See Tracker."""
        if self._file < 0:
            return
        try:
            self._write()
            os.fsync(self._file)
        except OSError as error:
            log.warning("%s has lost its last points (%s).", self.path, error.strerror)
        os.close(self._file)
        self._file, self._waiting = -1, b""

    def _write(self) -> None:
        """Write what waits; a full disk may take a part of a line, the rest follows it later."""
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]

    def _config(self) -> dict[str, Any]:
        """What the newest attempt has written when it began to log."""
        return read_json(self.folder / "config.json", dict) or {}

    def _cut(self, step: int) -> tuple[bytes, Dropped | None]:
        """The lines up to `step`, and what came after them; a torn last line counts as nothing."""
        kept, last, end = [], step, 0.0
        when = number(self._config().get("started"))
        lines = lines_of(self.path)
        for line, point in counted(lines):
            if point["step"] <= step:
                kept.append(line)
                when = max(when, point.get("time", 0.0))
            else:
                last, end = max(last, point["step"]), point.get("time", 0.0)
        dropped = (
            Dropped(last, max(0.0, end - when) if when else 0.0) if len(kept) < len(lines) else None
        )
        return b"".join(kept), dropped


def _line(point: Mapping[str, Any]) -> bytes:
    """A point as `json_text` writes it, in half the time: one is written in each step."""
    return (
        "{"
        + ", ".join([f"{_quoted(name)}: {_value(value)}" for name, value in point.items()])
        + "}\n"
    ).encode()


def _value(value: Any) -> str:
    kind = type(value)
    if kind is int or (kind is float and math.isfinite(value)):
        return repr(value)
    return _quoted(value) if kind is str else json_text(value)
