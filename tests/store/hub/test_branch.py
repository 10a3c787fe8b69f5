"""A commit is made exactly once, or not at all, however its answer is lost, late or refused
(`xrun.store.hub.branch`, `xrun.store.hub.api`)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loopback.hub import Hub
from support.hub_store import (
    COMMIT,
    HUB_WARNINGS,
    REPO,
    Clock,
    Opener,
    contents,
    ours,
    own,
    saved,
)
from xrun.errors import LeaseLost, StoreUnavailable
from xrun.store.hub import client as client_module
from xrun.store.hub.store import HubStore
from xrun.store.protocol import Head

pytestmark = HUB_WARNINGS


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "when": "after"},
        {"status": 503, "when": "before"},
        {"cut": True, "when": "after"},
        {"cut": True, "when": "before"},
        {"truncate": 5},
        {"status": 429, "retry_after": 45},
        {"status": 500, "times": 4},
        {"status": 412},
    ],
    ids=str,
)
def test_a_commit_whose_answer_is_lost_is_made_exactly_once(
    attempt: Opener, hub: Hub, clock: Clock, fault: dict[str, Any]
) -> None:
    """Whatever happens to the answer, the commit is there once, and the attempt goes on from it."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    clock.sleep(30)
    before = clock()
    hub.faults.add(COMMIT, **fault)
    head, _ = saved(store, head, own("a1", b"two"))
    assert clock() - before >= fault.get("retry_after", 0)
    assert saved(store, head, own("a1", b"three"))[0].number == 4
    assert len(ours(hub)) == 4
    assert contents(attempt("a2")) == [own("a1", b"three")]


def test_a_commit_that_lands_after_its_author_has_given_up_is_recognised(
    attempt: Opener, hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled connection is given up; when the server finishes that commit later, it is still
    this attempt's."""
    monkeypatch.setattr(client_module, "TIMEOUT", 2.0)
    store = attempt(patience=0.0)
    head, _ = saved(store, None, own("a1", b"one"))
    hub.faults.add(COMMIT, stall=60)
    with pytest.raises(StoreUnavailable):
        saved(store, head, own("a1", b"two"))
    hub.faults.clear()
    deadline = threading.Event()
    while len(ours(hub)) < 3 and not deadline.wait(0.01):
        pass
    newest, _ = saved(store, head, own("a1", b"three"))
    assert newest.number == 4
    assert contents(attempt("a2")) == [own("a1", b"three")]


@pytest.mark.parametrize("landed", [False, True])
def test_when_nobody_can_tell_the_next_commit_finds_out(
    attempt: Opener, hub: Hub, landed: bool
) -> None:
    """With the network gone the save is lost and nothing else; the next commit with the same parent
    goes through."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    file = store.put([own("a1", b"two")])
    hub.faults.add(COMMIT, status=503, when="after" if landed else "before")
    hub.faults.add(".*", status=502, times=None)
    with pytest.raises(StoreUnavailable):
        store.commit({"files": [file.to_json()]}, head)
    store.sweep()  # knows that it does not know
    hub.faults.clear()
    last = store.put([own("a1", b"three")])
    newest = store.commit({"files": [last.to_json()]}, head)
    assert newest.number == (4 if landed else 3)
    assert contents(attempt("a2")) == [own("a1", b"three")]


def test_a_successor_is_never_overwritten(attempt: Opener, hub: Hub) -> None:
    """A commit on a head that another attempt has replaced raises, changes nothing and deletes
    nothing."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    successor = attempt("a2")
    taken, _ = saved(successor, successor.commit(head.record, successor.head()), own("a2", b"two"))
    with pytest.raises(LeaseLost, match=r"a2@host.*commit 4"):
        saved(store, head, own("a1", b"zombie"))
    store.sweep()
    assert attempt("a3").head() == taken
    assert contents(attempt("a3")) == [own("a2", b"two")]
    with pytest.raises(LeaseLost):
        store.commit({}, None)


def test_a_commit_of_something_else_on_the_branch_is_no_obstacle(attempt: Opener, hub: Hub) -> None:
    """Somebody's README on the branch moves it; the head is still ours, so the run goes on and
    keeps that file."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    hub.write(REPO, {"README.md": b"hands off"}, branch="state")
    saved(store, head, own("a1", b"two"))
    assert hub.read(REPO, "README.md", "state") == b"hands off"


@pytest.mark.parametrize("fresh", [True, False])
def test_of_six_racing_attempts_one_wins(attempt: Opener, hub: Hub, fresh: bool) -> None:
    """On an empty Hub and on a common head: one commit, five LeaseLost."""
    if not fresh:
        saved(attempt("a0"), None, own("a0", b"one"))
    stores = [attempt(f"a{number}") for number in range(1, 7)]
    start = threading.Barrier(len(stores))

    def race(store: HubStore) -> Head | None:
        start.wait()
        head = store.head()
        start.wait()
        try:
            return store.commit({"winner": store.attempt}, head)
        except LeaseLost:
            return None

    with ThreadPoolExecutor(len(stores)) as threads:
        heads = [head for head in threads.map(race, stores) if head]
    assert len(heads) == 1
    assert attempt("a9").head() == heads[0]
    assert len(ours(hub)) == (1 if fresh else 3)


def test_a_stalled_connection_does_not_hold_a_store_for_ever(
    attempt: Opener, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read without an answer is given up and asked again."""
    store = attempt()
    head, _ = saved(store, None, b"x")
    monkeypatch.setattr(client_module, "TIMEOUT", 1.0)
    hub.faults.add("GET .*/refs", stall=60)
    hub.faults.add("GET .*/head.json", stall=60)
    assert attempt("a2").head() == head
