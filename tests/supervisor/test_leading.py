"""One attempt from outside: the lease, how it ends, what is recorded, and state that is damaged or
gone.

Covers `xrun.supervisor.ranks` and `xrun.supervisor.witnesses`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.hub_store import Clock
from support.running import (
    DATASET,
    MODEL,
    PER_STEP,
    STEPS,
    Done,
    Project,
    attempt,
    commits,
    curve,
    reasons,
    record,
    steps_of,
    until,
    weights,
)
from xrun import environment
from xrun.errors import EX_TEMPFAIL, AttemptEnd, StoreUnavailable
from xrun.machine.stop import StopFlag
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.run.record import OWN_FAILURES, Failure, Outcome
from xrun.run.stores import open_store
from xrun.store.directory.store import DirectoryStore
from xrun.supervisor.ranks import gravest, gravest_of, silent_end
from xrun.supervisor.witnesses import Witnesses

KILLED_IN = 18


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run that was killed in step 18: the checkpoints of steps 5, 10 and 15 are kept."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.trap("SIGKILL", call=(KILLED_IN - 1) * PER_STEP + 1, paced=True)
    assert made.attempt().code == 75
    assert steps_of(made.run) == [5, 10, 15]
    return made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final weights of an undisturbed run."""
    made = Project(tmp_path_factory.mktemp("undisturbed"))
    assert made.attempt().code == 0
    return weights(made.run)


@pytest.fixture
def again(project: Project, tmp_path: Path) -> Again:
    """The killed run, copied."""
    return Again(project, tmp_path / "again")


class Again:
    """A copy of the killed run, to be damaged and started again, as if the machine had gone: nobody
    recorded the end."""

    def __init__(self, project: Project, home: Path) -> None:
        import dataclasses

        shutil.copytree(project.home, home)
        self.plan: Plan = dataclasses.replace(project.plan(), home=str(home))
        self.run = RunFolder(self.plan.folder)
        commits(self.run)[-1].unlink()
        assert steps_of(self.run) == [5, 10, 15]

    def start(self) -> Done:
        return attempt(self.plan)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def missing(path: Path) -> None:
    path.unlink()


DAMAGES = [torn, empty, flipped, missing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_skipped(
    project: Project, tmp_path: Path, expected: str, damage: Callable[[Path], None]
) -> None:
    """Whatever happens to any file of the newest checkpoint: the one before is taken, loudly, with
    the same final weights."""
    newest = record(project.run)["checkpoints"][-1]
    assert newest["step"] == 15
    for name, file in newest["files"].items():
        again = Again(project, tmp_path / name)
        for copy in file["copies"]:
            damage(again.run.state / copy)
        done = again.start()
        assert done.code == 0, (name, done.err)
        assert "The checkpoint of step 15 is damaged" in done.err, name
        assert "Going on from step 10." in done.err, name
        assert weights(again.run) == expected, name
        curve(again.run)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_older_checkpoints_changes_nothing(
    project: Project, tmp_path: Path, expected: str, damage: Callable[[Path], None]
) -> None:
    """Whatever happens to the files of older checkpoints: the newest is taken and the weights are
    the same."""
    again = Again(project, tmp_path / "again")
    for older in record(project.run)["checkpoints"][:-1]:
        for file in older["files"].values():
            for copy in file["copies"]:
                damage(again.run.state / copy)
    done = again.start()
    assert done.code == 0, done.err
    assert "Going on from step 15." in done.err
    assert weights(again.run) == expected


@pytest.mark.parametrize("damage", [torn, empty, flipped])
def test_a_damaged_newest_commit_is_skipped(
    again: Again, expected: str, damage: Callable[[Path], None]
) -> None:
    """A newest commit file that is torn or has other bytes: the one before counts, loudly, with the
    same final weights."""
    newest = commits(again.run)[-1]
    damage(newest)
    done = again.start()
    assert done.code == 0, done.err
    assert f"The commit {newest.name} is damaged; the one before it counts." in done.err
    assert "Going on from step 10." in done.err
    assert weights(again.run) == expected


@pytest.mark.parametrize("witness", [True, False])
@pytest.mark.parametrize("damage", [torn, empty, flipped])
def test_a_head_without_checkpoints_before_damaged_commits_is_an_error(
    again: Again, damage: Callable[[Path], None], witness: bool
) -> None:
    """All commits with checkpoints are damaged and the first one, which took the lease, is whole:
    exit 5, with or without another witness, and every object stays."""
    first, *others = commits(again.run)
    assert not json.loads(first.read_text().splitlines()[0])["record"]["checkpoints"]
    for path in others:
        damage(path)
    if not witness:
        again.run.witness.unlink()
    before = files(again.run.state)
    done = again.start()
    assert done.code == 5, done.err
    assert others[-1].name in done.err
    assert "Nothing was started from step 0." in done.err
    assert files(again.run.state) == before


def test_a_missing_newest_commit_is_noticed(again: Again) -> None:
    """A newest commit file that is gone leaves a store older than what the run's log knows: exit 5,
    nothing is trained."""
    commits(again.run)[-1].unlink()
    before = files(again.run.state)
    done = again.start()
    assert done.code == 5
    assert "knows of a commit of step 15" in done.err
    assert "step 10" in done.err
    assert files(again.run.state) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_older_commits_changes_nothing(
    again: Again, expected: str, damage: Callable[[Path], None]
) -> None:
    """Whatever happens to every older commit file: the newest counts and the weights are the
    same."""
    for path in commits(again.run)[:-1]:
        damage(path)
    done = again.start()
    assert done.code == 0, done.err
    assert "Going on from step 15." in done.err
    assert weights(again.run) == expected


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_checkpoints_damaged_is_an_error(again: Again, damage: Callable[[Path], None]) -> None:
    """If no checkpoint is whole, the attempt ends with 5 and names each; nothing starts from step
    0, not even a second time."""
    for path in (again.run.state / "objects").glob("*/*"):
        damage(path)
    for _ in range(2):
        done = again.start()
        assert done.code == 5, done.err
        assert "Every checkpoint of this run is damaged: step 15:" in done.err
        assert "Nothing was started from step 0." in done.err
    assert not again.run.model.exists()
    assert max(curve(again.run)) == KILLED_IN - 1, "nothing was trained"


@pytest.mark.parametrize("damage", [torn, empty, flipped])
def test_all_commits_damaged_is_an_error(again: Again, damage: Callable[[Path], None]) -> None:
    """If no commit file is whole, the attempt ends with 5 and changes nothing."""
    for path in commits(again.run):
        damage(path)
    before = files(again.run.state)
    done = again.start()
    assert done.code == 5
    assert "Every commit in" in done.err
    assert files(again.run.state) == before


def test_objects_without_commits_are_an_error(again: Again) -> None:
    """State whose commits are all gone is not "nothing there": exit 5."""
    shutil.rmtree(again.run.state / "commits")
    done = again.start()
    assert done.code == 5
    assert "its commits are gone" in done.err


def test_a_deleted_state_is_noticed(again: Again) -> None:
    """With the whole state deleted, the log still knows of a commit: exit 5 that names both, and
    nothing starts from step 0."""
    shutil.rmtree(again.run.state)
    done = again.start()
    assert done.code == 5
    assert "knows of a commit of step 15" in done.err
    assert "has none" in done.err
    assert not again.run.state.exists()


@pytest.mark.parametrize(("ends", "gone"), [("go", "state"), ("stop", "state"), ("stop", "")])
def test_a_state_that_is_deleted_while_it_trains_ends_the_run(
    tmp_path: Path, ends: str, gone: str
) -> None:
    """At its next save, or by a stop, also where the whole folder is gone: whoever deleted it hears
    what that means, and nobody is told that a step is safe."""
    project, stop = Project(tmp_path), StopFlag()
    project.trap("hold", call=7 * PER_STEP, committed=5)
    done: list[Done] = []
    life = threading.Thread(target=lambda: done.append(project.attempt(stop=stop)))
    life.start()
    until(lambda: (tmp_path / "held").exists(), "the hold")
    shutil.rmtree(project.run.path / gone)
    if ends == "stop":
        stop.set("somebody")
    else:
        (tmp_path / "go").touch()
    life.join()
    assert done[0].code == 4, done[0].err
    assert "somebody has deleted the state of the run tiny-" in done[0].err
    assert "start another run with --again" in done[0].err
    assert "goes on" not in done[0].err
    assert not any(tmp_path.glob("runs/*/state/commits/*"))


def test_a_store_that_is_newer_than_the_log_is_normal(again: Again, expected: str) -> None:
    """A kill between the commit and the log's note leaves the store newer; the run goes on."""
    (again.run.path / "committed.json").unlink()
    assert again.start().code == 0
    assert weights(again.run) == expected


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "committed.json"])
def test_the_log_files_never_stop_a_run(
    again: Again, expected: str, name: str, damage: Callable[[Path], None]
) -> None:
    """Whatever happens to the tracker's files, training goes on from the newest checkpoint to the
    same weights."""
    damage(again.run.path / name)
    done = again.start()
    assert done.code == 0, done.err
    assert "Going on from step 15." in done.err
    assert weights(again.run) == expected


def test_an_attempt_leaves_its_machines_when_it_was_told_to(
    again: Again, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By xrun's plugin in SkyPilot, as it asked for them: it saves and ends with 75, which is no
    fault of the run's; the next one ends with the weights of an undisturbed run. What is no time
    is not heard."""
    monkeypatch.setenv("XRUN_LEAVE_AT", "1")
    done = again.start()
    assert done.code == 75, done.err
    assert "left for other machines" in done.err
    last = record(again.run)["attempts"][-1]
    assert (last["kind"], last["reason"]) == ("stopped", "left for other machines")
    monkeypatch.setenv("XRUN_LEAVE_AT", "soon")
    assert again.start().code == 0
    assert weights(again.run) == expected


def test_the_same_command_on_a_finished_run_does_nothing(project: Project, tmp_path: Path) -> None:
    """A finished run started again exits 0, and no file of its state or its model is touched."""
    again = Again(project, tmp_path / "again")
    assert again.start().code == 0
    before = files(again.run.state) | files(again.run.model)
    done = again.start()
    assert done.code == 0
    assert "is finished; its model is in" in done.err
    assert files(again.run.state) | files(again.run.model) == before
    shutil.rmtree(again.run.model)
    done = again.start()
    assert done.code == 0
    assert f"its model was deleted from {again.run.model}. `xrun export-model" in done.err


def test_another_owners_run_is_refused(
    again: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that belongs to somebody else ends with 4, names both, and is not changed; the job's
    script hears that nothing has begun."""
    import dataclasses

    monkeypatch.setenv(environment.BEGUN.name, str(tmp_path / "begun"))
    before = files(again.run.state)
    done = attempt(dataclasses.replace(again.plan, owner="somebody-else"))
    assert done.code == 4
    assert "belongs to" in done.err
    assert "not to somebody-else" in done.err
    assert not (tmp_path / "begun").exists()
    assert files(again.run.state) == before


def test_other_mathematics_are_refused(again: Again) -> None:
    """A plan with another digest ends with 5 and leaves the run as it is."""
    import dataclasses

    before = files(again.run.state)
    done = attempt(dataclasses.replace(again.plan, digest="0" * 64))
    assert done.code == 5
    assert "another recipe" in done.err
    assert files(again.run.state) == before


def test_an_attempt_that_lost_its_lease_stops_and_changes_nothing(tmp_path: Path) -> None:
    """A zombie: once another attempt has the lease, the one before ends with 4, and the successor's
    state stays as it is."""
    project = Project(tmp_path)
    project.trap("hold", call=7 * PER_STEP, committed=5)
    seen: dict[str, Any] = {}

    def successor() -> None:
        until(lambda: (tmp_path / "held").exists(), "the hold")
        store = DirectoryStore(
            project.run.state, project.run.run, "successor", project.plan().owner
        )
        head = store.head()
        assert head is not None
        head = store.commit(head.record, head)
        file = store.put([b"the successor's"])
        seen["head"] = store.commit({**head.record, "note": {"copies": list(file.copies)}}, head)
        seen["files"] = files(project.run.state)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=successor)
    thread.start()
    done = project.attempt()
    thread.join()
    assert done.code == 4, done.err
    assert "was taken over by attempt successor" in done.err
    assert project.run.head() == seen["head"]
    after = files(project.run.state)
    assert {path: after.get(path) for path in seen["files"]} == seen["files"]
    assert not project.run.model.exists()


def test_an_attempt_that_wakes_before_it_logs_leaves_its_successors_log_alone(
    tmp_path: Path,
) -> None:
    """It has the lease and has looked at the store, and reads its data for so long that another
    attempt finishes the run: points, configuration and newest commit stay as they are."""
    project = Project(tmp_path)
    waits = """
    if (PROJECT / "wait").exists():
        (PROJECT / "wait").rename(PROJECT / "waiting")
        while not (PROJECT / "go").exists():
            time.sleep(0.01)
    return {"train":"""
    project.write("datasets/points.py", DATASET.replace('\n    return {"train":', waits))
    project.write("wait", "")
    ends: list[Done] = []
    thread = threading.Thread(target=lambda: ends.append(project.attempt()))
    thread.start()
    until((tmp_path / "waiting").exists, "the first attempt's data")
    done = project.attempt()
    assert done.code == 0, done.err
    names = ("metrics.jsonl", "config.json", "committed.json")
    left = {name: (project.run.path / name).read_bytes() for name in names}
    assert sorted(curve(project.run)) == list(range(1, STEPS + 1))
    project.write("go", "")
    thread.join()
    assert {name: (project.run.path / name).read_bytes() for name in names} == left
    assert ends[0].code == 4, ends[0].err
    assert "was taken over by attempt" in ends[0].err


def test_three_failures_without_a_commit_end_the_run(tmp_path: Path) -> None:
    """A process that always crashes: the third attempt without a commit ends with 7 and the reason;
    typed again the command gets its attempt, and mended it goes on."""
    project = Project(tmp_path)
    project.trap("SIGSEGV", call=2 * PER_STEP, stays=True, committed=0)
    codes = [project.attempt().code for _ in range(OWN_FAILURES + 1)]
    assert codes == [75, 75, 75, 7], "the first one has committed step 0"
    report = project.run.report().to_json()
    assert report["status"] == "failed"
    assert "rank 0 was ended by SIGSEGV" in reasons(report["attempts"])[-1]
    typed = replace(project.plan(), command="typed again")
    assert attempt(typed).code == 75
    (tmp_path / "trap.json").unlink()
    done = attempt(typed)
    assert done.code == 0, done.err


def test_a_crash_is_a_failure_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that ends by SIGSEGV counts as the run's own failure; one that ends by SIGKILL as
    ended from outside. The run was the attempt's, which the job's script hears; that nobody could
    write it down ends no attempt."""
    project = Project(tmp_path)
    for signal, kind, folder in (("SIGSEGV", "own", "."), ("SIGKILL", "outside", "nowhere")):
        begun = tmp_path / folder / f"{signal}.begun"
        monkeypatch.setenv(environment.BEGUN.name, str(begun))
        project.trap(signal, call=1, stays=True)
        assert project.attempt().code == 75
        last = record(project.run)["attempts"][-1]
        assert last["kind"] == kind
        assert last["reason"] == f"rank 0 was ended by {signal}."
        assert begun.exists() is (folder == ".")


def test_kills_are_not_failures(tmp_path: Path) -> None:
    """Four attempts in a row that are killed before any new commit still ask to come back."""
    project = Project(tmp_path)
    for _ in range(OWN_FAILURES + 1):
        project.trap("SIGKILL", call=2)
        assert project.attempt().code == 75


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        ("raise ValueError('no such thing')", "build() failed: ValueError: no such thing"),
        ("return 3", "build() must return"),
        ("return {'val': []}", "build() must return"),
        ("import no_such_library_here", "no_such_library_here"),
        ("return {'train': []}", "the split 'train' is empty"),
    ],
)
def test_a_wrong_dataset_is_the_persons(tmp_path: Path, build: str, sentence: str) -> None:
    """A dataset component that fails or returns the wrong thing ends with 2 and one sentence that
    names its file."""
    project = Project(tmp_path)
    project.write("datasets/points.py", f"def build():\n    {build}\n")
    done = project.attempt()
    assert done.code == 2, done.err
    assert "datasets/points.py" in done.err
    assert sentence in done.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "def build():\n    raise ValueError('no such thing')\n",
            "build() failed: ValueError: no such thing",
        ),
        ("def build():\n    return 3\n", "build() must return a torch.nn.Module (got int)"),
        (
            "import no_such_library_here\n\n\ndef build():\n    return None\n",
            "no_such_library_here",
        ),
    ],
)
def test_a_wrong_model_is_the_persons(tmp_path: Path, text: str, sentence: str) -> None:
    """A model component that fails or returns the wrong thing ends with 2 and one sentence that
    names its file."""
    project = Project(tmp_path)
    project.write("models/line.py", text)
    done = project.attempt()
    assert done.code == 2, done.err
    assert "models/line.py" in done.err
    assert sentence in done.err


def test_a_killed_rank_ends_the_attempt(tmp_path: Path, expected: str) -> None:
    """When one rank of two is killed, the attempt ends, asks to come back, and records that it was
    ended from outside."""
    project = Project(tmp_path)
    project.trap("SIGKILL", call=8 * PER_STEP // 2, rank=1)
    done = project.attempt(processes=2)
    assert done.code == 75, done.err
    assert record(project.run)["attempts"][-1]["kind"] == "outside"
    assert "rank 1 was ended by SIGKILL" in done.err


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([1, 75], 75),
        ([75, 6], 6),
        ([-9, 0], 75),
        ([-11, 2], 2),
        ([5, 75, 0], 5),
    ],
)
def test_the_gravest_code_counts(codes: list[int], code: int) -> None:
    """A known refusal of any rank is the attempt's; 1 and signals ask to come back."""
    assert gravest(codes) == code


def failed(code: int | None, time: float, end: AttemptEnd = AttemptEnd.OWN) -> Outcome:
    """How a rank has ended that failed."""
    return Outcome(code or 75, Failure(f"at {time:g}", end, code, time=time))


@pytest.mark.parametrize(
    ("outcomes", "code", "cause"),
    [
        ([failed(1, 2.0), failed(1, 1.0), failed(6, 3.0)], 6, "at 3"),
        ([failed(1, 2.0), failed(1, 1.0)], 75, "at 1"),
        ([failed(1, 1.0), failed(None, 0.0, AttemptEnd.OUTSIDE)], 75, "at 0"),
        ([failed(75, 1.0, AttemptEnd.OUTSIDE), failed(1, 2.0)], 75, "at 2"),
        ([failed(1, 2.0), Outcome(75)], 75, "at 2"),
        ([Outcome(0), Outcome(75)], 75, None),
    ],
)
def test_the_first_failure_is_the_cause(
    outcomes: list[Outcome], code: int, cause: str | None
) -> None:
    """The failure with the attempt's code counts, then a process that was taken away, then the
    earliest; what only noticed another one's end, or was ended for it, comes last."""
    found = gravest_of(outcomes)
    assert (found.code, found.failure and found.failure.message) == (code, cause)


@pytest.mark.parametrize("code", [0, 2, 3, 7, 75, 1])
def test_an_exit_code_without_a_word_means_nothing(code: int) -> None:
    """A rank that ends and says nothing was ended by a component or a library, whatever the
    code."""
    failure = silent_end(0, code)
    assert (failure.code, failure.end) == (1, AttemptEnd.OWN)
    assert f"exit code {code}" in failure.message


@pytest.mark.parametrize(
    "leave",
    [
        "sys.exit(0)",
        "sys.exit(3)",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "os._exit(0)",
        "os._exit(5)",
        "os._exit(75)",
    ],
)
def test_a_component_that_leaves_has_not_finished(tmp_path: Path, leave: str) -> None:
    """`sys.exit` or `os._exit` in a step: the attempt ends neither as finished nor with the
    component's code, and no model is there; what was committed stays."""
    project = Project(tmp_path)
    text = LEAVES.replace("LEAVE", leave).replace("RUNS", str(project.home))
    project.write("models/line.py", text)
    done = project.attempt("checkpoint.every=100 steps")
    assert done.code == (75 if leave.startswith("os") else 2), done.err
    assert "Traceback" not in done.err
    last = record(project.run)["attempts"][-1]
    assert (last["code"], last["kind"]) == (done.code, "own")
    assert leave.replace("os.", "").split()[-1].partition("(")[0] in done.err
    assert "finished" not in record(project.run)
    assert not project.run.model.exists()
    assert steps_of(project.run) == [0]


LEAVES = (
    MODEL.replace("from torch", "import os, sys\nfrom pathlib import Path\n\nfrom torch")
    .replace(
        "    return",
        """
    class Leaves(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            if self.calls > 8 * 4:
                while not is_saved():  # `os._exit` would end the first save
                    pass
                LEAVE
            return x

    def is_saved():
        texts = (path.read_text() for path in Path("RUNS").glob("*/state/commits/*.json"))
        return any('"checkpoints":[{' in text for text in texts)

    return""",
    )
    .replace("nn.Sequential(", "nn.Sequential(\n        Leaves(),", 1)
)


@pytest.mark.parametrize("leave", ["sys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("at_import", [True, False])
def test_a_component_that_leaves_while_it_is_built_is_wrong(
    tmp_path: Path, leave: str, at_import: bool
) -> None:
    """argparse at the top of a copied script, or `sys.exit` in `build`: exit 2 and the file's
    name."""
    project = Project(tmp_path)
    text = f"{leave}\n{MODEL}" if at_import else f"def build():\n    {leave}\n"
    project.write("models/line.py", f"import sys\n\n{text}")
    done = project.attempt()
    assert done.code == 2, done.err
    assert "models/line.py" in done.err
    assert ("KeyboardInterrupt" if "Keyboard" in leave else "SystemExit") in done.err
    assert "Traceback" not in done.err


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file: when it was written and what is in it."""
    return {
        str(path.relative_to(folder.parent)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("end-")
    }


def test_a_store_that_does_not_answer_is_no_end_of_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for half an hour before the attempt begins, which then comes back."""
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "XRUN_BUCKET_PATIENCE": "0"}
    for name, value in {**nobody, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    plan, clock, said = project.plan("checkpoint.store=s3://nobody/runs"), Clock(), list[str]()
    asked = Witnesses(plan, open_store(plan, "a1"), StopFlag(), said.append, clock, clock.sleep)
    began = clock()
    with pytest.raises(StoreUnavailable) as refused:
        asked.head()
    assert refused.value.exit_code == EX_TEMPFAIL
    assert "Nothing was started, since nobody can tell" in refused.value.hint
    assert 1700 < clock() - began <= 1800
    assert said[-1].endswith("Asking again.")
