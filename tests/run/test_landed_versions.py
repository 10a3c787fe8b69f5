"""Runs that were begun by earlier states of this repository and killed end in the weights that
today's xrun computes undisturbed."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.paths import ROOT
from support.running import ended, processes_of, start, until, weights
from xrun.run.folder import runs_in

pytestmark = pytest.mark.soak

LANDED = {
    "b47de22": "clouds",
    "be40f54": "the Hub, reductions that are exact",
    "d2343c4": "checksums of state, rule 2 of ids",
    "7aad3c7": "typed records",
    "9517a34": "the rooms of the house",
    "b127ee2": "what works in torch",
}
"""Commits of the repository, and what was new in them."""
SETTINGS = ("train.steps=240", "checkpoint.every=20 steps")
ARGUMENTS = ("recipes/digits_mlp.yaml", *(part for each in SETTINGS for part in ("-s", each)))


def checkout(commit: str, folder: Path) -> Path:
    """The repository as it was."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
    packed = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "home").mkdir()
    return folder


def begin_and_kill(project: Path) -> None:
    """Train with the project's own xrun, and end all of its processes in the middle."""
    command = subprocess.Popen(
        [sys.executable, "-P", "-m", "xrun", *ARGUMENTS, "--yes"],
        cwd=project,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(project / "home"),
            "PYTHONPATH": str(project / "runner"),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: _committed(project) >= 20, "a commit")
    while victims := processes_of(project):
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    command.wait()


def _committed(project: Path) -> int:
    """The newest step that any run of the project has committed."""
    return max((run.record().newest_step for run in runs_in(project / "runs")), default=-1)


@pytest.mark.parametrize("commit", LANDED)
def test_its_runs_go_on_to_the_same_weights(commit: str, tmp_path: Path) -> None:
    project = checkout(commit, tmp_path / "old")
    begin_and_kill(project)
    (run,) = runs_in(project / "runs")
    done = ended(start(project, *ARGUMENTS, "--yes"), 300)
    assert done.code == 0, done.err
    assert [each.path for each in runs_in(project / "runs")] == [run.path], "the same run"
    attempts = run.record().attempts
    assert (attempts[-1].resumed_step or 0) > 0, "from its state, not anew"
    other = {"XRUN_HOME": str(tmp_path / "undisturbed")}
    assert ended(start(project, *ARGUMENTS, "--yes", environ=other), 300).code == 0
    (undisturbed,) = runs_in(tmp_path / "undisturbed")
    assert weights(run) == weights(undisturbed)
