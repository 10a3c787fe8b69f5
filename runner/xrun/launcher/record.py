"""What a run's folder knows of its launch: `launch.json`, written before each call that may cost
money and after it.

A launcher can be killed anywhere. `asked` without a `request` means that nobody knows whether the
API server was reached.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..run.folder import RunFolder
from ..tracker.jsonl import write_json


@dataclass(frozen=True)
class LaunchRecord:
    """The newest launch of a run on a cloud.

    `asked` is when the API server was about to be asked (seconds since 1970), `request` the id that
    it gave, `job` the managed job. `price` is the offer that came first at that time, `prices` all
    that were seen.
    """

    run: str
    asked: float = 0.0
    request: str = ""
    job: int | None = None
    cargo: str = ""
    price: Mapping[str, Any] = field(default_factory=dict)
    prices: tuple[Mapping[str, Any], ...] = ()

    @property
    def uncertain(self) -> bool:
        """Whether a launcher was killed while it asked."""
        return bool(self.asked) and not self.request


def read_launch(folder: RunFolder) -> LaunchRecord | None:
    """The run's launch record; None for a run that was never launched on a cloud."""
    try:
        values = json.loads((folder.path / "launch.json").read_text())
    except FileNotFoundError:
        return None
    known = {name: values[name] for name in LaunchRecord.__dataclass_fields__ if name in values}
    return LaunchRecord(**{**known, "prices": tuple(known.get("prices", ()))})


def write_launch(folder: RunFolder, record: LaunchRecord) -> LaunchRecord:
    """Keep the record; afterwards it survives a kill and a power cut."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / "launch.json", dataclasses.asdict(record))
    return record


@contextmanager
def one_launcher(folder: RunFolder, waiting: Callable[[str], None]) -> Iterator[None]:
    """One launcher of a run at a time on this machine: the second waits, and then finds the first
    one's job."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / "launch.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(f"Another process launches {folder.run} now; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
