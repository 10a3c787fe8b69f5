"""Entrypoints of several nodes on loopback, over real connections."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.running import until
from xrun.errors import CloudUnavailable
from xrun.machine.nodes import Nodes
from xrun.supervisor.rendezvous import Follower, Leader

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
with socket.create_server(("127.0.0.1", 0)) as _probe:
    PORT = _probe.getsockname()[1]


def never() -> bool:
    return False


def node(rank: int) -> Nodes:
    return Nodes(rank, ADDRESSES)


@pytest.fixture
def leader() -> Iterator[Leader]:
    """Node 0 of three."""
    one = Leader(node(0), "run", PORT)
    yield one
    one.close(75)


def follow(rank: int, key: str = "run") -> Follower:
    one = Follower(node(rank), key, PORT)
    one.meet(never, 30)
    return one


def heard(one: Leader | Follower) -> Any:
    return one.wait(30)


def test_the_nodes_hear_each_other(leader: Leader) -> None:
    """What node 0 says reaches every node, what another says reaches node 0, which knows from whom
    it is."""
    first, second = follow(1), follow(2)
    assert leader.gather(never, 30) == []
    leader.tell("start", port=1234)
    assert heard(first) == heard(second) == {"kind": "start", "port": 1234, "node": 0}
    second.tell("stop", reason="notice", seconds=3.5)
    assert heard(leader) == {"kind": "stop", "reason": "notice", "seconds": 3.5, "node": 2}
    leader.close(7)
    assert heard(first) == heard(second) == {"kind": "end", "code": 7, "node": 0}


def test_node_0_hangs_up_last(leader: Leader) -> None:
    """When every other node has, or after the time that it gives them."""
    first, second = follow(1), follow(2)
    assert leader.gather(never, 30) == []
    closing = threading.Thread(target=leader.close, args=(7, 60))
    closing.start()
    assert [heard(one)["code"] for one in (first, second)] == [7, 7]
    first.close()
    assert closing.is_alive()
    second.close()
    closing.join(30)
    assert not closing.is_alive()


def test_node_0_does_not_wait_for_ever(leader: Leader) -> None:
    stays = follow(1)
    until(lambda: leader.lines, "the other node")
    leader.gather(lambda: True)
    leader.close(7, 0.2)
    assert [heard(stays)["kind"] for _ in range(2)] == ["end", "lost"]


def test_a_slow_node_is_waited_for() -> None:
    """A node that is there before node 0 asks until that comes, and node 0 waits for the others."""
    early: list[Follower] = []
    thread = threading.Thread(target=lambda: early.append(follow(1)))
    thread.start()
    leader = Leader(node(0), "run", PORT)
    late = threading.Timer(0.3, lambda: early.append(follow(2)))
    late.start()
    assert leader.gather(never, 30) == []
    thread.join()
    late.join()
    leader.close(0)
    assert [heard(one)["code"] for one in early] == [0, 0]


def test_a_node_that_does_not_come_is_named(leader: Leader) -> None:
    """Node 0 knows who is missing; a node whose first one is missing says so."""
    follow(2)
    until(lambda: leader.lines, "the other node")
    assert leader.gather(never, 0.2) == ["node 1 (127.0.0.2)"]
    assert leader.gather(lambda: True, 600) == ["node 1 (127.0.0.2)"]
    with pytest.raises(CloudUnavailable, match=r"node 0 \(127.0.0.1\) cannot be reached"):
        Follower(node(1), "run", 9).meet(never, 0)


def test_a_node_that_is_started_again_takes_its_place(leader: Leader) -> None:
    """Before the attempt begins that is no loss, whether its first life has ended or only seems to
    live."""
    follow(1).close()
    abandoned, again, second = follow(1), follow(1), follow(2)
    assert leader.gather(never, 30) == []
    leader.tell("start")
    assert [heard(again)["kind"], heard(second)["kind"], heard(abandoned)["kind"]] == [
        "start",
        "start",
        "lost",
    ]
    assert leader.heard() == []


def hello(life: int, rank: int = 1) -> socket.socket:
    """A life of a node that has connected and said its number."""
    connection = socket.create_connection((ADDRESSES[0], PORT))
    connection.settimeout(30)
    told = {"kind": "hello", "key": "run", "node": rank, "life": life}
    connection.sendall(json.dumps(told).encode() + b"\n")
    return connection


def test_connections_that_arrive_in_the_other_order(leader: Leader) -> None:
    """The earlier life's connection comes late: it is sent away, and the later life keeps the
    place; in the right order the later one takes it."""
    with hello(2) as later:
        until(lambda: leader.lines, "the later life")
        with hello(1) as earlier:
            assert earlier.recv(100) == b"", "sent away without a word"
        leader.tell("start")
        assert json.loads(later.recv(100)) == {"kind": "start"}
        assert leader.lines[1].life == 2
        with hello(3) as third:
            assert later.recv(100) == b""
            until(lambda: leader.lines[1].life == 3, "the third life")
            leader.tell("start")
            assert json.loads(third.recv(100)) == {"kind": "start"}
    assert leader.heard() == []


def test_nodes_that_hang_up_while_the_leader_does() -> None:
    """Each loss is heard on a thread of its own, and frees its place while the others are told: all
    of them hear how the attempt has ended."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ends = [end for _ in range(30) for end in hang_up_with_two()]
    finally:
        sys.setswitchinterval(before)
    assert ends == [{"kind": "end", "code": 75}] * 60


def hang_up_with_two() -> list[Any]:
    """What each of two nodes has heard of a leader that hangs up at once."""
    leader = Leader(node(0), "run", PORT)
    with hello(1) as first, hello(1, rank=2) as second:
        until(lambda: len(leader.lines) == 2, "both")
        leader.close(75)
        return [json.loads(line.recv(100)) for line in (first, second)]


def test_a_node_that_goes_away_is_a_loss(leader: Leader) -> None:
    """Once the attempt has begun a broken connection is told, on both sides, and nobody takes the
    place."""
    first, second = follow(1), follow(2)
    assert leader.gather(never, 30) == []
    first.close()
    assert heard(leader) == {"kind": "lost", "node": 1}
    second._line.connection.shutdown(socket.SHUT_WR)
    assert heard(leader) == {"kind": "lost", "node": 2}
    assert heard(follow(2)) == {"kind": "end", "code": 75, "node": 0}


def test_strangers_are_not_let_in(leader: Leader) -> None:
    """Another run's node, or anything that is no node, is sent away and takes nobody's place."""
    assert heard(follow(1, key="another run"))["kind"] == "lost"
    for line in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"kind": "hello", "key": "run", "node": 9}\n',
        b"\xff\n",
    ):
        with socket.create_connection((ADDRESSES[0], PORT)) as stranger:
            stranger.sendall(line)
            assert stranger.recv(100) == b""
    assert leader.lines == {}


def test_one_node_says_and_hears_nothing() -> None:
    """And takes no port."""
    alone = Leader(Nodes(), "run", PORT)
    assert alone.gather(never) == []
    alone.tell("start")
    assert alone.heard() == []
    with socket.create_server(("127.0.0.1", PORT)):
        pass
    alone.close(0)
