"""`rehearse`: the packed project is trained for two steps on this machine's processors, in two
processes with a restore between them, and what it exports is loaded again.

What trains is the container half itself, from the wheel that would be packed, by the libraries that
would be installed. What goes wrong there ends in one sentence, with the exit code that the run
would have ended with.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from ... import environment
from ...errors import LaunchError, RehearsalFailed, StoreError
from ...files import read_json, write_bytes
from ...run.folder import RunFolder
from ...run.plan import Plan
from ..bundle import Cargo
from ..local import alone
from . import remembered, stages
from .interpreter import Libraries, interpreter
from .small import hidden_warmup, made_smaller, small_plan, unseen
from .stages import Running, Said, Stage

Say = Callable[[str], None]
Start = Callable[["Place", str, str], contextlib.AbstractContextManager[Running]]
"""Starts `python -m MODULE PLAN` in a place; at the end of the context it has ended."""
_MISSING = re.compile(r"FileNotFoundError: .*'([^']+)'")
_END_SECONDS = 30.0
"""How long an attempt may take to end once the rehearsal is over."""


@dataclass(frozen=True)
class Place:
    """Where a rehearsal takes place: the packed `project/`, xrun in `site/`, and the Python."""

    root: Path
    python: Path

    @property
    def project(self) -> Path:
        """The files that would travel, which is where the processes work."""
        return self.root / "project"

    @property
    def site(self) -> Path:
        """xrun from its wheel."""
        return self.root / "site"

    @property
    def printed(self) -> Path:
        """What the processes have said."""
        return self.root / "printed.log"


def rehearse(plan: Plan, cargo: Cargo, say: Say, *, again: bool = False) -> None:
    """Rehearse what would be launched, unless that went well before; `again`: in any case.

    Raises:
        LaunchError: this is no Linux.
        RehearsalFailed: what would have failed on the machine.
    """
    check_system()
    libraries = libraries_of(cargo)
    digest = remembered.digest_of(plan, cargo, libraries)
    if not again and (known := remembered.remembered(digest)) is not None:
        say(f"{plan.run}: {known}.")
        return
    began = time.monotonic()
    say(f"{plan.run}: rehearsing what would be packed, on this machine's processors")
    with tempfile.TemporaryDirectory(prefix="xrun-rehearsal-") as folder:
        root = Path(folder).resolve()
        python = interpreter(libraries, root / "environment", say)
        say(stages.line("environment", time.monotonic() - began))
        place = lay_out(cargo, Place(root, python))
        whole = Rehearsal(plan, place, say, digest).run()
    seconds = time.monotonic() - began
    if whole:
        try:
            remembered.remember(digest, seconds)
        except StoreError as error:  # it went well, and is done again the next time
            say(f"  not remembered: {error}")
    say(f"  rehearsed in {seconds:.0f} s; not seen here: {', '.join(unseen(plan))}")


def check_system() -> None:
    """Training code needs Linux, also in a rehearsal. Raises LaunchError."""
    if sys.platform != "linux":
        raise LaunchError(
            f"A rehearsal trains, which needs Linux, and this machine runs {platform.system()}.",
            "Rehearse it on Linux, or launch it without.",
        )


def libraries_of(cargo: Cargo) -> Libraries:
    """What a job's machine would install; without the hashes, which pip would want of the pins as
    well."""
    lines = cargo.files.get("requirements.txt", b"").decode().splitlines()
    versions = [line.rstrip(" \\") for line in lines if line[:1].strip() not in ("", "#")]
    requirements = "".join(f"{version}\n" for version in versions)
    return Libraries(cargo.files["container.txt"].decode(), requirements)


def lay_out(cargo: Cargo, place: Place) -> Place:
    """Write the project and xrun as they would arrive."""
    for name, data in cargo.files.items():
        if name.startswith("project/"):
            path = place.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
            path.chmod(0o755 if name in cargo.programs else 0o644)
        elif name.endswith(".whl"):
            zipfile.ZipFile(BytesIO(data)).extractall(place.site)
    place.project.mkdir(exist_ok=True)
    return place


@contextlib.contextmanager
def started(place: Place, module: str, plan: str) -> Iterator[Running]:
    """See Start: a process of its own."""
    command = [str(place.python), *environment.PYTHON[1:], "-m", module, plan]
    with place.printed.open("ab") as printed:
        process = subprocess.Popen(
            command,
            cwd=place.project,
            env=surroundings(place, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()


def surroundings(place: Place, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of its processes: this one's, without what would lead them to files that do
    not travel."""
    own = {name: value for name, value in alone(environ).items() if name != "PYTHONHOME"}
    return {
        **own,
        "PATH": os.pathsep.join([str(place.python.parent), environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(place.site),
        "CUDA_VISIBLE_DEVICES": "",
        environment.PARENT.name: str(os.getpid()),
    }


@dataclass
class Rehearsal:
    """One rehearsal of a plan in its place."""

    plan: Plan
    place: Place
    say: Say
    digest: str
    start: Start = started
    _absent: str = ""
    """What `files:` of the recipe names, and what stopped the rehearsal by not being here."""

    def run(self) -> bool:
        """Every stage in its order; whether that was all that can be done here.

        Raises:
            RehearsalFailed: in one of them, what would have failed on the machine.
        """
        small = small_plan(self.plan, self.place.root)
        run = RunFolder(small.folder)
        if self._life(small, stages.first_life(run), ()):
            self._check_warmup(run)
            first = stages.attempts(run)
            self._life(replace(small, rehearsal=2), stages.second_life(run, first), first)
            self._through([Stage("load what was exported")], "xrun.training.exported", run, None)
        if self._absent:
            return False
        smaller = [made_smaller(self.plan, small), *self._smaller(run).get("smaller", [])]
        self.say(f"  made smaller: {'; '.join(filter(None, smaller)) or 'nothing'}")
        return True

    def _life(self, small: Plan, through: Sequence[Stage], before: Sequence[str]) -> bool:
        """One attempt of the small plan; False if its model was only tried by its shapes."""
        run = RunFolder(small.folder)
        run.write_plan(small)
        return self._through(through, "xrun.supervisor.entrypoint", run, before)

    def _through(
        self, through: Sequence[Stage], module: str, run: RunFolder, before: Sequence[str] | None
    ) -> bool:
        """A process to its end; False if what stopped it says nothing of the run. `before`: the
        attempts before this one; None if it is no attempt."""
        self.place.printed.unlink(missing_ok=True)
        with self.start(self.place, module, str(run.plan_file)) as process:
            failed = stages.follow(process, through, self.say)
        if failed is None:
            return True
        said = stages.said_by(run, before, self.place.printed)
        self._absent = self._not_here(f"{said.message}\n{said.log}")
        if self._absent:
            what = f"{self._absent} of `files` is not on this machine; the rest is not rehearsed"
        elif shapes := self._smaller(run).get("shapes"):
            what = f"by shapes alone, since {shapes}"
        else:
            raise self._failure(failed, max(process.poll() or 1, 1), said)
        self.say(f"  {failed.name}: {what}")
        return False

    def _not_here(self, text: str) -> str:
        """Which of the recipe's `files:` the text speaks of that only a job's machine has."""
        for target in self.plan.load_recipe().files:
            path = self.place.project / Path(target).expanduser()
            if not path.exists() and (target in text or str(path) in text):
                return target
        return ""

    def _failure(self, stage: Stage, code: int, said: Said) -> RehearsalFailed:
        at = said.frame(self.place.project, self.place.site / "xrun" / "components")
        message = said.message.rstrip()
        if at and at not in message:
            message = f"{message.removesuffix('.')} (at {at})."
        log = remembered.keep_log(self.digest, self._as_here(said.log))
        whole = f"Full traceback: {log}" if "Traceback" in said.log else f"Its log: {log}"
        message, hint = self._as_here(message), self._as_here(said.hint)
        stays = _MISSING.search(message)
        if stays and Path(stays[1]).exists():
            hint = f"{stays[1]} is here, but does not travel with a job. {hint}"
        what = f"The rehearsal failed in the stage `{stage.name}`: {message}"
        return RehearsalFailed(what, f"{hint.strip()} {whole}".strip(), code)

    def _check_warmup(self, run: RunFolder) -> None:
        """What a run says at its start, whose recipe counts in epochs of this many samples."""
        newest = run.record().newest
        samples = (newest.data if newest else {}).get("train", {}).get("samples", 0)
        whole = "rows of" not in " ".join(self._smaller(run).get("smaller", []))
        if whole and samples and (what := hidden_warmup(self.plan, int(samples))):
            raise RehearsalFailed(what, "Take fewer, or more epochs.", 2)

    def _smaller(self, run: RunFolder) -> dict[str, Any]:
        return read_json(run.smaller, dict) or {}

    def _as_here(self, text: str) -> str:
        """A text with the places that its files have in the person's project."""
        own = str(Path(environment.__file__).parent)
        return text.replace(str(self.place.project), self.plan.project).replace(
            str(self.place.site / "xrun"), own
        )
