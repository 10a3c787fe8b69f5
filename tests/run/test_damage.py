"""Whatever lies where a small file of a run should be: one sentence that names it, or it is made
again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.running import Project, weights
from xrun.cli.app import cli
from xrun.errors import XrunError
from xrun.launcher.job import choose_run
from xrun.run.folder import RunFolder


def folder(path: Path) -> None:
    (path / "in it").mkdir(parents=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def holding(text: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(text)

    return write


WRONG = {
    "run": 1, "digest": [], "recipe": "x", "step": "1", "head": 1, "steps": "x", "started": {},
    "code": "0", "failure": [], "asked": "x", "job": "x", "prices": 1, "attempt": 5, "time": "x",
}  # fmt: skip
KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": folder,
    "a pipe": pipe,
    "a circle": circle,
    "something endless": endless,
}
TEXTS: dict[str, Callable[[Path], None]] = {
    "nothing": holding(b""),
    "null": holding(b"null\n"),
    "a list": holding(b"[[1], {}]\n"),
    "text": holding(b'"text"\n'),
    "a number": holding(b"1e400\n"),
    "a huge number": holding(b"9" * 5000 + b"\n"),
    "depth": holding(b"[" * 100_000 + b"\n"),
    "deep objects": holding(b'{"run":' * 50_000 + b"\n"),
    "wrong types": holding(json.dumps(WRONG).encode() + b"\n"),
    "huge values": holding(b'{"step": 1' + b"0" * 2000 + b', "steps": 1e999, "time": 1e999}\n'),
    "another encoding": holding('{"step": 1, "run": "ü"}\n'.encode("utf-16")),
    "no text": holding(b"\xff\xfe\x00\x80\n"),
    "zeros": holding(bytes(4096)),
}
DAMAGES = KINDS | TEXTS
MADE_AGAIN = ("config.json", "committed.json", "attempts.json", "wandb.json", "lock", "END")
"""What a reader can do without."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of 10 steps, whose newest two commits hold checkpoints."""
    made = Project(tmp_path_factory.mktemp("finished"))
    assert made.attempt("train.steps=10").code == 0
    return made


@pytest.fixture(scope="module")
def of_15_steps(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights that its 15th step leaves where nothing was damaged."""
    project = copy(finished, tmp_path_factory.mktemp("undisturbed") / "project")
    assert project.attempt("train.steps=15").code == 0
    return weights(project.run)


def copy(project: Project, root: Path) -> Project:
    shutil.copytree(project.root, root)
    return Project(root)


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return copy(finished, tmp_path / "project")


@pytest.fixture(autouse=True)
def _nothing_is_waited_for() -> Iterator[None]:
    """Half a minute is more than any of these takes."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place(run: RunFolder, name: str) -> Path:
    """`NEWEST` is the newest commit's file, `LOG` and `END` the last attempt's."""
    attempt = max((run.path / "logs").iterdir())
    commits = sorted((run.state / "commits").iterdir())
    names = {"NEWEST": commits[-1], "LOG": attempt / "rank0.log", "END": attempt / "end-0.json"}
    return names.get(name, run.path / name)


def damage(run: RunFolder, name: str, how: Callable[[Path], None]) -> Path:
    path = place(run, name)
    path.unlink(missing_ok=True)
    how(path)
    return path


def said(
    project: Project, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, output, and the sentence of a command's error; any other error is a traceback."""
    capsys.readouterr()
    here = Path.cwd()
    os.chdir(project.root)
    try:
        cli(list(arguments), standalone_mode=False)
    except XrunError as error:
        return error.exit_code, capsys.readouterr().out, str(error)
    finally:
        os.chdir(here)
    return 0, capsys.readouterr().out, ""


def names(sentence: str, path: Path) -> bool:
    """Whether it is one line that names the file and says what to do."""
    return path.name in sentence and "\n" not in sentence and sentence.endswith(".")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", MADE_AGAIN)
def test_readers_do_without(
    project: Project, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    """What can be made again is not missed: status, report and logs say what they said."""
    run = project.run
    commands = [("status",), ("report", run.run), ("report", run.run, "--json"), ("logs", run.run)]
    before = [said(project, capsys, *command) for command in commands]
    damage(run, name, DAMAGES[how])
    after = [said(project, capsys, *command) for command in commands]
    assert [each[0] for each in after] == [0, 0, 0, 0]
    assert after[1:] == before[1:]
    line, then = (each[0][1].splitlines()[1] for each in (after, before))
    assert line.split()[:3] == then.split()[:3]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_plan_is_named(project: Project, capsys: pytest.CaptureFixture[str], how: str) -> None:
    """Nothing is known without it: 3, and `status` goes on to the other runs."""
    run = project.run
    shutil.copytree(run.path, run.path.with_name("other"))
    path = damage(run, "plan.json", DAMAGES[how])
    for command in ("report", "logs", "sync"):
        code, _, sentence = said(project, capsys, command, run.run)
        assert (code, names(sentence, path)) == (3, True)
    code, out, _ = said(project, capsys, "status")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["other"].split()[1] == "finished"
    assert lines[run.run].split()[1] == "unreadable"
    assert names(lines[f"{run.run}:"], path)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_launch_is_named(project: Project, capsys: pytest.CaptureFixture[str], how: str) -> None:
    """Nobody knows whether a job lives: `logs` ends with 3, `status` says it below its table."""
    path = damage(project.run, "launch.json", DAMAGES[how])
    code, _, sentence = said(project, capsys, "logs", project.run.run)
    assert (code, names(sentence, path)) == (3, True)
    code, out, _ = said(project, capsys, "status")
    assert (code, any(names(line, path) for line in out.splitlines())) == (0, True)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_log_of_points_is_named_or_empty(
    project: Project, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """What is no file is named, with 4; what holds no points has none."""
    path = damage(project.run, "metrics.jsonl", DAMAGES[how])
    code, out, sentence = said(project, capsys, "report", project.run.run, "--json")
    if how in KINDS:
        assert (code, names(sentence, path)) == (4, True)
    else:
        assert (code, json.loads(out)["metrics"], json.loads(out)["step"]) == (0, {}, 10)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_log_is_named_or_shown(
    project: Project, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    path = damage(project.run, "LOG", DAMAGES[how])
    code, _, sentence = said(project, capsys, "logs", project.run.run)
    assert (code, names(sentence, path)) == ((4, True) if how in KINDS else (0, False))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_commit_is_none(
    project: Project, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """The commit before it counts."""
    damage(project.run, "NEWEST", DAMAGES[how])
    code, out, _ = said(project, capsys, "report", project.run.run, "--json")
    assert (code, json.loads(out)["checkpoints"][0]) == (0, 0)


@pytest.mark.parametrize("how", ["a folder", "a pipe", "a circle", "depth", "wrong types"])
@pytest.mark.parametrize("name", [*MADE_AGAIN, "NEWEST", "LOG"])
def test_training_goes_on(project: Project, of_15_steps: str, name: str, how: str) -> None:
    """To the same weights; what is missing is made again, and nothing is lost of what lay there."""
    path = damage(project.run, name, DAMAGES[how])
    plan = choose_run(project.plan("train.steps=15"))
    assert plan.run == project.run.run
    done = project.attempt("train.steps=15")
    assert done.code == 0, done.err
    assert weights(project.run) == of_15_steps
    if name in ("config.json", "committed.json"):
        assert json.loads(path.read_text())
        assert (path.with_name(f"{name}.1") / "in it").is_dir() == (how == "a folder")


@pytest.mark.parametrize("how", KINDS)
def test_training_does_not_go_on_without_its_log(project: Project, how: str) -> None:
    """What lies where the points go is named, with 4, and left alone."""
    path = damage(project.run, "metrics.jsonl", KINDS[how])
    done = project.attempt("train.steps=15")
    assert (done.code, str(path) in done.err) == (4, True)
    assert "Traceback" not in done.err
    assert os.path.lexists(path)


@pytest.mark.parametrize("how", TEXTS)
def test_points_that_are_none_do_not_count(project: Project, of_15_steps: str, how: str) -> None:
    """The state does not hang on them."""
    damage(project.run, "metrics.jsonl", TEXTS[how])
    done = project.attempt("train.steps=15")
    assert done.code == 0, done.err
    assert weights(project.run) == of_15_steps
    assert [point["step"] for point in project.run.points() if "train/loss" in point] == [
        11, 12, 13, 14, 15,
    ]  # fmt: skip
