"""The command wherever it runs: terminals that are lost, readers that leave or do not read, folders
that cannot be written, users without a name, and starts that are interrupted.

Covers `xrun.supervisor.entrypoint`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import SOURCES
from support.running import (
    PER_STEP,
    Project,
    children,
    curve,
    ended,
    processes_of,
    record,
    steps_of,
    until,
    weights,
)
from xrun.environment import HOME, PYTHON

SLOW = """\
import time
from pathlib import Path


def build():
    Path(__file__).with_name("building").touch()
    time.sleep(300)
"""
RECIPE = "recipes/tiny.yaml"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One run without anything happening."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    assert project.attempt().code == 0
    return project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project of which no process is left behind, whatever a test has done."""
    yield Project(tmp_path)
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def same(project: Project, undisturbed: Project) -> bool:
    """Whether the run has every point and the weights of the undisturbed one."""
    return curve(project.run) == curve(undisturbed.run) and weights(project.run) == weights(
        undisturbed.run
    )


def held(project: Project) -> None:
    """Wait until a rank is held by a trap, at step 8."""
    until((project.root / "held").exists, "the hold")


def full_pipe() -> tuple[int, int]:
    """A pipe that takes nothing more until somebody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    os.set_blocking(writer, True)
    return reader, writer


def test_a_lost_terminal_ends_nothing(project: Project, undisturbed: Project) -> None:
    """The terminal is closed while it trains: SIGHUP, and nobody to speak to. The run ends with the
    undisturbed one's bits, in one attempt."""
    project.trap("hold", call=8 * PER_STEP)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.root)
        command = [*PYTHON, "-m", "xrun", RECIPE]
        own = {"HOME": str(project.root), "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
        os.execve(command[0], command, {"PATH": os.environ["PATH"], **own})  # noqa: S606
    held(project)
    os.close(terminal)
    (project.root / "go").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(record(project.run)["attempts"]) == 1
    assert same(project, undisturbed)


def test_a_reader_that_leaves_ends_nothing(project: Project, undisturbed: Project) -> None:
    """`xrun RECIPE 2>&1 | head -1`."""
    command = project.start(RECIPE, stderr=subprocess.STDOUT)
    assert command.stdout is not None
    assert command.stdout.readline().startswith("Run tiny-")
    command.stdout.close()
    assert command.wait(180) == 0
    assert len(record(project.run)["attempts"]) == 1
    assert same(project, undisturbed)


def test_a_reader_that_does_not_read_delays_no_last_save(project: Project) -> None:
    """The pipe is full from the start on, as under a stopped `less`: a stop is heard, and what was
    trained is committed."""
    project.trap("hold", call=8 * PER_STEP)
    reader, writer = full_pipe()
    command = project.start(RECIPE, stdout=writer, stderr=writer)
    held(project)
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(60) == 75
    assert steps_of(project.run)[-1] == max(curve(project.run)) == 8
    os.close(reader)
    os.close(writer)


def test_closed_descriptors_end_nothing(project: Project, undisturbed: Project) -> None:
    """`<&- >&- 2>&-`: no file of the run gets what is printed in place of them."""
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PYTHON, "-m", "xrun", RECIPE]
    own = {"HOME": str(project.root), "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
    code = subprocess.run(
        shell, cwd=project.root, env={**os.environ, **own}, check=False
    ).returncode
    assert code == 0
    assert same(project, undisturbed)
    files = [path for path in project.run.path.rglob("*") if path.is_file()]
    speaking = [path.name for path in files if b"Finished" in path.read_bytes()]
    assert speaking == []


def test_logs_that_are_taken_away_end_nothing(project: Project, undisturbed: Project) -> None:
    """A file lies where the folder of logs was: nobody can say how the ranks end, and the store
    knows that the run has finished."""
    project.trap("hold", call=8 * PER_STEP)
    command = project.start(RECIPE)
    held(project)
    folder = project.run.path / "logs"
    shutil.rmtree(folder)
    folder.touch()
    (project.root / "go").touch()
    done = ended(command)
    assert done.code == 0, done.err
    assert len(record(project.run)["attempts"]) == 1
    assert same(project, undisturbed)


@pytest.mark.parametrize("how", ["Ctrl-C twice", "SIGINT to the command", "SIGTERM to the command"])
def test_a_slow_start_ends_at_once(project: Project, how: str) -> None:
    """While a component builds for minutes nothing is there to save: no grace, and no word of a
    state that is safe."""
    project.write("datasets/points.py", SLOW)
    command = project.start(RECIPE)
    until((project.root / "datasets" / "building").exists, "build()")
    began = time.monotonic()
    if how == "Ctrl-C twice":
        os.killpg(command.pid, signal.SIGINT)
        os.killpg(command.pid, signal.SIGINT)
    else:
        os.kill(command.pid, getattr(signal, how.split()[0]))
    done = ended(command)
    assert time.monotonic() - began < 4
    assert done.code == 75, done.err
    assert "safe" not in done.err
    assert "Traceback" not in done.err + project.run.log_text(None, 0)
    assert steps_of(project.run) == []
    assert record(project.run)["attempts"][-1]["kind"] == "stopped"
    assert not processes_of(project.root)


def test_ctrl_c_while_processes_start_leaves_no_traceback(project: Project) -> None:
    """The entrypoint and the ranks are hardly there: they hear it as soon as they can."""
    command = project.start(RECIPE)
    until(lambda: children(command.pid), "the entrypoint")
    os.killpg(command.pid, signal.SIGINT)
    done = ended(command)
    assert done.code == 75
    assert "Traceback" not in done.err
    assert "safe" not in done.err
    assert not processes_of(project.root)


def test_ctrl_c_while_the_command_is_imported_is_silent(tmp_path: Path) -> None:
    """It ends as every program does that Ctrl-C ends."""
    (tmp_path / "click.py").write_text(
        "import pathlib, time\npathlib.Path('imports').touch()\ntime.sleep(300)\n"
    )
    own = {"PYTHONPATH": f"{tmp_path}:{SOURCES}"}
    command = Project(tmp_path).start("check", RECIPE, environ=own)
    until((tmp_path / "imports").exists, "the import")
    command.send_signal(signal.SIGINT)
    done = ended(command)
    assert (done.code, done.out, done.err) == (-signal.SIGINT, "", "")


def no_files() -> None:
    """A disk without room: no file may grow."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("place", ["a file", "a folder of the kernel's", "no room"])
def test_a_folder_that_cannot_be_used_is_one_sentence(project: Project, place: str) -> None:
    """4, the folder's name and the way out."""
    home = {"a file": project.recipe, "a folder of the kernel's": Path("/proc/runs")}.get(
        place, project.home
    )
    limit = no_files if place == "no room" else None
    command = project.start(RECIPE, environ={HOME.name: str(home)}, preexec_fn=limit)
    done = ended(command)
    assert done.code == 4, done.err
    assert done.err.startswith(f"xrun: {home}")
    assert done.err.count("\n") == 1
    assert not processes_of(project.root)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may write to; pytest keeps others out of its own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def python_for(user: int) -> str:
    """An interpreter that this user may start: a test's own may lie in somebody's home."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            subprocess.run([python, "-c", ""], user=user, check=True, capture_output=True)
            return python
    pytest.skip("no Python here that a user without a name may start")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_user_without_a_name_trains(open_folder: Path, undisturbed: Project) -> None:
    """As in containers: a number only, no home, and nothing that says who it is."""
    project = Project(open_folder)
    done = subprocess.run(
        [python_for(12345), "-P", "-m", "xrun", RECIPE],
        cwd=project.root,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{SOURCES}:{sysconfig.get_path('purelib')}",
            "OMP_NUM_THREADS": "1",
        },
        user=12345,
        group=12345,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert same(project, undisturbed)
    heads = sorted((project.run.state / "commits").glob("*.json"))
    assert json.loads(heads[-1].read_text().splitlines()[0])["owner"] == "uid-12345"
