"""Processes that meet before they train: real ones, over real connections."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from support.joining import work
from support.running import forkserver
from xrun.errors import ProcessesApart
from xrun.training.world import check_sum, join_world


def said(what: str, ranks: int = 2) -> list[Any]:
    """What each of these ranks out of two has said."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    lines, context = [], forkserver()
    for rank in range(ranks):
        here, there = context.Pipe()
        context.Process(target=work, args=(rank, 2, port, what, there), daemon=True).start()
        lines.append(here)
    try:
        return [line.recv() for line in lines]
    finally:
        for line in lines:
            line.send(None)
            line.close()


@pytest.mark.parametrize("what", ["together", "late"])
def test_processes_meet(what: str) -> None:
    """Whoever comes first waits, also where that is not the one that the others meet at."""
    assert said(what) == [([3.0], 4.0, 0)] * 2


def test_a_process_that_does_not_come_is_named() -> None:
    """After a stated time."""
    assert said("absent", ranks=1) == ["Not here after 2 s: rank 1."]


def test_a_process_that_does_not_answer_is_named() -> None:
    """With its machine, though the library would wait for half an hour."""
    (line, _) = said("silent")
    assert line.startswith("The processes cannot talk to each other after 2 s. Missing: rank 0 on ")
    assert "rank 1 on machine-b." in line


def test_a_wrong_sum_is_told() -> None:
    """With the device and both numbers; a right one passes."""
    check_sum([10, 10], 4, "cpu")
    with pytest.raises(
        ProcessesApart, match=r"A sum over 4 processes on cuda:1 of .* is 9 instead of 10"
    ):
        check_sum([10, 9, 10], 4, "cuda:1")


def test_one_process_meets_nobody() -> None:
    """No connection is made."""
    assert join_world(False).size == 1
