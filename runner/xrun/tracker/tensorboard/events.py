"""Points -> one event file, as TensorBoard reads it. The only module that imports its library.

The file is a function of the points: whoever writes it begins at the first one, in a new file, and
then takes the older ones away. So nothing is lost or doubled, whatever a killed writer has left and
however far a run went back. The file begins with a "session start" at step 0, by which a
TensorBoard that is running drops what it has read before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

_OWN = ("step", "time", "attempt")


class Events:
    """A new event file in `folder`, which is made; `older` ones are what was there before."""

    def __init__(self, folder: Path, attempt: str = "") -> None:
        """Raises OSError, as everything here does."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self.older = sorted(folder.glob("events.out.tfevents.*"))
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.{attempt or 'sync'}"
        self.path = folder / name
        self._records = RecordWriter(self.path.open("xb"))
        now = time.time()
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=0, session_log=start))

    def add(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Write every number of these points under its name, and let TensorBoard see them."""
        for point in points:
            values = [
                self._summary.Value(tag=name, simple_value=value)
                for name, value in point.items()
                if name not in _OWN and type(value) in (int, float)
            ]
            when = point.get("time", 0.0)
            summary = self._summary(value=values)
            self._write(self._event(wall_time=when, step=point["step"], summary=summary))
        self._records.flush()

    def replace(self) -> None:
        """What has been written stands for the run now; the older files go."""
        self._records.flush()
        while self.older:
            self.older.pop().unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing more comes."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


def write_all(folder: Path, points: Iterable[Mapping[str, Any]]) -> None:
    """Write these points as all that there is of the run. Raises OSError."""
    with Events(folder) as events:
        events.add(points)
        events.replace()
