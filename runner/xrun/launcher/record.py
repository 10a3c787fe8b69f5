"""What a run's folder knows of its launch: `launch.json`, written before each call that may cost
money and after it.

A launcher can be killed anywhere. `asked` without a `request` means that nobody knows whether the
API server was reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import LaunchError
from ..files import parsed, read_small, typed, write_json
from ..lock import Held, locked
from ..run.folder import RunFolder
from ..run.prices import Price


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
    prices: tuple[Price, ...] = ()

    @property
    def uncertain(self) -> bool:
        """Whether a launcher was killed while it asked."""
        return bool(self.asked) and not self.request

    def to_json(self) -> dict[str, Any]:
        """As it is written down."""
        return {**vars(self), "prices": [price.to_json() for price in self.prices]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LaunchRecord:
        """Read it; keys that a newer xrun has added are ignored. Raises ValueError."""
        known = typed(cls, values)
        if "run" not in known:
            raise ValueError("it names no run")
        prices = tuple(map(Price.from_json, known.pop("prices", ())))
        return cls(**known, prices=prices)


def read_launch(folder: RunFolder) -> LaunchRecord | None:
    """The run's launch record; None for a run that was never launched on a cloud.

    Raises:
        LaunchError: it is damaged, so nobody knows whether a job runs.
    """
    path = folder.path / "launch.json"
    try:
        return LaunchRecord.from_json(parsed(read_small(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"{path} is damaged, so nobody knows whether a job of {folder.run} lives: {error}.",
            "Look with `sky jobs queue` and end it there if it does; then move the file away.",
        ) from error


def write_launch(folder: RunFolder, record: LaunchRecord) -> None:
    """Keep the record; afterwards it survives a kill and a power cut."""
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / "launch.json", record.to_json())


@contextmanager
def one_launcher(folder: RunFolder, waiting: Callable[[str], None]) -> Iterator[None]:
    """One launcher of a run at a time on this machine: the second waits, and then finds the first
    one's job."""
    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.path / "launch.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except Held:
            waiting(f"Another process launches {folder.run} now; waiting for it.")
            stack.enter_context(locked(path))
        yield
