"""Launchers of cloud runs that start at once: forked from a process that has imported SkyPilot .

`python -m launchers` is that process. It answers one line of JSON with one line of JSON:
`["launch", project, run]` -> the launcher's process id; `["wait", pid]` -> its exit code, negative
for a signal; `["jobs", run]` -> `[id, status, live]` of every job with that name, ended ones too;
`["cancel", id]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .paths import TESTS
from .sky_home import SkyHome

RECIPE = """\
name: small
model: {name: mlp, args: {inputs: 64, hidden: 16, depth: 1, classes: 10}}
dataset: {name: digits}
task: classification
hardware: {any_of: [{accelerators: "H100:8", spot: false, clouds: [nebius]}]}
train: {steps: 20, global_batch: 64, micro_batch: 8}
checkpoint: {store: local}
"""


class Launchers:
    """The process, as a context manager. The API server at `url` is a remote one to it: files are
    uploaded."""

    def __init__(self, home: SkyHome, folder: Path, url: str) -> None:
        self.folder, self._environment = (
            folder,
            home.environment | {"SKYPILOT_API_SERVER_ENDPOINT": url},
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.launchers"],
            cwd=TESTS,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)

    def project(self, name: str) -> Path:
        """A project with one recipe."""
        folder = self.folder / name
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        (folder / "recipes" / "small.yaml").write_text(RECIPE)
        return folder

    def start(self, project: Path, run: str) -> int:
        """Begin to launch a project's recipe as this run."""
        return int(self._ask("launch", str(project), run))

    def wait(self, launcher: int) -> int:
        """How a launcher ended."""
        return int(self._ask("wait", launcher))

    def launch(self, project: Path, run: str) -> int:
        """A whole launch."""
        return self.wait(self.start(project, run))

    def jobs(self, run: str) -> list[tuple[int, str, bool]]:
        """Every job of that name at the API server."""
        return [tuple(job) for job in self._ask("jobs", run)]

    def cancel(self, run: str) -> None:
        """End every job of that name."""
        for job, _, live in self.jobs(run):
            if live:
                self._ask("cancel", job)

    def said(self, launcher: int) -> str:
        """What a launcher has printed."""
        return (self.folder / f"said-{launcher}").read_text()

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*question, str(self.folder)]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def launch(project: str, run: str) -> int:
    """What `xrun RECIPE --yes --detach --run RUN` does, with SkyPilot imported already."""
    from xrun.errors import XrunError
    from xrun.launcher.sky.cloud import SkyCloud
    from xrun.recipe.load import load_recipe
    from xrun.run.plan import make_plan

    path = Path(project) / "recipes" / "small.yaml"
    try:
        return SkyCloud(detach=True, settle=3.0).run(
            make_plan(load_recipe(path), path, run=run, environ={})
        )
    except XrunError as error:
        print(f"xrun: {error}")
        return error.exit_code


def fork(project: str, run: str, *, folder: str) -> int:
    """A launcher of its own; the parent learns its process id."""
    child = os.fork()
    if child:
        return child
    said = os.open(Path(folder) / f"said-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 1
    try:
        code = launch(project, run)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Until the input ends."""
    from xrun.launcher.sky import jobs as sky_jobs
    from xrun.launcher.sky.client import skypilot

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with skypilot():
        pass
    for line in sys.stdin:
        what, *rest, folder = json.loads(line)
        answer: Any = None
        if what == "launch":
            answer = fork(*rest, folder=folder)
        elif what == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(rest[0], 0)[1])
        elif what == "jobs":
            answer = [[job.id, job.status, job.live] for job in sky_jobs.jobs(rest[0])]
        elif what == "cancel":
            sky_jobs.cancel_job(rest[0])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
