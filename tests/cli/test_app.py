"""The command line: texts, JSON, exit codes, and mistakes that people make.

Covers `xrun.__main__`, `xrun.cli.options`, `xrun.cli.plans`, `xrun.cli.recipes`, `xrun.cli.runs`,
`xrun.cli.texts` and `xrun.cli.train`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.paths import ROOT
from support.running import PER_STEP, Project, attempt, ended, one_line, until, weights
from xrun.cli.app import cli
from xrun.cli.options import RunType
from xrun.cli.texts import outcome_text, report_text, status_lines
from xrun.errors import EX_TEMPFAIL, AttemptEnd, LaunchError
from xrun.launcher.job import choose_run
from xrun.launcher.sky.status import RunStatus
from xrun.launcher.speeds import known_throughput
from xrun.run.folder import RunFolder
from xrun.run.record import AttemptRecord
from xrun.run.report import RunReport


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run of 10 steps that was killed once, trained by the command itself."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.trap("SIGKILL", call=7 * PER_STEP, committed=5)
    done = made.xrun("recipes/tiny.yaml", "-s", "train.steps=10")
    assert done.code == 0, done.err
    assert f"Finished {made.run.run}: val/accuracy" in done.out
    assert str(made.run.model) in done.out
    return made


TWO = "{local: {processes: 2}}"
LOST = " What was trained after it, to step 7, was not saved."


@pytest.mark.parametrize(("logged", "lost"), [(5, ""), (7, LOST)])
def test_a_stop_says_what_is_safe_and_asks_no_store(tmp_path: Path, logged: int, lost: str) -> None:
    """By what lies on this machine alone: the store may be why it has stopped."""
    folder = RunFolder(tmp_path)
    folder.witness.write_text('{"step": 5, "head": "a"}')
    point = {"time": 1.0, "step": logged, "train/loss": 1.0}
    folder.metrics.write_text(json.dumps(point) + "\n")
    said = outcome_text(folder, EX_TEMPFAIL, "xrun x")
    assert said == f"Stopped; step 5 is safe.{lost} Go on with: xrun x"


def test_python_m_xrun_runs_no_file_of_the_folder(tmp_path: Path) -> None:
    """`python -m` puts the working directory first on the path; `python -m xrun` takes it away."""
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n")
    command = [sys.executable, "-m", "xrun", "check", str(ROOT / "recipes" / "digits.yaml")]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


def test_the_same_command_again_does_nothing(project: Project) -> None:
    """The same command on a finished run exits 0 and leaves the model's bytes and time as they
    are."""
    file = project.run.model / "model.safetensors"
    before = file.stat().st_mtime_ns, weights(project.run)
    done = project.xrun("run", "recipes/tiny.yaml", "-s", "train.steps=10")
    assert done.code == 0, done.err
    assert "is finished" in done.err
    assert (file.stat().st_mtime_ns, weights(project.run)) == before
    assert len(list((project.run.path / "logs").iterdir())) == 2, (
        "the ranks that were started ahead have left nothing"
    )


def test_a_local_run_says_which_files_are_not_here(project: Project) -> None:
    """And goes on: it is the same run, whatever `files` says."""
    files = "files={/no/such/path: s3://bucket}"
    done = project.xrun("run", "recipes/tiny.yaml", "-s", "train.steps=10", "-s", files)
    assert done.code == 0, done.err
    assert done.err.splitlines()[0] == (
        "  note     files: /no/such/path is for machines of clouds, and this machine has none. If"
        " the run reads it, copy the data of s3://bucket there first."
    )
    assert f"Run {project.run.run}:" in done.out
    assert "is finished" in done.err


def test_status_lists_runs(project: Project) -> None:
    """`xrun status` has a head, a line per run, and what all have cost; `--json` the same as
    JSON."""
    done = project.xrun("status")
    assert done.code == 0
    head, line, sums = done.out.splitlines()
    assert head.split()[:4] == ["RUN", "STATUS", "STEP", "BEST"]
    assert line.split()[:4] == [project.run.run, "finished", "10/10", "val/loss"]
    assert "  2, 1 lost  " in line
    assert sums.startswith("1 run: ")
    assert sums.endswith(" h of machine time on machines of one's own, which cost nothing")
    (report,) = json.loads(project.xrun("status", "--json").out)
    assert report == project.run.report().to_json()


def test_status_says_how_old_the_last_sign_of_life_is(tmp_path: Path) -> None:
    """And how far a run has come that has not finished."""
    project = Project(tmp_path)
    project.trap("SIGKILL", call=7 * PER_STEP, committed=5)
    assert project.attempt().code == 75
    line = project.xrun("status").out.splitlines()[1]
    assert re.search(r" stopped +\d+/20  .*\b(\d+ s|\d+ min) ago +1, 1 lost\b", line)


def test_report_tells_what_happened(project: Project) -> None:
    """`xrun report RUN` tells attempts, what was lost and the weights' hash, and `--json` the same
    as JSON."""
    done = project.xrun("report", project.run.run)
    assert done.code == 0
    assert "finished, step 10 committed" in done.out
    assert "attempt 2: from step 5" in done.out
    assert weights(project.run) in done.out
    assert (
        json.loads(project.xrun("report", project.run.run, "--json").out)
        == project.run.report().to_json()
    )


def test_logs_print_what_a_rank_said(project: Project) -> None:
    """`xrun logs RUN` prints the last attempt's log, `--attempt 1` the first one's, and another
    number is one clear line."""
    assert "Going on from step 5." in project.xrun("logs", project.run.run).out
    assert "Starting at step 0" in project.xrun("logs", project.run.run, "--attempt", "1").out
    done = project.xrun("logs", project.run.run, "--attempt", "9")
    assert (done.code, one_line(done.err)) == (3, True)


def test_plan_prints_json_and_does_nothing(project: Project) -> None:
    """`xrun plan` says in ten lines what would happen, `--json` in full, and makes no folder."""
    before = sorted(project.home.iterdir())
    changed = ("recipes/tiny.yaml", "-s", "train.seed=3", "--processes", "2")
    done = project.xrun("plan", *changed, "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["recipe"]["train"]["seed"] == 3
    assert plan["processes"] == 2
    said = project.xrun("plan", *changed).out.splitlines()
    assert len(said) == 10
    assert said[0] == f"run       {plan['run']}, which is new here"
    assert "20 steps of 8 samples" in said[3]
    assert "2 processes" in said[4]
    assert said[9] == "start it  xrun recipes/tiny.yaml -s train.seed=3 --processes 2"
    assert sorted(project.home.iterdir()) == before


def test_plan_here_is_what_the_recipe_does_here(project: Project) -> None:
    """`--local` asks nothing of a recipe's cloud machines, says what starts it, and leaves a recipe
    that is local its processes."""
    text = project.recipe.read_text()
    for name, hardware in (("far", "{any_of: [{accelerators: A100:8}]}"), ("two", TWO)):
        project.write(f"recipes/{name}.yaml", f"{text}hardware: {hardware}\n")
    done = project.xrun("plan", "recipes/far.yaml")
    assert (done.code, "can share 4 micro-batches" in done.err) == (2, True)
    said = project.xrun("plan", "recipes/far.yaml", "--local").out.splitlines()
    assert said[4] == "machine   1 process on this machine"
    assert said[9] == "start it  xrun recipes/far.yaml --local"
    for flags in ((), ("--local",)):
        said = project.xrun("plan", "recipes/two.yaml", *flags).out.splitlines()
        assert said[4] == "machine   2 processes on this machine"


def test_plan_of_a_fork_says_where_it_begins(tmp_path: Path) -> None:
    """One that has not begun has the steps before it behind it, and is not one from step 0."""
    project = Project(tmp_path)
    assert project.attempt("train.steps=10").code == 0
    source = project.run.run
    changed = ("train.optimizer.lr=0.002", "train.steps=16")
    fork = choose_run(project.plan(*changed), fork=source)
    RunFolder(fork.folder).write_plan(fork)
    said = project.xrun("plan", "recipes/tiny.yaml", "-s", changed[0], "-s", changed[1])
    first = f"run       {fork.run}, which begins at the newest checkpoint of {source}"
    assert said.out.splitlines()[0] == first, said.err
    assert known_throughput(fork).steps_left == 6
    assert attempt(fork).code == 0
    said = project.xrun("plan", "recipes/tiny.yaml", "-s", changed[0], "-s", changed[1])
    assert said.out.splitlines()[0] == f"run       {fork.run}, which goes on"


def test_schema_is_json(project: Project) -> None:
    """`xrun schema` prints a JSON Schema of recipes."""
    assert "properties" in json.loads(project.xrun("schema").out)


def test_check_finds_every_problem(project: Project) -> None:
    """`xrun check` prints every problem at its place and exits 2; `--json` the same for programs; a
    good recipe exits 0."""
    bad = project.write(
        "recipes/bad.yaml", project.recipe.read_text().replace("steps: 20", "stepz: 20\n  seed: x")
    )
    done = project.xrun("check", str(bad), "recipes/tiny.yaml")
    assert done.code == 2
    assert f"{bad}:6:3: train.stepz" in done.err
    assert f"{bad}:7:9: train.seed" in done.err
    assert "recipes/tiny.yaml: tiny is fine." in done.out
    problems = json.loads(project.xrun("check", str(bad), "--json").out)
    assert {problem["key"] for problem in problems} >= {"train.stepz", "train.seed"}
    bad.unlink()
    assert project.xrun("check", "recipes/tiny.yaml").code == 0


def test_check_refuses_a_tracker_that_is_not_there(project: Project) -> None:
    """At its place, before a launch would."""
    text = project.recipe.read_text() + "tracking:\n  trackio: {project: p}\n"
    bad = project.write("recipes/bad.yaml", text)
    done = project.xrun("check", str(bad))
    bad.unlink()
    assert done.code == 2
    assert done.err.startswith(f"{bad}:{len(text.splitlines())}:12: tracking.trackio: xrun sends")
    assert "tracking.tensorboard" in done.err
    assert json.loads(project.xrun("check", "recipes/tiny.yaml", "--json").out) == []


def test_init_writes_a_recipe_that_is_fine(project: Project, tmp_path: Path) -> None:
    """`xrun init` writes a recipe that passes `xrun check`, and refuses to overwrite a file."""
    path = tmp_path / "recipes" / "first.yaml"
    assert project.xrun("init", str(path)).code == 0
    done = project.xrun("check", str(path))
    assert done.code == 0, done.err
    before = path.read_bytes()
    done = project.xrun("init", str(path))
    assert (done.code, one_line(done.err)) == (2, True)
    assert path.read_bytes() == before


def test_init_offers_the_recipes_that_ship(project: Project, tmp_path: Path) -> None:
    """`xrun init --list` names them, and `xrun init NAME FOLDER` writes one that is fine."""
    listed = project.xrun("init", "--list").out.splitlines()
    assert any(line.startswith("chat-lora  ") for line in listed)
    done = project.xrun("init", "chat-lora", str(tmp_path / "own"))
    path = tmp_path / "own" / "recipes" / "chat_lora.yaml"
    assert done.out.startswith(f"Wrote {path}. Next: xrun check {path}")
    assert project.xrun("check", str(path)).code == 0
    done = project.xrun("init", "chat-lore")
    assert (done.code, one_line(done.err)) == (2, True)
    assert "Did you mean `chat-lora`?" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["report", "nothing-here"], 3, "`xrun status` lists the runs"),
        (["logs", "nothing-here"], 3, "`xrun status` lists the runs"),
        (["recipes/absent.yaml"], 2, "recipes/absent.yaml"),
        (["run", "recipes"], 2, "recipes"),
        (["."], 2, "directory"),
        (["./recipes"], 2, "directory"),
        (["./recipes/tiny"], 2, "recipes/tiny"),
        (["check", "recipes"], 2, "recipes"),
        (["check", "recipes/absent.yaml"], 2, "recipes/absent.yaml"),
        (["recipes/tiny.yaml", "-s", "train.steps"], 2, "train.steps"),
        (["recipes/tiny.yaml", "-s", "=3"], 2, "=3"),
        (["recipes/tiny.yaml", "-s", "train.stepz=3"], 2, "steps"),
        (["recipes/tiny.yaml", "-s", "model.args={widht: 3}"], 2, "width"),
        (["recipes/tiny.yaml", "-s", "model.name=lime"], 2, "line"),
        (["recipes/tiny.yaml", "-s", "train.optimizer.lr=0.5"], 3, "--new"),
        (["recipes/tiny.yaml", "--fork", "nothing-here"], 3, "nothing-here"),
        (["recipes/tiny.yaml", "-s", "checkpoint.store=hub"], 5, "--again"),
        (["recipes/tiny.yaml", "--again", "-s", "checkpoint.store=hub"], 3, "store=local"),
        (["recipes/tiny.yaml", "--run", "../elsewhere"], None, "elsewhere"),
        (["report", "../elsewhere"], None, "elsewhere"),
        (["report", "recipes/absent.yaml"], 2, "recipes/absent.yaml"),
        (["recipes/tiny.yaml", "-s", "train.steps=4"], 5, "has trained 10 steps"),
    ],
)
def test_a_mistake_is_one_clear_line(
    project: Project, arguments: list[str], code: int | None, sentence: str
) -> None:
    """What people type by mistake is answered by one line that names it and the way out, with the
    right exit code."""
    done = project.xrun(*arguments)
    assert done.code == code if code is not None else done.code in (2, 3)
    assert one_line(done.err), done.err
    assert sentence in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes/tiny.yaml", "--no-such-option"],
        ["nonsense"],
        ["sweep", "nonsense"],
        ["run"],
        ["recipes/tiny.yaml", "--processes", "0"],
        ["recipes/tiny.yaml", "--processes", "x"],
    ],
)
def test_a_wrong_command_is_explained(project: Project, arguments: list[str]) -> None:
    """Options and commands that do not exist exit 2 with click's explanation and without a
    traceback."""
    done = project.xrun(*arguments)
    assert done.code == 2
    assert "Error:" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("stats", "status"),
        ("log", "logs"),
        ("train", "run"),
        ("trian", "run"),
        ("sweep tables", "table"),
        ("xyz", ""),
    ],
)
def test_a_command_that_is_not_there_is_answered_with_the_one_that_is(
    typed: str, meant: str
) -> None:
    said = CliRunner().invoke(cli, typed.split())
    assert said.exit_code == 2
    assert said.output.rstrip().endswith(f"Did you mean `{meant}`?" if meant else "'xyz'.")


@pytest.mark.parametrize("command", ["run", "drill", "plan"])
def test_a_key_without_its_option_is_told_it(command: str) -> None:
    """As it is typed for other tools: `xrun RECIPE train.steps=3`."""
    said = CliRunner().invoke(cli, [command, "recipes/tiny.yaml", "train.steps=3", "name=a"])
    assert said.exit_code == 2
    assert said.output.rstrip().endswith("To set a key of the recipe: -s train.steps=3")


def test_a_recipe_stands_for_its_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one names a run: the one that the recipe has here."""
    monkeypatch.chdir(project.root)
    convert = partial(RunType().convert, param=None, ctx=None)
    assert convert(project.run.run) == project.run.run
    assert convert("s3://bucket/runs/x.yaml") == "s3://bucket/runs/x.yaml"
    assert convert("recipes/tiny.yaml") == project.run.run
    text, other = project.recipe.read_text(), project.root / "recipes" / "other.yaml"
    for more, said in (
        (
            "sweep: {parameters: {train.seed: [1, 2]}}\n",
            "has a sweep, which is a run for each trial",
        ),
        ("version: 1\n", f"Its runs with other keys: {project.run.run}. Give the id of one."),
    ):
        other.write_text(text.replace("lr: 0.01", "lr: 0.02") + more)
        with pytest.raises(LaunchError, match=re.escape(said)):
            convert(str(other))
    other.unlink()
    monkeypatch.chdir(project.root.parent)
    assert convert(str(project.recipe)) == str(project.run.path), "no run of a project here"


def test_a_folder_that_cannot_be_made_is_a_problem(project: Project) -> None:
    """`xrun check` tries the folder of checkpoint.store, says where nothing can be made in it, and
    leaves nothing behind."""
    (project.root / "plain").touch()
    for store in ("./plain/runs", "./plain"):
        done = project.xrun("check", "recipes/tiny.yaml", "-s", f"checkpoint.store={store}")
        assert (done.code, one_line(done.err)) == (2, True)
        assert "checkpoint.store: " in done.err
        assert "cannot be " in done.err
    (project.root / "plain").unlink()
    assert project.xrun("check", "recipes/tiny.yaml", "-s", "checkpoint.store=./new/ones").code == 0
    assert not (project.root / "new").exists()


def test_processes_that_do_not_divide_the_batch_are_refused(project: Project) -> None:
    """--processes that cannot share the micro-batches evenly is one clear line, exit 2, before
    anything is written."""
    before = sorted(project.home.iterdir())
    done = project.xrun("recipes/tiny.yaml", "-s", "train.steps=10", "--processes", "3", "--new")
    assert (done.code, one_line(done.err)) == (2, True)
    assert "3 processes cannot share the 4 micro-batches" in done.err
    assert sorted(project.home.iterdir()) == before


def test_changed_mathematics_under_an_id_are_refused(project: Project) -> None:
    """--run with a changed recipe exits 5 with the differing keys in one line."""
    done = project.xrun("recipes/tiny.yaml", "--run", project.run.run, "-s", "train.seed=7")
    assert (done.code, one_line(done.err)) == (5, True)
    assert "train.seed: 0 -> 7" in done.err


def test_a_reader_that_leaves_is_no_error(project: Project) -> None:
    """`xrun ... | head -1` ends without a traceback."""
    for arguments in (["--help"], ["schema"], ["status"], ["plan", "recipes/tiny.yaml"]):
        command = project.start(*arguments)
        assert command.stdout is not None
        command.stdout.close()
        command.stdout = None
        done = ended(command)
        assert done.err == "", arguments


def test_help_and_version(project: Project) -> None:
    """`xrun --help` names every command."""
    done = project.xrun("--help")
    assert done.code == 0
    commands = "run check plan drill status compare report receipt logs schema init"
    for command in commands.split():
        assert f"\n  {command} " in done.out


def test_the_way_on_can_be_typed(tmp_path: Path) -> None:
    """The command that a stop prints is one that goes on, with the same overrides, quoted for a
    shell."""
    import shlex
    import signal

    from support.running import until

    project = Project(tmp_path)
    project.trap("hold", call=2 * PER_STEP)
    command = project.start(
        "recipes/tiny.yaml", "-s", "model.args={width: 9}", "-s", "train.steps=4"
    )
    until(lambda: (tmp_path / "held").exists(), "the hold")
    os.kill(command.pid, signal.SIGTERM)
    done = ended(command)
    assert done.code == 75, done.err
    said = done.err.partition("Go on with: ")[2].strip()
    first, *arguments = shlex.split(said)
    assert first == "xrun"
    done = project.xrun(*arguments)
    assert done.code == 0, done.err
    assert "Going on from step 2." in done.err


def test_an_error_of_xrun_itself_is_not_hidden(tmp_path: Path) -> None:
    """A standard output that cannot be written (a full disk) does not look like success."""
    project = Project(tmp_path)
    with open("/dev/full", "w") as full:
        process = project.start("schema", stdout=full, stderr=subprocess.PIPE)
        done = ended(process)
    assert done.code != 0


def test_the_speed_is_told() -> None:
    """In a line while the run trains, and whole in the report."""
    speed = {"samples_per_second": 1234.5, "step_seconds": 0.0123, "mfu": 0.5, "memory_gib": 2.0}
    running = RunReport("r", "runs/r", "running", step=5, speed=speed)
    lines = [
        status_lines([RunStatus(replace(running, status=status))], 0.0, None)[1]
        for status in ("running", "stopped")
    ]
    assert ["1234 samples/s" in line for line in lines] == [True, False]
    told = "  speed 0.0123 s per step, 1234 samples/s, 50.0 % MFU, 2 GiB"
    assert told in report_text(running).splitlines()
    over = replace(running, status="finished", losses=((1, 2.0), (2, 1.0)))
    lines = report_text(over).splitlines()
    assert f"{told}, the median" in lines
    assert lines[lines.index("  train/loss") + 1].startswith("  2 ")
    assert "losses" not in over.to_json()


def test_what_is_left_is_told_while_it_trains() -> None:
    """From the newest step that was trained, in the list, the report and for programs; of what is
    over, and where nobody knows, nothing."""
    running = RunReport(
        "r", "runs/r", "running", step=5, steps=105, logged_step=45, speed={"step_seconds": 12.0}
    )
    head, line = status_lines([RunStatus(running)], 0.0, None)
    assert head.split()[:4] == ["RUN", "STATUS", "STEP", "LEFT"]
    assert line.split()[:5] == ["r", "running", "5/105", "12", "min"]
    assert running.to_json()["seconds_left"] == 720.0
    assert "  12 min left, without evaluations and saves" in report_text(running).splitlines()
    for other in (replace(running, status="stopped"), replace(running, speed={})):
        assert other.to_json()["seconds_left"] is None
        assert "LEFT" not in status_lines([RunStatus(other)], 0.0, None)[0]


def test_attempts_are_told_with_their_processes() -> None:
    """One of one process, one of two."""
    lives = (AttemptRecord("a", end=AttemptEnd.STOPPED), AttemptRecord("b", processes=2))
    killed = report_text(RunReport("r", "runs/r", "killed", attempts=lives)).splitlines()
    assert "  attempt 2: from step 0, 2 processes, killed" in killed
    lines = report_text(RunReport("r", "runs/r", "running", attempts=lives)).splitlines()
    assert "  attempt 1: from step 0, 1 process, stopped" in lines
    assert "  attempt 2: from step 0, 2 processes, running" in lines


def test_sync_writes_the_files_of_tensorboard(project: Project) -> None:
    """From the run's points, and twice is like once; a run that was trained without them has them
    then."""
    told = ("-s", "train.steps=10", "-s", "tracking.tensorboard=true")
    assert project.xrun("run", "recipes/tiny.yaml", *told).code == 0
    where = project.run.path / "tensorboard"
    for _ in range(2):
        done = project.xrun("sync", project.run.run)
        assert done.code == 0, done.err
        assert done.out == f"TensorBoard: tensorboard --logdir {where}\n"
    read = EventAccumulator(str(where), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(1, 11))


def test_ctrl_c_ends_a_drill_with_a_sentence(tmp_path: Path) -> None:
    """And with a code of its own: 1 says of a drill that two runs differ."""
    project = Project(tmp_path)
    project.trap("hold", call=5)
    drill = project.start("drill", "recipes/tiny.yaml")
    until((tmp_path / "held").exists, "a life that trains", 200)
    os.killpg(drill.pid, signal.SIGINT)
    done = ended(drill)
    assert done.code == 75
    assert "Ctrl-C has ended `xrun drill` before it was done." in done.err
    assert "Traceback" not in done.err
