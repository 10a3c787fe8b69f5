"""Whoever answers in the Hub's place is out of reach: within seconds, and without the token."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from loopback.portal import ANSWERS, SIZE, Portal
from xrun.errors import CloudUnavailable, LaunchError, StoreError, StoreUnavailable
from xrun.store.hub import client
from xrun.store.hub.api import ConflictError, HubApi, MissingError, Patience, small
from xrun.store.hub.client import account, hub_api, room_for

WHO = {
    "type": "user", "name": "alice", "orgs": [],
    "auth": {"accessToken": {"role": "write", "displayName": "x"}},
}  # fmt: skip
TOKEN = "hf_verysecrettoken"
CALLS: dict[str, Callable[[HubApi, Path], object]] = {
    "create": lambda api, path: api.create(),
    "branches": lambda api, path: api.branches(),
    "all refs": lambda api, path: api.all_refs(),
    "titles": lambda api, path: api.titles("state"),
    "read": lambda api, path: api.read("head.json", "state"),
    "large files": lambda api, path: api.large_files("state"),
    "download": lambda api, path: api.download("objects/a/b", 100, "state", path),
    "upload": lambda api, path: api.upload(path / "file", "objects/a/b", "state"),
    "commit": lambda api, path: api.commit("state", [small("a", b"b")], "t", "d", "0" * 40),
    "lfs objects": lambda api, path: api.lfs_objects(),
    "bucket": lambda api, path: api.create_bucket(),
    "bucket files": lambda api, path: api.bucket_files("objects"),
}
LISTINGS = (
    ("titles", "large files", "lfs objects", "bucket files")
    if version("huggingface_hub") >= "2"
    else ()
)
SLOW = {
    *((call, "500") for call in ("download", "upload")),
    *((call, how) for call in LISTINGS for how in ("500", "nothing", "garbage", "cut")),
} - {("titles", "cut")}
"""Where the library asks again for half a minute; once is enough."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of a test."""
    monkeypatch.setattr(client, "GRACE", 0.3)
    monkeypatch.setattr(client, "TIMEOUT", 5.0)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def api_of(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> HubApi:
    monkeypatch.setenv("HF_ENDPOINT", portal.url)
    return HubApi("alice/run", TOKEN, Patience(0.0, time.monotonic, time.sleep))


def no_token_elsewhere(portal: Portal) -> bool:
    return not any(each.elsewhere and each.authorized for each in portal.heard)


@pytest.mark.parametrize(
    ("call", "how"),
    [(call, how) for call in CALLS for how in ANSWERS if (call, how) not in SLOW],
)
def test_what_is_no_hub_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, how: str
) -> None:
    """Whatever is asked: nobody can tell, so it may be asked again; a refusal stays one. An answer
    that says nothing is never taken for "there is none"."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    refusals = {"403": (LaunchError,), "404": (MissingError,)}
    with Portal(how) as portal:
        api = api_of(portal, monkeypatch)
        began = time.monotonic()
        try:
            CALLS[call](api, tmp_path)
        except (StoreUnavailable, StoreError, LaunchError, MissingError, ConflictError) as error:
            raised: Exception | None = error
        else:
            raised = None
    assert time.monotonic() - began < 30
    assert no_token_elsewhere(portal)
    if raised is None:  # nothing was read of an answer that needs none
        assert call in ("read", "create", "bucket", "commit", "download")
    else:
        kinds = refusals.get(how, (StoreUnavailable,))
        assert isinstance(raised, (*kinds, StoreUnavailable)), raised
        assert len(str(raised)) < 1000


@pytest.mark.parametrize("how", ANSWERS)
def test_nobody_is_taken_for_the_hub(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Whose token it is, is asked before anything is launched or restored: 75, and one sentence."""
    with Portal(how) as portal:
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        began = time.monotonic()
        with pytest.raises(CloudUnavailable) as error:
            account(hub_api(TOKEN))
    assert time.monotonic() - began < 30
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 75
    assert no_token_elsewhere(portal)


@pytest.mark.parametrize(
    "who",
    [
        {**WHO, "name": "alice\x1b[31m"},
        {**WHO, "name": None},
        {**WHO, "name": ""},
        {**WHO, "orgs": [{"name": 1}]},
        {**WHO, "orgs": 1},
        {**WHO, "auth": {"accessToken": "x"}},
        {**WHO, "auth": {"accessToken": {"fineGrained": {"scoped": [1]}}}},
        [],
    ],
    ids=json.dumps,
)
def test_an_account_is_one_or_nobody_answers(monkeypatch: pytest.MonkeyPatch, who: object) -> None:
    with Portal("html", {"/api/whoami-v2": who}) as portal:
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        with pytest.raises(CloudUnavailable):
            account(hub_api(TOKEN))


def test_an_account_as_the_hub_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Portal("html", {"/api/whoami-v2": WHO}) as portal:
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        found = account(hub_api(TOKEN))
    assert found is not None
    assert (found["name"], found["auth"]["accessToken"]["role"]) == ("alice", "write")


def test_a_file_is_no_larger_than_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless one ends where its size does."""
    from huggingface_hub.utils import get_session

    with Portal("endless") as portal:
        hub_api(TOKEN)
        with room_for(1 << 20), pytest.raises(ConnectionError, match="larger than 1048576 bytes"):
            get_session().get(f"{portal.url}/alice/run/resolve/main/x")
    assert SIZE > 1 << 20


def test_a_mistake_of_our_own_is_not_the_networks() -> None:
    """What is wrong here is not asked again for minutes."""
    with pytest.raises(AttributeError) as ours:
        client._checked_account(None)
    with pytest.raises(TypeError) as theirs:
        json.loads(None)
    assert not client.is_of_the_library(ours.value)
    assert client.is_of_the_library(theirs.value)
