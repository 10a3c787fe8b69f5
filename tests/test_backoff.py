"""One policy for everybody who may not answer; the clock is in hand."""

from __future__ import annotations

import pytest

from xrun.backoff import Backoff


class Busy(Exception):
    """Somebody who says when to come back."""

    pause = 7.0


class Server:
    """Answers after so many failures; time passes while somebody sleeps."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error = failures, error
        self.now = 0.0
        self.slept: list[float] = []

    def ask(self) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise self.error(f"{self.failures} to go")
        return "here"

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> bool:
        self.slept.append(seconds)
        self.now += seconds
        return False


def test_waits_grow_twice_as_long_up_to_the_longest() -> None:
    server, heard = Server(6), list[str]()
    tries = Backoff(first=0.5, longest=4.0).tries(
        ConnectionError, sleep=server.sleep, before=lambda error: heard.append(str(error))
    )
    assert tries(server.ask) == "here"
    assert server.slept == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert heard == [f"{left} to go" for left in (5, 4, 3, 2, 1, 0)], "each error before its wait"


def test_many_who_wait_for_one_do_not_come_back_at_once() -> None:
    waits = {Backoff(first=1.0, longest=60.0, spread=1.0).seconds(1) for _ in range(100)}
    assert len(waits) > 90
    assert all(1.0 <= wait <= 2.0 for wait in waits)


def test_what_the_server_asks_for_is_the_least() -> None:
    server = Server(2, Busy)
    assert Backoff(first=1.0, longest=60.0).tries(Busy, sleep=server.sleep)(server.ask) == "here"
    assert server.slept == [7.0, 7.0]


def test_the_last_error_is_raised_when_time_is_up() -> None:
    """No try begins after the end."""
    server = Server(100)
    tries = Backoff(first=1.0, longest=60.0).tries(
        ConnectionError, end=10.0, clock=server.clock, sleep=server.sleep
    )
    with pytest.raises(ConnectionError, match="96 to go"):
        tries(server.ask)
    assert server.slept == [1.0, 2.0, 4.0]


def test_or_after_so_many_times_or_when_sleep_is_interrupted() -> None:
    server = Server(100)
    with pytest.raises(ConnectionError, match="97 to go"):
        Backoff(1.0, 1.0).tries(ConnectionError, times=3, sleep=server.sleep)(server.ask)
    with pytest.raises(ConnectionError, match="96 to go"):
        Backoff(1.0, 1.0).tries(ConnectionError, sleep=lambda seconds: True)(server.ask)


def test_another_error_is_not_tried_again() -> None:
    server = Server(1, ValueError)
    with pytest.raises(ValueError, match="0 to go"):
        Backoff(1.0, 1.0).tries(ConnectionError, sleep=server.sleep)(server.ask)
    assert server.slept == []


def test_there_is_no_last_try() -> None:
    """A server that is away for days is asked as often on the last day as on the first."""
    assert Backoff(first=1.0, longest=1.0).seconds(100_000) == 1.0
    assert Backoff(first=0.5, longest=60.0).seconds(100_000) == 60.0
