"""What a person sees while an attempt trains: a bar on a terminal, a line now and then elsewhere.

It reads the run's log instead of being told by the loop, so the training pays nothing for it, and a
local run and a container show the same.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ..files import number, opened, read_json
from ..machine.heartbeat import evaluated, heartbeat_file
from ..run import logs
from ..run.folder import RunFolder
from ..run.report import speed_words
from ..terminal import bare, shown

_REFRESH_SECONDS = 0.2
_LINE_SECONDS = 10.0
_SPEED_SECONDS = 20.0
"""Speed is measured over so many seconds."""


class Progress:
    """Shows an attempt's newest point and passes on what its first rank says; `batch` is a step's
    samples."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: str,
        batch: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.batch, self.clock = folder, batch, clock
        self.stream = stream or bare(sys.stderr)
        self.log = folder.logs(attempt) / "rank0.log"
        self._heart = heartbeat_file(folder.logs(attempt), 0)
        self.resumed = 0
        """The newest step that attempts before this one have committed."""
        self._read = 0
        self._shown = self._lined = -float("inf")
        self._seen: list[tuple[float, int]] = []
        self._speed: dict[str, float] = {}
        self._bar: Any = None
        self._total = 0
        self._no_room = ""
        then = _written(folder.witness)
        self._committed = then, self.clock() - max(0.0, time.time() - then)
        """When the newest commit was written, by the disk's clock and by this one's."""
        # An attempt before this one may have had other steps in all.
        self._config_before = _written(folder.config)

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(shown(text), file=self.stream, flush=True)

    def update(self) -> None:
        """Look at the run's files, a few times a second."""
        now = self.clock()
        if now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        with contextlib.suppress(OSError):  # what only shows never stops a training
            self._pass_on()
            self._look_for_room()
            point = self.folder.last_point()
            if point and (total := self._steps()):
                self._show(point, now, total)

    def close(self) -> None:
        """The last lines, and the bar's end."""
        with contextlib.suppress(OSError):
            self._pass_on()
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.n = self.folder.last_point().get("step", self._bar.n)
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def _pass_on(self) -> None:
        """Whole lines that the first rank has printed since the last look."""
        try:
            with opened(self.log) as file:
                file.seek(self._read)
                text = file.read()
        except OSError:  # not there yet; what only shows never stops a training
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if not logs.is_aside(line):
                self.say(line)

    def _look_for_room(self) -> None:
        """Say once that the disk is full: the ranks cannot, whose log lies there."""
        before, self._no_room = self._no_room, self.folder.lacks_room()
        if self._no_room and not before:
            self.say(self._no_room)

    def _show(self, point: dict[str, Any], now: float, total: int) -> None:
        recent = [(when, step) for when, step in self._seen if now - when < _SPEED_SECONDS]
        self._seen = [*recent, (now, point["step"])]
        told = ["the disk is full"] if self._no_room else self._rates(total)
        done, batches = evaluated(self._heart)
        doing = [f"evaluating batch {done} of {batches}"] if batches else []
        words = [f"loss {point['train/loss']:.4g}", *doing, *told, self._commit_age()]
        text = ", ".join(words)
        if not self.stream.isatty():
            if now - self._lined >= _LINE_SECONDS:
                self._lined = now
                self.say(f"step {point['step']}/{total}: {text}")
            return
        if self._bar is None:
            self._bar = _tqdm()(
                total=total,
                initial=point["step"],
                file=self.stream,
                unit="step",
                dynamic_ncols=True,
            )
        self._bar.n = point["step"]
        self._bar.set_postfix_str(text)

    def _rates(self, total: int) -> Iterator[str]:
        """How fast it goes: by the steps that were seen, evaluations and saves included; and what
        the ranks have measured of this attempt's steps."""
        (then, first), (now, last) = self._seen[0], self._seen[-1]
        if last <= first:
            return
        rate = (last - first) / (now - then)
        self._speed = self.folder.last_speed() or self._speed
        yield from speed_words(self._speed | {"samples_per_second": rate * self.batch})
        yield f"{_tqdm().format_interval((total - last) / rate)} left"

    def _steps(self) -> int:
        """Steps in all, once this attempt has written them; 0 before."""
        if not self._total and _written(self.folder.config) != self._config_before:
            self._total = int(number((read_json(self.folder.config, dict) or {}).get("steps")))
        return self._total

    def _commit_age(self) -> str:
        when, now = _written(self.folder.witness), self.clock()
        if when != self._committed[0]:
            self._committed = when, now
        if when:
            return f"committed {now - self._committed[1]:.0f} s ago"
        # A machine that has never seen the run.
        return f"step {self.resumed} committed" if self.resumed else "nothing committed yet"


def _written(path: Path) -> float:
    """When a file was written; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _tqdm() -> Any:
    """The library's class: nobody needs it before an attempt's ranks have been started."""
    from tqdm import tqdm

    return tqdm
