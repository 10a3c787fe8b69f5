"""The finished model on the repository's main, and the history that goes.

Covers `xrun.store.hub.model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from loopback.hub import Hub
from support.hub_store import (
    HUB_WARNINGS,
    REPO,
    Clock,
    Opener,
    contents,
    ours,
    own,
    saved,
)
from xrun.errors import XrunError
from xrun.store.hub.model import HubModel

pytestmark = HUB_WARNINGS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished model's folder."""
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "part" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(50_000))
    return folder


@pytest.mark.parametrize(
    "fault",
    [None, {"when": "after"}, {"when": "before"}, {"cut": True, "when": "after"}, {"status": 412}],
    ids=str,
)
def test_the_model_is_published_once(
    attempt: Opener, hub: Hub, model: Path, fault: dict[str, Any] | None
) -> None:
    """One commit on `main`, whatever happens to its answer, tagged with the run; again the same
    changes nothing."""
    store = attempt()
    saved(store, None, b"x")
    if fault:
        hub.faults.add(r"POST .*/commit/main", **fault)
        hub.faults.add(r"POST .*/tag/", when="after")
    revision = store.publish(model, "digits-1", "The model of digits-1")
    assert [commit.title for commit in hub.history(REPO)] == [
        "The model of digits-1",
        "initial commit",
    ]
    assert hub.history(REPO, "digits-1")[0].id == revision
    assert hub.read(REPO, "part/config.json") == b"{}"
    assert store.publish(model, "digits-1", "The model of digits-1") == revision
    assert len(hub.history(REPO)) == 2


def test_a_run_that_went_on_publishes_again(attempt: Opener, hub: Hub, model: Path) -> None:
    """The tag moves to the newer model, and what others have put on `main` stays."""
    store = attempt()
    saved(store, None, b"x")
    first = store.publish(model, "digits-1", "Shorter")
    hub.write(REPO, {"notes.md": b"mine"})
    (model / "model.safetensors").write_bytes(b"\1" * 50_000)
    second = store.publish(model, "digits-1", "Longer")
    assert hub.history(REPO, "digits-1")[0].id == second != first
    assert hub.read(REPO, "notes.md") == b"mine"


def elsewhere(hub: Hub, clock: Clock, user: str, repo: str) -> HubModel:
    return HubModel.elsewhere(
        repo, "a1", token=hub.token(user), clock=clock, sleep=clock.sleep, patience=60.0
    )


@pytest.mark.parametrize("fault", [None, {"when": "after"}, {"status": 503}], ids=str)
def test_a_model_may_lie_where_no_state_is(
    hub: Hub, clock: Clock, model: Path, fault: dict[str, Any] | None
) -> None:
    """The repository is made, private, with the model's commit and tag and without a branch
    `state`, whatever happens to an answer."""
    if fault:
        hub.faults.add(r"POST .*/(repos/create|commit/main)", times=2, **fault)
    revision = elsewhere(hub, clock, "alice", "alice/model").publish(model, "digits-1", "Done")
    assert [commit.title for commit in hub.history("alice/model")] == ["Done", "initial commit"]
    assert hub.history("alice/model", "digits-1")[0].id == revision
    api = HfApi(endpoint=hub.url, token=hub.token("alice"))
    assert [branch.name for branch in api.list_repo_refs("alice/model").branches] == ["main"]
    assert api.repo_info("alice/model").private


def test_a_model_is_not_put_into_a_strangers_repository(
    hub: Hub, clock: Clock, model: Path
) -> None:
    """One that this token cannot see is said to be there, and stays as it is."""
    hub.create_repo("bob/model", private=True)
    with pytest.raises(XrunError, match="bob/model"):
        elsewhere(hub, clock, "alice", "bob/model").publish(model, "digits-1", "Done")
    assert len(hub.history("bob/model")) == 1


def test_a_finished_runs_history_is_one_commit(attempt: Opener, hub: Hub) -> None:
    """finish() squashes `state`, keeps the head and its files, does it only for who has the head,
    and may come twice."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    attempt("a0").drop_history()
    assert len(ours(hub)) == 2
    store.drop_history()
    store.drop_history()
    assert ours(hub) == ["Commit 2 of digits-1"]
    assert attempt("a2").head() == head
    assert contents(attempt("a2")) == [own("a1", b"one")]
    assert store.commit({"more": "steps"}, head).number == 3


def test_a_squash_does_not_stop_an_attempt_that_lives(attempt: Opener, hub: Hub) -> None:
    """Somebody's squash moves the branch and changes no head; the next commit goes through."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    HfApi(endpoint=hub.url, token=hub.token("alice")).super_squash_history(REPO, branch="state")
    saved(store, head, own("a1", b"two"))
    assert contents(attempt("a2")) == [own("a1", b"two")]
