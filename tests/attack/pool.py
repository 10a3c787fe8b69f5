"""Every try in a process of its own, forked from one that has imported everything, in a session of
its own and within a time; what is left of it afterwards is ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .lives import Wrong
from .mix import KINDS, kind_of

POLL_SECONDS = 0.005
MEMORY = 6 << 30
"""Bytes of addresses that a try may have: a file without an end must not end the machine."""


@dataclass(frozen=True)
class Try:
    """One try: a seed draws its kind and its case, unless they are given."""

    seed: int
    kind: str = ""
    case: Any = None

    def drawn(self) -> Try:
        """With its kind and its case."""
        if self.case is not None:
            return self
        kind = self.kind or kind_of(self.seed)
        return Try(self.seed, kind, KINDS[kind].draw(random.Random(self.seed)))


@dataclass(frozen=True)
class Outcome:
    """What came of it: `wrong` is "" where all was right."""

    seed: int
    kind: str
    case: Any
    wrong: str = ""
    seconds: float = 0.0
    folder: str = ""


@dataclass
class Living:
    """A try that has begun."""

    pid: int
    one: Try
    folder: Path
    began: float


def outcomes(tries: Iterable[Try], workers: int, folder: Path, until: float) -> Iterator[Outcome]:
    """The tries' outcomes as they come; none begins after `until` of the monotonic clock."""
    waiting, living = iter(tries), list[Living]()
    while True:
        while len(living) < workers and time.monotonic() < until:
            if (one := next(waiting, None)) is None:
                break
            one = one.drawn()
            living.append(_begin(one, folder / f"{one.kind}-{one.seed}"))
        if not living:
            return
        for each in [each for each in living if _is_over(each)]:
            living.remove(each)
            yield _end(each)
        time.sleep(POLL_SECONDS)


def _begin(one: Try, folder: Path) -> Living:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.stdout.flush()
    if pid := os.fork():
        return Living(pid, one, folder, time.monotonic())
    _live(one, folder)
    return Living(0, one, folder, 0.0)  # never: it has ended


def _live(one: Try, folder: Path) -> None:
    """The process of a try, to its end."""
    os.setsid()
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    wrong = ""
    try:
        os.environ["HOME"] = str(folder)
        KINDS[one.kind].play(one.case, folder / "project")
    except Wrong as found:
        wrong = str(found)
    except BaseException as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        wrong = f"{type(error).__name__} at {place}: {str(error)[:300]}"
    (folder / "wrong.json").write_text(json.dumps(wrong))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _is_over(each: Living) -> bool:
    if os.waitpid(each.pid, os.WNOHANG)[0]:
        return True
    if time.monotonic() - each.began > KINDS[each.one.kind].seconds:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        os.waitpid(each.pid, 0)
        return True
    return False


def _end(each: Living) -> Outcome:
    for pid in family(each.pid, each.folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    seconds, limit = time.monotonic() - each.began, KINDS[each.one.kind].seconds
    told, wrong = each.folder / "wrong.json", f"it hangs: not over after {limit:.0f} s"
    if told.exists():
        wrong = json.loads(told.read_text())
    elif seconds < limit:
        wrong = "its process died"
    if not wrong:
        _remove(each.folder)
    one = each.one
    kept = str(each.folder) if wrong else ""
    return Outcome(one.seed, one.kind, one.case, wrong, seconds, kept)


def family(session: int, folder: Path) -> list[int]:
    """What still lives of a session, or has the folder in its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        own = int(fields[3]) == session or str(folder).encode() in line
        if own and fields[0] != "Z" and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def _remove(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """For a file."""
    return asdict(outcome)
