"""`xrun reproduce`: a run made again from nothing but what it has left, in a folder of its own, and
compared bit for bit. The original is never touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import environment
from ..errors import LaunchError
from ..libraries import TRAINING, require
from ..run.folder import RunFolder
from ..run.points import Point, key_of, read_points, reproducible
from .laid_out import RECIPE, Copy
from .local import alone
from .locked_python import others_here, python_of, told
from .original import Original

Say = Callable[[str], None]
_POLL_SECONDS = 0.2
_COMPARED = ("train/loss", "train/samples")


@dataclass(frozen=True)
class Verdict:
    """How the second run compares: `compared` steps were the same up to `step`; where `differs` is
    not None, that step was not, in `what`. `because` names what was other, as `name old -> new`."""

    run: str
    folder: str
    step: int
    compared: int
    differs: int | None = None
    what: tuple[str, ...] = ()
    because: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "same": self.differs is None}


def reproduce(copy: Copy, say: Say, *, to: int | None = None, here: bool = False) -> Verdict:
    """Train the copy up to the step `to`, or to its end, or to the first difference; `here` by what
    is installed, whatever the lock says.

    Raises:
        XrunError: it cannot be trained; it says why itself.
    """
    require(TRAINING)
    original = copy.original
    python = Path(environment.PYTHON[0]) if here else python_of(original.lock, say)
    other = told(others_here(original.lock)) if here else []
    wanted = {key_of(point, point["step"]): point for point in original.points}
    last = _last_step(original, to)
    found = RunFolder(copy.folder / "runs" / original.facts.run)
    code = _train(copy, python, found, wanted, last)
    same, differs, what = compared(wanted, read_points(found.metrics), last)
    if differs is None and same < last:
        raise LaunchError(
            f"The run ended with exit code {code} after step {same}, before step {last}.",
            f"Its folder is {found.path}.",
        )
    because = () if differs is None else _because(copy, found, other)
    return Verdict(
        original.facts.run, str(found.path), same, _steps(wanted, same), differs, what, because
    )


def _last_step(original: Original, to: int | None) -> int:
    """The last logged step that is compared. Raises LaunchError."""
    steps = [point["step"] for point in original.points if to is None or point["step"] <= to]
    if not steps:
        what = f"{original.facts.run} has logged nothing" + (f" up to step {to}" if to else "")
        raise LaunchError(f"{what}, so there is nothing to compare.", "Try a later step with --to.")
    return int(max(steps))


def _train(
    copy: Copy,
    python: Path,
    found: RunFolder,
    wanted: Mapping[tuple[int, int], Point],
    last: int,
) -> int:
    """Train until there is an answer; the exit code, -2 where it was stopped."""
    facts = copy.original.facts
    exact = yaml.safe_load(copy.original.recipe)["train"].get("reduction") == "exact"
    size = ["--processes", str(facts.processes)] if facts.processes > 1 and not exact else []
    command = [str(python), "-P", "-m", "xrun", "run", RECIPE, "--run", facts.run, "--yes", *size]
    own = {environment.LOCK.name: str(copy.folder / "lock.json")}
    with (copy.folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=copy.folder,
            env={**_environ(python), **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        asked = 0.0
        try:
            while process.poll() is None:
                time.sleep(max(_POLL_SECONDS, 5 * asked))  # a long log takes its time to be read
                began = time.monotonic()
                same, differs, _ = compared(wanted, read_points(found.metrics), last)
                asked = time.monotonic() - began
                goes_on = last < max(wanted)[0] or not facts.weights_sha256
                if differs is not None or (same >= last and goes_on):
                    process.send_signal(signal.SIGINT)
                    process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if process.returncode and not found.metrics.exists():
        lines = (copy.folder / "output.log").read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        raise LaunchError(f"The run cannot be made again here. {said}", f"All of it: {log.name}")
    return process.returncode


def _environ(python: Path) -> dict[str, str]:
    """The environment; what lies on PYTHONPATH would come before the lock's versions."""
    own = str(python) == environment.PYTHON[0]
    kept = alone(os.environ).items()
    return {name: value for name, value in kept if own or name != "PYTHONPATH"}


def compared(
    wanted: Mapping[tuple[int, int], Point], points: Sequence[Point], last: int
) -> tuple[int, int | None, tuple[str, ...]]:
    """Up to which step all is the same, the first step that is not, and what of it differs."""
    same = 0
    for point in map(reproducible, points):
        key = key_of(point, point["step"])
        if key not in wanted or key[0] > last:
            continue
        known = wanted[key]
        if json.dumps(known, sort_keys=True) != json.dumps(point, sort_keys=True):
            names = [name for name in (*_COMPARED, *known) if known.get(name) != point.get(name)]
            told = (f"{name} {known.get(name)} -> {point.get(name)}" for name in names)
            return same, key[0], tuple(dict.fromkeys(told))
        same = key[0]
    return same, None, ()


def _steps(wanted: Mapping[tuple[int, int], Point], until: int) -> int:
    return len({step for step, _ in wanted if 0 < step <= until})


def _sources(copy: Copy) -> list[str]:
    """Whether the components are others than those of the run, as far as that is known."""
    told = [copy.other] if copy.other else []
    if copy.original.lock.code.get("dirty") and not copy.files and copy.code:
        told.append("the project had changes that were not committed, and are not published")
    return told


def _because(copy: Copy, found: RunFolder, other: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*_sources(copy), *other, *_rest(copy, found)]))


def _rest(copy: Copy, found: RunFolder) -> list[str]:
    """What the second run's own lock says that is other."""
    before, now = copy.original.lock, found.record().lock
    later = [f"the run itself: {each}" for each in before.changes]
    return [*before.versions_of(now), *before.machine_of(now), *before.sources_of(now), *later]
