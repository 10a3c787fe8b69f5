"""Who may read and write a run on a Hub."""

from __future__ import annotations

import pytest

from loopback.hub import Hub
from support.hub_store import (
    HUB_WARNINGS,
    REPO,
    Opener,
    requests,
    saved,
)
from xrun.errors import LaunchError, StoreError, StoreUnavailable

pytestmark = HUB_WARNINGS


@pytest.mark.parametrize("who", ["nobody", "wrong", "read only", "stranger"])
def test_who_may_not_write_is_told_before_anything_happens(
    attempt: Opener, hub: Hub, who: str
) -> None:
    """Account or credentials are exit code 3, with the way out and without the token."""
    hub.read_only = {"carol"}
    token = {
        "nobody": None,
        "wrong": "secret_of_mine",
        "read only": "hf_carol",
        "stranger": "hf_mallory",
    }[who]
    repo = "carol/digits" if who == "read only" else REPO
    with pytest.raises(LaunchError) as error:
        attempt(token=token, repo=repo).head()
    assert error.value.exit_code == 3
    assert error.value.hint
    assert not token or token not in f"{error.value}{error.value.__cause__}"
    assert not (hub.root / "repositories").exists()


def test_a_private_run_of_somebody_else_stays_closed(attempt: Opener, hub: Hub) -> None:
    """Another user reads nothing of it and gets an error, not an empty store."""
    saved(attempt(), None, b"x")
    with pytest.raises(LaunchError):
        attempt("m1", token=hub.token("mallory")).head()


def test_a_repository_that_the_token_cannot_see_is_not_taken_for_missing(
    attempt: Opener, hub: Hub
) -> None:
    """ "There is none" and "it exists already" together mean that this token cannot see it."""
    saved(attempt(), None, b"x")
    hub.fine_grained = {"alice": {"alice": ["repo.write"]}}
    with pytest.raises(StoreError, match="cannot see") as error:
        attempt("a2").head()
    assert error.value.exit_code == 4


def test_a_repository_that_is_deleted_under_a_run_is_not_made_anew(
    attempt: Opener, hub: Hub
) -> None:
    """Commits fail and say so; the attempt does not start an empty store in its place."""
    store = attempt()
    head, _ = saved(store, None, b"x")
    hub.forget(hub.repository(REPO))
    with pytest.raises(StoreError):
        store.commit({}, head)
    with pytest.raises(StoreUnavailable):
        store.commit({}, head)
    assert "POST /api/repos/create" not in requests(hub, len(hub.requests) // 2)
