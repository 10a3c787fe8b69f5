"""Whether a Hub holds anything of a run: old answers, damaged heads, state that nobody reads."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from loopback.hub import Hub
from support.hub_store import (
    COMMIT,
    HUB_WARNINGS,
    REPO,
    Opener,
    contents,
    ours,
    own,
    requests,
    saved,
)
from xrun.errors import CheckpointCorrupt, LeaseLost
from xrun.store.hub.branch import checked_line

pytestmark = HUB_WARNINGS


def test_an_empty_hub_is_certain_and_private(attempt: Opener, hub: Hub) -> None:
    """The repository is made, private, and that it could be made is the proof that nothing was
    there."""
    store = attempt()
    assert store.head() is None
    assert store.head() is None
    assert hub.repository(REPO).settings()["private"]
    store.commit({}, None)


@pytest.mark.parametrize("match", ["POST /api/repos/create", "POST .*/branch/state", COMMIT])
@pytest.mark.parametrize(
    "fault", [{"when": "after"}, {"when": "before"}, {"cut": True, "when": "after"}], ids=str
)
def test_lost_answers_while_the_repository_is_made(
    attempt: Opener, hub: Hub, match: str, fault: dict[str, Any]
) -> None:
    """Each step may be done and its answer lost; the run starts all the same, once."""
    hub.faults.add(match, **fault)
    store = attempt()
    saved(store, None, b"x")
    assert ours(hub) == ["Commit 2 of digits-1", "Commit 1 of digits-1"]
    assert contents(attempt("a2")) == [b"x"]


def test_an_attempt_killed_before_its_lease_leaves_an_empty_store(attempt: Opener) -> None:
    """A branch without any commit of a run is empty, which a commit on top of it proves."""
    assert attempt().head() is None
    store = attempt("a2")
    assert store.head() is None
    saved(store, None, b"x")
    with pytest.raises(LeaseLost):
        attempt("a3").commit({}, None)


@pytest.mark.parametrize("commits", [1, 3])
def test_old_answers_are_not_believed(attempt: Opener, hub: Hub, commits: int) -> None:
    """A server that still shows the branch as it was does not make a run start again, and nothing
    is overwritten."""
    store = attempt()
    head = store.commit({}, store.head())
    for number in range(commits - 1):
        head, _ = saved(store, head, own("a1", b"%d" % number))
    hub.faults.add(r"GET .*/refs", stale=True, times=2)
    other = attempt("a2")
    seen = other.head()
    assert seen is not None or commits == 1
    hub.faults.add(r"GET .*/refs", stale=True, times=2)
    if seen == head:
        other.commit({}, seen)
    else:
        with pytest.raises(LeaseLost):
            other.commit({}, seen)
        assert attempt("a3").head() == head


def test_an_old_answer_does_not_hide_the_only_commit(attempt: Opener, hub: Hub) -> None:
    """Where the branch seems to have no commit yet, an attempt makes sure before it says so."""
    store = attempt()
    head = store.commit({}, store.head())
    hub.faults.add(r"GET .*/refs", stale=True, times=1)
    assert attempt("a2").head() == head


def test_a_lost_commit_and_old_answers_together(attempt: Opener, hub: Hub) -> None:
    """After a lost answer the branch shows its old head for a while; the commit is still made
    once."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    hub.faults.add(COMMIT, when="after")
    hub.faults.add(r"GET .*/refs", stale=True, times=3)
    saved(store, head, own("a1", b"two"))
    assert len(ours(hub)) == 3


def test_readers_make_nothing(attempt: Opener, hub: Hub) -> None:
    """For status and report, a repository or a branch that is not there is simply no run."""
    assert attempt("reader", create=False).head() is None
    hub.create_repo(REPO)
    assert attempt("reader", create=False).head() is None
    assert attempt().head() is None
    assert attempt("reader", create=False).head() is None
    assert not [line for line in requests(hub) if line.startswith("POST") and "reader" in line]
    head, _ = saved(attempt(), None, b"x")
    reader = attempt("reader", create=False)
    assert reader.head() == head
    assert contents(reader) == [b"x"]


def edited(hub: Hub, content: bytes) -> None:
    hub.write(REPO, {"head.json": content}, branch="state")


@pytest.mark.parametrize("edit", ["cut", "value", "garbage"])
def test_a_damaged_head_is_skipped_and_said(attempt: Opener, hub: Hub, edit: str) -> None:
    """However somebody has edited head.json, the commit before is the head, and its number is not
    used again."""
    store = attempt()
    first, _ = saved(store, None, own("a1", b"one"))
    whole = hub.read(REPO, "head.json", "state")
    saved(store, first, own("a1", b"two"))
    line = hub.read(REPO, "head.json", "state")
    edited(
        hub,
        {
            "cut": line[:-20],
            "value": line.replace(b'"number":3', b'"number":4'),
            "garbage": b"\xff",
        }[edit],
    )
    reader = attempt("a2")
    head = reader.head()
    assert head is not None
    assert head.number == 3
    assert len(reader.damaged) == 1
    assert reader.commit({"files": []}, head).number == 4
    assert whole != line


def test_a_damaged_newest_commit_falls_back_to_the_one_before(attempt: Opener, hub: Hub) -> None:
    """A commit of the run itself that cannot be read counts as damaged; files that its tree dropped
    are named again."""
    store = attempt()
    first, (file,) = saved(store, None, own("a1", b"one"))
    head = {
        "number": 3,
        "parent": first.id,
        "run": "digits-1",
        "attempt": "a1",
        "owner": "x",
        "time": 0.0,
        "record": {},
    }
    line = checked_line({**head, "recent": []})
    api = HfApi(endpoint=hub.url, token=hub.token("alice"))
    operations = [
        huggingface_hub.CommitOperationAdd("head.json", line),  # no newline: cut
        huggingface_hub.CommitOperationDelete(file.copies[0]),
    ]
    api.create_commit(REPO, operations, commit_message="Commit 3 of digits-1", revision="state")
    other = attempt("a2")
    assert other.head() == first
    assert contents(other) == [own("a1", b"one")]
    newest = other.commit(first.record, first)
    assert newest.number == 4
    assert contents(attempt("a3")) == [own("a1", b"one")]


@pytest.mark.parametrize("loss", ["damaged", "deleted", "history too"])
def test_state_without_a_valid_head_is_never_an_empty_store(
    attempt: Opener, hub: Hub, loss: str
) -> None:
    """When there is state and no valid head, the answer is an error and not None, which would start
    the run again."""
    store = attempt()
    saved(store, None, own("a1", b"one"))
    api = HfApi(endpoint=hub.url, token=hub.token("alice"))
    if loss == "damaged":
        edited(hub, b"{}")
    else:
        api.delete_file("head.json", REPO, revision="state")
    if loss != "deleted":
        api.super_squash_history(REPO, branch="state")
        with pytest.raises(CheckpointCorrupt):
            attempt("a2").head()
        with pytest.raises(CheckpointCorrupt):
            attempt("a2").commit({}, None)
    else:
        assert contents(attempt("a2")) == [own("a1", b"one")]
