"""What a rehearsal goes through, seen from outside: by what its run's folder shows of each stage,
how long each took, in which one it ended, and what is said of that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...bar import bar
from ...errors import XrunError
from ...files import read_json
from ...run.folder import RunFolder
from ...run.logs import end_file, is_aside
from ...run.record import Outcome

_POLL_SECONDS = 0.05
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_WHERE = "Full traceback: "


class Running(Protocol):
    """The part of subprocess.Popen that is used."""

    def poll(self) -> int | None:
        """The exit code, once it has ended."""


@dataclass(frozen=True)
class Stage:
    """Something that a run gets through; `over` says whether it has, None: when its process
    ends."""

    name: str
    over: Callable[[], bool] | None = None


def first_life(run: RunFolder) -> list[Stage]:
    """Of the process that begins the run, and finishes it at step 1."""
    return [
        Stage("build", lambda: _logs(run)),
        Stage("first step", lambda: _step(run) >= 1),
        Stage("evaluation", lambda: _evaluated(run)),
        Stage("save", lambda: _committed(run) >= 1),
        Stage("export"),
    ]


def second_life(run: RunFolder, first: Sequence[str]) -> list[Stage]:
    """Of the process that goes on to step 2, after the attempts of the first."""
    return [
        Stage("restore in a new process", lambda: _logs(run, first)),
        Stage("second step", lambda: _step(run) >= 2),
        Stage("second save", lambda: _committed(run) >= 2),
        Stage("second export"),
    ]


def _logs(run: RunFolder, before: Sequence[str] = ()) -> bool:
    """Whether an attempt has begun to log, which it does once everything is built and restored."""
    return (read_json(run.config, dict) or {}).get("attempt", "") not in ("", *before)


def _step(run: RunFolder) -> int:
    return int(run.last_point().get("step", 0))


def _evaluated(run: RunFolder) -> bool:
    return any(name.startswith("val/") for point in run.points() for name in point)


def _committed(run: RunFolder) -> int:
    return int((read_json(run.witness, dict) or {}).get("step", -1))


def follow(process: Running, stages: Sequence[Stage], say: Callable[[str], None]) -> Stage | None:
    """Say each stage as it ends; the one in which the process has failed, None if it has not.

    One that is left out, such as the evaluation of a dataset without `val`, is not said.
    """
    waiting, began = list(stages), time.monotonic()
    with bar("Rehearsing") as shown:
        while True:
            code = process.poll()  # asked first: what it did before its end is there then
            while (number := _over(waiting, code)) is not None:
                say(line(waiting[number].name, time.monotonic() - began))
                began = time.monotonic()
                del waiting[: number + 1]
            if code is not None:
                return waiting[0] if waiting else None
            if waiting:
                shown.say(f"Rehearsing: {waiting[0].name}")
            time.sleep(_POLL_SECONDS)


def _over(waiting: Sequence[Stage], code: int | None) -> int | None:
    """Which of the stages that are waited for is over: the first, or the next one without it, which
    is asked before."""
    over = [stage.over() if stage.over else code == 0 for stage in reversed(waiting[:2])]
    return next((number for number, is_over in enumerate(reversed(over)) if is_over), None)


def line(name: str, seconds: float) -> str:
    """What is said of a stage that is over."""
    return f"  {name:<26}{seconds:6.1f} s"


@dataclass(frozen=True)
class Said:
    """What a failed process has said: its sentence, the way out, and the whole log."""

    message: str
    hint: str = ""
    log: str = ""

    def frame(self, *within: Path) -> str:
        """`file:line` of the last line in one of these folders that an exception came through; ""
        if there is none."""
        frames = [(found["file"], found["line"]) for found in _FRAME.finditer(self.log)]
        for folder in within:
            for file, line in reversed(frames):
                if Path(file).is_relative_to(folder):
                    return f"{file}:{line}"
        return ""


def said_by(run: RunFolder, before: Sequence[str] | None, printed: Path) -> Said:
    """What the newest attempt of a run has said, unless it is one of those before; what a process
    has `printed` that is no attempt (None)."""
    lines = printed.read_text(errors="replace").splitlines() if printed.exists() else []
    told = [line for line in lines if line.strip() and not _is_beside(line)]
    last = Said((told or ["It said nothing."])[-1].removeprefix("xrun: "), log="\n".join(lines))
    new = [] if before is None else [each for each in attempts(run) if each not in before]
    if not new:
        return last
    folder = run.logs(new[-1])
    log = (folder / "rank0.log").read_text(errors="replace")
    try:
        failure = Outcome.from_json(read_json(end_file(folder, 0), dict) or {}).failure
    except (ValueError, XrunError):
        failure = None
    return Said(failure.message, failure.hint, log) if failure else Said(last.message, log=log)


def _is_beside(line: str) -> bool:
    return is_aside(line) or line.startswith(_WHERE)


def attempts(run: RunFolder) -> list[str]:
    """The attempts that have left logs, oldest first."""
    return sorted(path.parent.name for path in run.path.glob("logs/*/rank0.log"))
