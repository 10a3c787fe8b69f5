"""The command and its processes: stops, kills of every part, and one run in one place.

Covers `xrun.supervisor.entrypoint`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.running import (
    MODEL,
    PER_STEP,
    Project,
    children,
    curve,
    ended,
    processes_of,
    record,
    start,
    steps_of,
    until,
    weights,
)
from xrun.launcher.local import alone
from xrun.run.folder import RunFolder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One run without anything happening."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    assert project.attempt().code == 0
    return project


@pytest.fixture
def project(tmp_path: Path) -> Any:
    """A project of which no process is left behind, whatever a test has done."""
    yield Project(tmp_path)
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def held(project: Project) -> int:
    """Wait until a rank is held by a trap; its process."""
    path = project.root / "held"
    return int(until(lambda: path.exists() and path.read_text(), "the hold"))


def same(project: Project, undisturbed: Project) -> bool:
    """Whether the run has every point and the weights of the undisturbed one."""
    return curve(project.run) == curve(undisturbed.run) and weights(project.run) == weights(
        undisturbed.run
    )


@pytest.mark.parametrize("how", ["SIGTERM to the command", "Ctrl-C", "SIGHUP to the command"])
def test_a_stop_commits_where_it_stands(project: Project, undisturbed: Project, how: str) -> None:
    """SIGTERM, SIGHUP or Ctrl-C: 75, the step it stopped at is committed, the way on is said, and
    it ends with the same bits."""
    project.trap("hold", call=8 * PER_STEP)
    command = project.start("recipes/tiny.yaml")
    held(project)
    if how == "Ctrl-C":
        os.killpg(command.pid, signal.SIGINT)
    else:
        os.kill(command.pid, getattr(signal, how.split()[0]))
    done = ended(command)
    assert done.code == 75, done.err
    assert steps_of(project.run)[-1] == max(curve(project.run)) == 8
    assert " is safe. Go on with: xrun recipes/tiny.yaml" in done.err
    assert "Traceback" not in done.err
    assert record(project.run)["attempts"][-1]["kind"] == "stopped"
    assert not processes_of(project.root)
    assert project.attempt().code == 0
    assert same(project, undisturbed)


def test_a_stop_during_an_evaluation_is_heard(project: Project, undisturbed: Project) -> None:
    """SIGTERM during the last evaluation commits the step before it; the next attempt evaluates and
    ends with the same bits."""
    project.trap("hold", call=2, split="val")
    command = project.start("recipes/tiny.yaml")
    held(project)
    os.kill(command.pid, signal.SIGTERM)
    done = ended(command)
    assert done.code == 75, done.err
    assert steps_of(project.run)[-1] == 20
    assert project.attempt().code == 0
    assert same(project, undisturbed)
    assert len([point for point in project.run.points() if "val/loss" in point]) == 1


def test_a_killed_rank_is_followed_by_the_next_attempt(project: Project) -> None:
    """SIGKILL of one rank of two: the command starts the next attempt by itself and ends with the
    undisturbed run's bits."""
    project.trap("SIGKILL", call=8 * PER_STEP // 2, rank=1, committed=5)
    done = project.xrun("recipes/tiny.yaml", "--processes", "2")
    assert done.code == 0, done.err
    attempts = record(project.run)["attempts"]
    assert [attempt["kind"] for attempt in attempts] == ["outside", "finished"]
    other = Project(project.root / "other")
    assert other.attempt(processes=2).code == 0
    assert same(project, other)


@pytest.mark.parametrize("victim", ["command", "entrypoint"])
def test_no_process_is_left_behind(project: Project, undisturbed: Project, victim: str) -> None:
    """SIGKILL of the command only, or of the entrypoint only: nothing of the run lives on beside
    its successor, same bits."""
    project.trap("hold", call=8 * PER_STEP)
    command = project.start("recipes/tiny.yaml")
    rank = held(project)
    (entrypoint,) = children(command.pid)
    assert rank in children(entrypoint)
    os.kill(command.pid if victim == "command" else entrypoint, signal.SIGKILL)
    if victim == "command":
        assert ended(command).code == -signal.SIGKILL
        until(lambda: not processes_of(project.root), "the end of every process")
        assert record(project.run)["attempts"][-1]["reason"] == "its launcher is gone"
        assert project.attempt().code == 0
    else:
        done = ended(command)
        assert done.code == 0, done.err
    assert not Path(f"/proc/{rank}").exists()
    assert not processes_of(project.root)
    assert same(project, undisturbed)


def test_a_run_that_runs_is_refused(project: Project) -> None:
    """A second command for a run that is being trained ends with 3 and names the process; it
    changes nothing of the first one, which trains its own number of steps."""
    project.trap("hold", call=2 * PER_STEP)
    command = project.start("recipes/tiny.yaml")
    held(project)
    plan = (project.run.path / "plan.json").read_bytes()
    second = project.xrun("recipes/tiny.yaml", "-s", "train.steps=10")
    assert second.code == 3, second.err
    assert f"is running already (process {command.pid})" in second.err
    assert "Traceback" not in second.err
    assert (project.run.path / "plan.json").read_bytes() == plan
    assert RunFolder(project.run.path).report().status == "running"
    (project.root / "go").touch()
    assert ended(command).code == 0


def test_files_named_like_libraries_hide_none(project: Project) -> None:
    """A project whose root has a `random.py`, a `json.py` or a `torch.py` trains; its own packages
    are found, after everything that is installed."""
    for name in ("random", "json", "queue", "secrets", "logging", "types", "torch", "safetensors"):
        project.write(f"{name}.py", f"raise SystemExit('{name}.py of the project')\n")
    project.write("mine/__init__.py", "WIDTH = 8\n")
    project.write("models/line.py", "from mine import WIDTH\n" + MODEL.replace("= 8", "= WIDTH"))
    done = project.xrun("recipes/tiny.yaml", "-s", "train.num_workers=1", "-s", "train.steps=5")
    assert done.code == 0, done.err
    assert project.run.report().step == 5


def test_packages_and_paths_are_found_wherever_the_command_is_typed(project: Project) -> None:
    """A package below `src/` is imported, and a relative path begins at the recipe's project."""
    project.write("src/mine/__init__.py", "def width(path):\n    return int(open(path).read())\n")
    project.write("assets/width.txt", "8")
    body = MODEL.replace("width: int = 8", "path: str").replace(
        "return", "width = read(path)\n    return"
    )
    project.write("models/line.py", f"from mine import width as read\n{body}")
    elsewhere = project.root / "elsewhere"
    (elsewhere / "home").mkdir(parents=True)
    arguments = ["train.num_workers=1", "train.steps=5", "model.args.path=assets/width.txt"]
    settings = [part for each in arguments for part in ("-s", each)]
    done = ended(start(elsewhere, str(project.recipe), *settings), 180)
    assert done.code == 0, done.err
    assert project.run.report().step == 5


def test_a_mistake_ends_the_command(project: Project) -> None:
    """A component that always raises in the same step ends the command with 2, in one attempt, with
    one sentence; mended, the same command goes on."""
    project.trap("raise", call=3 * PER_STEP, stays=True)
    done = project.xrun("recipes/tiny.yaml", "-s", "checkpoint.every=100 steps")
    assert done.code == 2, done.err
    assert len(record(project.run)["attempts"]) == 1
    assert "RuntimeError: the component is broken" in done.err
    assert "Traceback" not in done.err
    (project.root / "trap.json").unlink()
    assert project.attempt().code == 0


@pytest.mark.once
def test_three_failures_end_the_command(project: Project) -> None:
    """A process that always crashes ends the command with 7 after three attempts. Typed again it
    gets as many; mended, it goes on."""
    project.trap("SIGSEGV", call=PER_STEP, stays=True, committed=0)
    for typed in (1, 2):
        done = project.xrun("recipes/tiny.yaml")
        assert done.code == 7, done.err
        assert "3 attempts in a row committed no step" in done.err
        # The first attempt of all has committed step 0.
        assert len(record(project.run)["attempts"]) == 3 * typed + 1
    (project.root / "trap.json").unlink()
    assert project.attempt().code == 0


def test_a_local_run_is_no_node_of_a_cluster() -> None:
    """On a cluster's machine a local run has the machine to itself."""
    assert alone(
        {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1 10.0.0.2", "PATH": "/bin"}
    ) == {"PATH": "/bin"}
