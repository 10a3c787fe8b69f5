"""The loopback W&B: the real client begins, resumes, is killed, goes offline and is refused, and
nothing is lost or invented.

Covers `loopback.wandb_filters`, `loopback.wandb_operations` and `loopback.wandb_runs`.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from loopback.wandb import Wandb

CLIENT = """\
import json, os, sys, time
import wandb

QUICK = dict(
    x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, console="off",
    disable_git=True, disable_code=True, x_save_requirements=False,
    x_file_stream_transmit_interval=1, x_file_stream_retry_wait_min_seconds=1,
    x_file_stream_retry_wait_max_seconds=1,
)  # whole seconds: the client cuts fractions off, and takes its slow default for what is left

def init(run, settings={}, **more):
    return wandb.init(project="p", id=run, settings=wandb.Settings(**QUICK, **settings), **more)

def error(call, *args, **more):
    try:
        return call(*args, **more) and ""
    except Exception as e:
        return f"{type(e).__name__}: {e}"

"""
"""What every client process begins with."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wandb]:
    """One server for all tests of this file; every test has runs of its own."""
    with Wandb(tmp_path_factory.mktemp("wandb"), teams={"lab": {"alice"}}) as server:
        yield server
        assert server.unknown == []


def started(
    server: Wandb, folder: Path, code: str, user: str = "alice", **environment: str
) -> subprocess.Popen[str]:
    """The real client as a process of its own, with a HOME of its own."""
    own = {"HOME": str(folder), "WANDB_DIR": str(folder), "PATH": os.environ["PATH"]}
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    command = [sys.executable, "-c", CLIENT + code]
    return subprocess.Popen(
        command, env={**own, **server.environ(user), **environment}, cwd=folder, **pipes
    )


def ended(process: subprocess.Popen[str]) -> Any:
    """What it printed last, as JSON."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]) if out else None


def client(server: Wandb, folder: Path, code: str, user: str = "alice", **environment: str) -> Any:
    """Run a client to its end."""
    return ended(started(server, folder, code, user, **environment))


def wait(condition: Callable[[], Any]) -> None:
    """Until the condition holds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def steps(server: Wandb, run: str) -> list[int]:
    """The steps of the rows that the server has."""
    return [row["_step"] for row in server.history("alice", "p", run)]


@pytest.fixture(scope="module")
def stopping(
    server: Wandb, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    """A client that logs until somebody stops it: it looks every 15 s only, so it is begun before
    all else."""
    code = """
import signal
asked = []
# As an exception it could be lost in somebody's destructor.
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
run = init("stopped")
print("begun", flush=True)
while not asked:
    run.log({"a": 1})
    time.sleep(0.1)
run.finish(exit_code=255)
print("true")
"""
    with started(server, tmp_path_factory.mktemp("stopped"), code) as process:
        yield process
        process.kill()


def test_a_run_is_resumed_by_another_process_and_read_back(
    server: Wandb, stopping: subprocess.Popen[str], tmp_path: Path
) -> None:
    """What one process logged, another one finds, goes on from, and reads back through the public
    API."""
    assert stopping.stdout.readline() == "begun\n"
    server.stop("alice", "p", "stopped")
    (tmp_path / "x.txt").write_text("hello")
    first = """
config = {"lr": 0.1, "nested": {"a": [1, 2]}}
run = init("both", resume="allow", config=config, tags=["one"], name="shown")
for i in range(10):
    run.log({"train/loss": 1 / (i + 1), "odd": float("nan")}, step=i)
run.summary["best"] = 0.1
run.save("x.txt")
run.finish()
print(json.dumps([run.resumed, run.starting_step]))
"""
    assert client(server, tmp_path, first) == [False, 0]
    assert server.runs("alice", "p") == ["stopped", "both"]
    assert server.config("alice", "p", "both") == {"lr": 0.1, "nested": {"a": [1, 2]}}
    assert server.summary("alice", "p", "both")["best"] == 0.1
    assert server.state("alice", "p", "both") == "finished"

    second = """
run = init("both", resume="allow", config={"lr": 0.1})
assert (run.resumed, run.starting_step) == (True, 10)
assert (run.config["nested"], run.summary["best"]) == ({"a": [1, 2]}, 0.1)
for i in range(8, 13):
    run.log({"train/loss": 100 + i}, step=i)
run.finish()

api = wandb.Api()
run = api.run("alice/p/both")
rows = list(run.scan_history())
assert [row["_step"] for row in rows] == list(range(13)), rows
assert rows[8]["train/loss"] < 1 and rows[12]["train/loss"] == 112, rows
late = run.scan_history(keys=["train/loss"], min_step=10)
assert [row["train/loss"] for row in late] == [110, 111, 112]
assert len(run.history(pandas=False)) == len(run.history(keys=["train/loss"], pandas=False)) == 13
assert run.lastHistoryStep == 12
assert (run.state, run.name, run.tags) == ("finished", "shown", ["one"])
assert (run.config["lr"], run.summary["best"]) == (0.1, 0.1)
assert run.file("x.txt").download(root="copy").read() == "hello"
found = api.runs("alice/p", filters={"config.lr": 0.1, "state": "finished"})
assert [run.id for run in found] == ["both"]
assert (api.viewer.username, api.viewer.teams, api.default_entity) == ("alice", ["lab"], "alice")
assert [project.name for project in api.projects("alice")] == ["p"]
run.config["extra"] = 1
run.update()
run.summary["note"] = 7
run.summary.update()
again = wandb.Api().run("alice/p/both")
print(json.dumps([again.config["extra"], again.summary["note"], again.state]))
"""
    assert client(server, tmp_path, second) == [1, 7, "finished"]


def test_a_killed_run_goes_on_where_the_server_is(server: Wandb, tmp_path: Path) -> None:
    """SIGKILL tells the server nothing; a resume begins after the last row that has arrived,
    whatever was logged."""
    code = """
run = init("killed", resume="allow")
for i in range(10**6):
    run.log({"a": i}, step=i)
    time.sleep(0.02)
"""
    process = started(server, tmp_path, code)
    wait(lambda: "killed" in server.runs("alice", "p") and steps(server, "killed"))
    process.kill()
    process.communicate()
    assert server.state("alice", "p", "killed") == "running"

    more = """
run = init("killed", resume="must")
begun = run.starting_step
run.log({"a": -1}, step=begun)
run.finish()
print(begun)
"""
    begun = client(server, tmp_path, more)
    assert begun > 1
    assert steps(server, "killed") == list(range(begun + 1))
    assert server.state("alice", "p", "killed") == "finished"


def test_an_outage_loses_no_row_and_doubles_none(server: Wandb, tmp_path: Path) -> None:
    """The client tries again after a 503, also when the rows had been stored and only the answer
    was lost."""
    refused = server.faults.add("outage/file_stream", status=503, skip=1)
    lost = server.faults.add("outage/file_stream", status=503, when="after")
    slow = server.faults.add("UpsertBucket", stall=0.3)
    code = """
run = init("outage")
for i in range(5):
    run.log({"a": i})
run.finish()
"""
    client(server, tmp_path, code)
    assert (refused.hits, lost.hits, slow.hits) == (1, 1, 1)
    assert steps(server, "outage") == list(range(5))


def test_a_key_that_is_revoked_in_mid_run_ends_neither_the_script_nor_the_run(
    server: Wandb, tmp_path: Path
) -> None:
    """The client gives up at the first 401, says nothing, and finishes at once; the server keeps
    what it has."""
    code = """
run = init("revoked")
run.log({"a": 0})
print("begun", flush=True)
sys.stdin.readline()
run.log({"a": 1})
run.finish()
print("true")
"""
    process = started(server, tmp_path, code)
    wait(lambda: "revoked" in server.runs("alice", "p") and steps(server, "revoked"))
    server.faults.add("revoked/file_stream", status=401, times=None)
    try:
        assert ended(process) is True
    finally:
        server.faults.clear()
    assert steps(server, "revoked") == [0]
    assert server.state("alice", "p", "revoked") == "running"


def test_a_preemption_that_was_announced_is_shown_as_one(server: Wandb, tmp_path: Path) -> None:
    """preempting once it is announced, preempted with an exit code, running and finished when it
    came back."""
    code = """
run = init("moved", resume="allow")
run.mark_preempting()
run.finish(exit_code=1)
left = wandb.Api().run("alice/p/moved").state
run = init("moved", resume="allow")
back = wandb.Api().run("alice/p/moved").state
run.finish()
print(json.dumps([left, back]))
"""
    assert client(server, tmp_path, code) == ["preempted", "running"]
    assert server.state("alice", "p", "moved") == "finished"


def test_a_deleted_id_can_never_be_used_again(server: Wandb, tmp_path: Path) -> None:
    """The public API says so at once. `init` tries again until its timeout, and its process may not
    end before it is ended."""
    code = """
init("deleted").finish()
wandb.Api().run("alice/p/deleted").delete()
gone = error(wandb.Api().run, "alice/p/deleted")
created = error(wandb.Api().create_run, run_id="deleted", project="p", entity="alice")
begun = error(init, "deleted", settings={"init_timeout": 2}, resume="allow")
print(json.dumps([gone, created, begun]), flush=True)
os._exit(0)
"""
    gone, created, begun = client(server, tmp_path, code)
    assert "Could not find run" in gone
    assert "409" in created or "previously created and deleted" in created
    assert begun.startswith("CommError: ")
    assert "imed out" in begun
    assert "deleted" not in server.runs("alice", "p")


def test_keys_and_entities_are_refused_as_the_service_refuses_them(
    server: Wandb, tmp_path: Path
) -> None:
    """A key of nobody is told so; a user sees the own runs and those of the teams, and nobody
    else's."""
    (tmp_path / "bob").mkdir()
    (tmp_path / "nobody").mkdir()
    wrong = """
print(json.dumps([error(wandb.Api), error(init, "wrong")]))
"""
    bob = """
api = wandb.Api()
foreign = [error(api.run, "lab/p/shared")]
foreign += [error(init, "b", entity="lab"), error(init, "c", entity="who")]
init("own").finish()
print(json.dumps(foreign + [api.run("bob/p/own").state]))
"""
    client(server, tmp_path, "init('shared', entity='lab').finish()")
    processes = [
        started(server, tmp_path / "nobody", wrong, WANDB_API_KEY="0" * 40),
        started(server, tmp_path / "bob", bob, user="bob"),
    ]
    verified, begun = ended(processes[0])
    assert verified.startswith("AuthenticationError")
    assert begun == "CommError: user is not logged in"
    unseen, foreign, unknown, own = ended(processes[1])
    assert "Could not find run" in unseen
    assert foreign == "CommError: permission denied"
    assert unknown == "CommError: entity who not found during upsertBucket"
    assert own == "finished"
    assert server.state("lab", "p", "shared") == "finished"


def test_an_offline_run_is_synced_afterwards(server: Wandb, tmp_path: Path) -> None:
    """`wandb sync` sends the rows and the configuration of a run that never had a server."""
    code = """
import subprocess
run = init("offline", mode="offline", config={"o": 1})
for i in range(5):
    run.log({"a": i})
folder = run.settings.sync_dir
run.finish()
command = [sys.executable, "-m", "wandb", "sync", folder]
synced = subprocess.run(command, capture_output=True, text=True)
assert synced.returncode == 0, synced.stderr
"""
    client(server, tmp_path, code)
    assert steps(server, "offline") == list(range(5))
    assert server.config("alice", "p", "offline") == {"o": 1}
    assert server.state("alice", "p", "offline") == "finished"


def test_the_stop_button_reaches_the_script(server: Wandb, stopping: subprocess.Popen[str]) -> None:
    """A stop that is asked for on the page is a SIGINT in the client, and the run has been
    killed."""
    assert ended(stopping) is True
    assert server.state("alice", "p", "stopped") == "killed"


# Without the client: what it does not do every day.


class Wire:
    """Requests as alice's client sends them, about her run `r`."""

    def __init__(self, server: Wandb) -> None:
        self.server, self.key = server, server.environ("alice")["WANDB_API_KEY"]

    def post(self, path: str, body: Any, compressed: bool = False) -> tuple[int, Any]:
        """Post JSON; return the status and what is answered."""
        data = json.dumps(body).encode()
        headers = {"Authorization": "Basic " + b64encode(f"api:{self.key}".encode()).decode()}
        if compressed:
            data, headers["Content-Encoding"] = gzip.compress(data), "gzip"
        connection = HTTPConnection("127.0.0.1", self.server.port)
        with closing(connection):
            connection.request("POST", path, data, headers)
            answer = connection.getresponse()
            return answer.status, json.load(answer)

    def upsert(self, run: str, project: str = "p") -> tuple[int, Any]:
        document = (
            "mutation UpsertBucket($name: String, $commit: String) { upsertBucket(input: {name:"
            " $name}) { inserted } }"
        )
        return self.post(
            "/graphql",
            {"query": document, "variables": {"name": run, "project": project, "program": "x"}},
        )

    def send(
        self, *rows: dict[str, Any], offset: int = 0, compressed: bool = False, **more: Any
    ) -> tuple[int, Any]:
        chunk = {"offset": offset, "content": [json.dumps(row) for row in rows]}
        files = {"wandb-history.jsonl": chunk} if rows else {}
        return self.post("/files/alice/p/r/file_stream", {"files": files, **more}, compressed)

    def line_count(self) -> Any:
        query = "query RunResumeStatus($name: String!) { model { bucket { historyLineCount } } }"
        _, answer = self.post(
            "/graphql", {"query": query, "variables": {"name": "r", "project": "p"}}
        )
        return answer["data"]["model"]["bucket"]["historyLineCount"]


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wandb(tmp_path / "wandb") as server:
        wire = Wire(server)
        wire.upsert("r")
        yield wire


def test_lines_replace_those_from_their_offset_on_and_a_gap_is_refused(wire: Wire) -> None:
    """Sent again they change nothing, sent differently they win; a lost request can not go
    unnoticed."""
    for compressed in (False, True):
        assert wire.send({"a": 0}, {"a": 1}, {"a": 2}, compressed=compressed)[0] == 200
    wire.send({"a": 10}, offset=1)
    status, answer = wire.send({"a": 5}, offset=5)
    assert wire.server.history("alice", "p", "r") == [{"a": 0}, {"a": 10}, {"a": 2}]
    assert (status, "3 lines" in answer["error"]) == (400, True)


def test_states_follow_what_was_told_and_how_long_ago(wire: Wire) -> None:
    """Five silent minutes are a crash, or a preemption if one was announced; a sign of life takes
    that back."""
    now = time.time()

    def state(later: float) -> str:
        wire.server.clock = lambda: now + later
        return wire.server.state("alice", "p", "r")

    assert [state(0), state(290), state(400)] == ["running", "running", "crashed"]
    wire.send()
    assert state(401) == "running"
    wire.send(preempting=True)
    assert [state(402), state(800)] == ["preempting", "preempted"]
    wire.upsert("r")
    assert state(801) == "running"
    wire.send(complete=True, exitcode=1)
    assert state(9000) == "failed"


def test_what_is_not_here_or_not_allowed_is_refused_by_name(wire: Wire) -> None:
    """An unknown operation is recorded, a read-only project takes nothing, a wrong key is
    nobody's."""
    status, answer = wire.post("/graphql", {"query": "query Everything { everything { id } }"})
    assert (status, answer["errors"][0]["message"]) == (400, "UNKNOWN operation Everything")
    assert wire.server.unknown == ["Everything"]
    wire.server.read_only.add("alice/frozen")
    status, answer = wire.upsert("r", project="frozen")
    assert (status, answer["errors"][0]["message"], answer["data"]) == (
        403,
        "permission denied",
        {"upsertBucket": None},
    )
    wire.key = "0" * 40
    assert wire.send({"a": 1})[0] == wire.upsert("r")[0] == 401


def test_a_stale_read_is_one_change_behind(wire: Wire) -> None:
    """A replica that lags: the row is stored, and the next question does not see it."""
    wire.send({"a": 0})
    wire.server.faults.add("RunResumeStatus", stale=True)
    assert [wire.line_count(), wire.line_count()] == [0, 1]


def test_everything_outlives_the_server(wire: Wire, tmp_path: Path) -> None:
    """A second server on the same folder has the runs, and remembers which ids are gone."""
    wire.send({"a": 0}, complete=True, exitcode=0)
    wire.upsert("gone")
    wire.server.delete("alice", "p", "gone")
    with Wandb(tmp_path / "wandb") as again:
        assert again.runs("alice", "p") == ["r"]
        assert again.history("alice", "p", "r") == [{"a": 0}]
        assert again.state("alice", "p", "r") == "finished"
        assert Wire(again).upsert("gone")[0] == 409
