"""Attempts on several nodes: an entrypoint per node in a thread, real ranks, real connections on
loopback."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.buckets import moto
from support.running import (
    MODEL,
    PER_STEP,
    STEPS,
    Done,
    Project,
    WarmAttempt,
    attempt,
    curve,
    record,
    until,
    weights,
)
from xrun.errors import EX_TEMPFAIL
from xrun.machine.nodes import Nodes
from xrun.machine.stop import StopFlag
from xrun.run import logs
from xrun.run.folder import RunFolder
from xrun.run.opened import open_run
from xrun.run.plan import Plan
from xrun.supervisor.ranks import free_port

ADDRESSES = ("127.0.0.1", "127.0.0.2")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose runs meet at a port of their own."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        monkeypatch.setenv("XRUN_PORT", str(probe.getsockname()[1]))
    return Project(tmp_path)


class Cluster:
    """Two nodes; `stops` are their stop flags, `order` is in which order they have ended."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.stops = [StopFlag(), StopFlag()]
        self.done: dict[int, Done] = {}
        self.order: list[int] = []
        self.apart = False
        """Whether the second node has a disk of its own."""

    def run(
        self,
        late: float = 0.0,
        meanwhile: Callable[[], None] = lambda: None,
        plan: Plan | None = None,
    ) -> list[Done]:
        """An attempt; the second node comes `late` seconds after the first one."""
        plan = plan or self.project.plan()
        threads = [
            threading.Thread(target=self._node, args=(rank, plan, late * rank)) for rank in range(2)
        ]
        for thread in threads:
            thread.start()
        meanwhile()
        for thread in threads:
            thread.join()
        return [self.done[rank] for rank in range(2)]

    def _node(self, rank: int, plan: Plan, late: float) -> None:
        time.sleep(late)
        if self.apart and rank:
            plan = dataclasses.replace(plan, home=f"{plan.home}-{rank}")
        self.done[rank] = attempt(plan, self.stops[rank], Nodes(rank, ADDRESSES, 1))
        self.order.append(rank)


def codes(done: list[Done]) -> list[int]:
    return [one.code for one in done]


def test_two_nodes_train_like_one(project: Project, tmp_path: Path) -> None:
    """Two nodes with a process each end with the bits of one node with two; a finished run ends on
    both with 0."""
    done = Cluster(project).run(late=0.5)
    assert codes(done) == [0, 0], done
    assert record(project.run)["attempts"][-1]["nodes"] == 2
    assert max(curve(project.run)) == STEPS
    assert "This is node 1 (127.0.0.2); node 0 (127.0.0.1) leads." in done[1].err
    one = Project(tmp_path / "one")
    assert one.attempt(processes=2).code == 0
    assert weights(one.run) == weights(project.run)
    again = Cluster(project).run(late=0.5)
    assert codes(again) == [0, 0]
    assert "is finished" in again[0].err


def test_two_nodes_go_on(project: Project, tmp_path: Path) -> None:
    """A killed run goes on from its newest checkpoint on both nodes, to the bits of an undisturbed
    one."""
    project.trap("SIGKILL", call=11 * PER_STEP // 2 + 1, rank=1, committed=5)
    assert codes(Cluster(project).run()) == [75, 0]
    done = Cluster(project).run()
    assert codes(done) == [0, 0], done
    assert "Going on from step" in done[0].err
    one = Project(tmp_path / "one")
    assert one.attempt(processes=2).code == 0
    assert weights(one.run) == weights(project.run)


@pytest.mark.parametrize("node", [0, 1])
def test_a_stop_on_any_node_stops_all(project: Project, node: int) -> None:
    """Whichever node is asked: all save the same step, node 0 ends with 75, and the record has that
    node's reason and no failure."""
    project.trap("hold", call=7 * PER_STEP // 2 + 1, committed=5)
    cluster = Cluster(project)

    def ask() -> None:
        until((project.root / "held").exists, "the hold")
        cluster.stops[node].set("the cloud's notice", 20, at_once=True)

    done = cluster.run(meanwhile=ask)
    assert codes(done) == [75, 0], done
    last = record(project.run)["attempts"][-1]
    assert (last["kind"], last["reason"]) == ("stopped", "the cloud's notice")
    assert last["committed"] == max(curve(project.run)) == 8


def test_a_failure_on_another_node_is_the_attempts(project: Project) -> None:
    """A component that fails on node 1 only, twice at one step: both end, and the record says what
    failed and not that a peer was lost."""
    project.trap("raise", call=7 * PER_STEP // 2 + 1, rank=1, stays=True)
    done = Cluster(project).run(plan=project.plan("checkpoint.every=100 steps"))
    assert done[0].code == 2, done
    last = record(project.run)["attempts"][-1]
    assert last["kind"] == "own"
    assert last["reason"].startswith("RuntimeError: the component is broken (datasets/points.py:")


def test_a_failure_by_chance_on_another_node_costs_no_machine(project: Project) -> None:
    """A component that fails on node 1 once: all nodes start their processes again and finish."""
    project.trap("raise", call=7 * PER_STEP // 2 + 1, rank=1)
    assert codes(Cluster(project).run()) == [0, 0]
    assert len(record(project.run)["attempts"]) == 1


def test_a_refusal_on_another_node_ends_all(project: Project) -> None:
    """What a person has to mend on node 1 ends both, and node 0 has its code, and what node 1 has
    printed on a disk of its own."""
    model = (project.root / "models" / "line.py").read_text()
    project.write(
        "models/line.py",
        model + '\n\nimport os\nif os.environ.get("RANK") == "1":\n    raise ValueError("no")\n',
    )
    cluster = Cluster(project)
    cluster.apart = True
    done = cluster.run()
    assert cluster.order == [1, 0], "node 0 ends last: its code is the job's"
    assert codes(done) == [2, 0], done
    assert "models/line.py" in done[0].err
    assert "ValueError: no" in project.run.log_text(1, 1)


def test_every_nodes_log_can_be_read_from_the_address(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that has ended well, whose nodes have disks of their own that are gone."""
    with moto() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        store = f"{server.make('logs')}/runs"
        project.write("models/line.py", f"{MODEL}\nimport os\nprint('I am', os.environ['RANK'])\n")
        cluster = Cluster(project)
        cluster.apart = True
        done = cluster.run(plan=project.plan(f"checkpoint.store={store}"))
        assert codes(done) == [0, 0], done
        for home in (project.home, Path(f"{project.home}-1")):
            shutil.rmtree(home)
        run = open_run(f"{store}/{project.plan().run}")
        for rank in range(2):
            text = run.log_text(rank=rank)
            assert text.startswith(f'Attempt "{run.record.attempts[0].id}", process {rank}')
            assert f"I am {rank}" in text


def test_a_node_that_is_killed_is_lost(project: Project) -> None:
    """A rank of node 1 that is killed: both end, node 0 with 75, ended from outside."""
    project.trap("SIGKILL", call=7 * PER_STEP // 2 + 1, rank=1)
    done = Cluster(project).run()
    assert codes(done) == [75, 0], done
    last = record(project.run)["attempts"][-1]
    assert (last["kind"], last["reason"]) == ("outside", "rank 1 was ended by SIGKILL.")


def test_another_nodes_refused_start_ends_all(project: Project) -> None:
    """When node 0 refuses to start, the other ends instead of waiting for it."""
    assert project.attempt("train.steps=5", processes=2).code == 0
    done = Cluster(project).run(late=0.3, plan=dataclasses.replace(project.plan(), digest="0" * 64))
    assert codes(done) == [5, 0], done


def test_without_node_0s_word_the_attempt_comes_back(project: Project) -> None:
    """Node 0 is gone before it has recorded an end: a refusal that only node 1 knows of is not the
    end of the run."""
    plan = project.plan()
    node0 = WarmAttempt(plan, StopFlag(), Nodes(0, ADDRESSES, 1))
    done: list[Done] = []
    nodes = Nodes(1, ADDRESSES, 1)
    thread = threading.Thread(target=lambda: done.append(attempt(plan, StopFlag(), nodes)))
    thread.start()
    assert node0.peers.gather(lambda: False) == []
    port, there = free_port(), RunFolder(plan.folder).logs("a1")
    there.mkdir(parents=True)
    (there / "rank1.log").write_text("so far")
    node0.peers.tell("start", attempt="a1", port=port, parts=0)
    node0._start("a1", port, 0).wait(lambda: None)
    printed, ended = node0.peers.wait(60), node0.peers.wait(60)
    assert printed is not None, "what a node prints is told while it lives"
    assert (printed["kind"], printed["printed"]) == ("printed", {"1": "so far"})
    node0.folder.logs(node0.id).mkdir()
    node0._hear(printed, None)
    assert logs.here(node0.folder.logs(node0.id), 1) == "so far"
    assert ended is not None
    assert (ended["kind"], ended["code"]) == ("ended", 4), "nobody has taken the lease"
    for line in node0.peers.lines.values():
        line.close()
    thread.join()
    node0.peers.close(0)
    assert codes(done) == [EX_TEMPFAIL]
