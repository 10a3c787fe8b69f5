"""A rehearsal whose processes are forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xrun.launcher.rehearsal.rehearse import Place
from xrun.run.plan import Plan

from .running import attempt, forkserver


@dataclass
class Ended:
    """A process that has ended."""

    code: int

    def poll(self) -> int | None:
        """Its exit code."""
        return self.code


@contextlib.contextmanager
def warm(place: Place, module: str, plan: str) -> Iterator[Ended]:
    """As `started`, without the seconds of imports."""
    if module == "xrun.supervisor.entrypoint":
        done = attempt(Plan.read(Path(plan)))
        place.printed.write_text(done.err)
        yield Ended(done.code)
        return
    process = forkserver().Process(target=load, args=(plan, str(place.printed)))
    process.start()
    process.join()
    yield Ended(process.exitcode)


def load(plan: str, printed: str) -> None:
    """`python -m xrun.training.exported`, in a process that has imported everything."""
    os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    from xrun.training.exported import main

    sys.exit(main(plan))
