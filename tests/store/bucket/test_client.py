"""What a bucket's answers mean, and that every request ends in time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support.bad_way import BadWay
from support.buckets import Server
from support.hub_store import Clock
from xrun.errors import LaunchError, StoreError, StoreUnavailable, XrunError
from xrun.store.address import Address
from xrun.store.bucket.client import BucketClient

pytestmark = pytest.mark.once


@pytest.fixture
def client(s3: Server, way: BadWay, place: str, clock: Clock) -> BucketClient:
    return opened(s3, way, place, clock)


def opened(s3: Server, way: BadWay, place: str, clock: Clock, **options: Any) -> BucketClient:
    settings = {"environ": s3.at(way.url), "patience": 60.0, "clock": clock, **options}
    return BucketClient(Address.parse(place), sleep=clock.sleep, **settings)


def test_an_object_is_made_once(client: BucketClient, way: BadWay) -> None:
    """In one request, and what is there stays; nothing is there that nobody made."""
    assert client.read("commits/1") is None
    assert client.create("commits/1", b"mine")
    assert way.count("PUT ") == 1
    assert not client.create("commits/1", b"theirs")
    assert client.read("commits/1") == b"mine"
    assert client.keys("commits") == ["commits/1"]
    client.delete(["commits/1", "commits/2"])
    assert client.keys("commits") == []


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"cut": True}, {"status": 503, "when": "before"}, {"status": 429}],
    ids=str,
)
def test_an_object_whose_answer_was_lost_is_known_again(
    client: BucketClient, way: BadWay, fault: dict[str, Any]
) -> None:
    """It was made, or not, and nobody has said so; the next try finds out."""
    way.faults.add("PUT ", **{"when": "after", **fault})
    assert client.create("commits/1", b"mine")
    assert way.count("PUT ") == 2
    assert not client.create("commits/1", b"theirs")


@pytest.mark.parametrize("method", ["keys", "read", "create", "put", "delete"])
def test_no_bucket_is_no_empty_bucket(s3: Server, way: BadWay, clock: Clock, method: str) -> None:
    """A bucket that is not there says nothing of what was committed, and is not waited for."""
    client = opened(s3, way, "s3://nobodys/runs", clock)
    with pytest.raises(StoreError, match="There is no bucket s3://nobodys/runs") as caught:
        asked(client, method)
    assert caught.value.exit_code == 4
    assert len(way.lines) == 1


def asked(client: BucketClient, method: str) -> object:
    """Any answer to this question."""
    body = {"create": b"x", "put": b"x"}
    key: Any = ["x"] if method == "delete" else "x"
    return getattr(client, method)(key, *([body[method]] if method in body else []))


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ({"status": 403}, LaunchError, "denies this account access"),
        ({"status": 401}, LaunchError, "AWS_ACCESS_KEY_ID"),
        ({"status": 503}, StoreUnavailable, "does not answer"),
        ({"status": 429}, StoreUnavailable, "does not answer"),
        ({"cut": True}, StoreUnavailable, "does not answer"),
        ({"status": 301}, StoreError, "AWS_REGION"),
        ({"status": 400}, StoreError, "refuses"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["keys", "read", "create"])
def test_what_an_error_means(
    client: BucketClient,
    way: BadWay,
    clock: Clock,
    fault: dict[str, Any],
    error: type[XrunError],
    words: str,
    method: str,
) -> None:
    """Whoever may not, whatever is refused, and what nobody can tell are three things; only the
    last is tried again, for as long as there is patience."""
    way.faults.add("", times=None, **fault)
    before = clock()
    with pytest.raises(error, match=words) as caught:
        asked(client, method)
    assert type(caught.value) is error
    passes = error is StoreUnavailable
    assert (len(way.lines) > 5) == passes
    assert clock() - before <= 60
    way.faults.clear()
    assert client.read("x") is None


def test_a_server_that_says_nothing_is_left(
    s3: Server, way: BadWay, place: str, clock: Clock
) -> None:
    """No request lasts longer than it may, and the tries end as well."""
    client = opened(s3, way, place, clock, seconds=0.2, patience=0.1)
    way.faults.add("", times=None, stall=5.0)
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        client.keys("commits")
    assert time.monotonic() - start < 3


def test_the_usual_names_lead_to_the_server(s3: Server, place: str, clock: Clock) -> None:
    """The address of S3 counts more than that of all services; what http needs, may be said."""
    keys = {name: value for name, value in s3.environ.items() if name != "AWS_ENDPOINT_URL"}
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": s3.url}
    for environ in (
        {**keys, "AWS_ENDPOINT_URL": s3.url, "AWS_ALLOW_HTTP": "true", "AWS_PROFILE": "mine"},
        {**keys, **nowhere},
        {**keys, "AWS_ENDPOINT_URL": s3.url, "AWS_SESSION_TOKEN": "x", "AWS_DEFAULT_REGION": "x"},
    ):
        client = BucketClient(Address.parse(place), environ=environ, patience=0, clock=clock)
        assert client.keys("commits") == []


@pytest.mark.parametrize("kind", ["az", "gs"])
def test_what_cannot_be_opened_is_the_accounts_news(kind: str, clock: Clock) -> None:
    """Azure has no store without an account, and Google's file of keys has to be there."""
    environ = {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/keys.json"} if kind == "gs" else {}
    with pytest.raises(LaunchError, match=f"{kind}://bucket/x cannot be asked") as caught:
        BucketClient(Address.parse(f"{kind}://bucket/x"), environ=environ, patience=1, clock=clock)
    assert "here and in `secrets:`" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (403, LaunchError, "and this machine has no identity in a cloud."),
        (404, LaunchError, "and this machine has no identity in a cloud."),
        (0, StoreUnavailable, "and no cloud says which identity this machine has."),
    ],
)
def test_without_keys_and_a_cloud_it_is_nobodys(
    way: BadWay,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    error: type[XrunError],
    words: str,
) -> None:
    """In one sentence, whether the machine's cloud refuses or there is none."""
    way.faults.add("", times=None, status=status)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", way.url if status else "http://127.0.0.1:9")
    where = Address.parse("s3://bucket/x")
    given = {"AWS_REGION": "us-east-1"}
    client = BucketClient(where, environ=given, patience=1, clock=clock, sleep=clock.sleep)
    with pytest.raises(error) as caught:
        client.read("x")
    told = str(caught.value)
    assert told.startswith(f"s3://bucket/x cannot be asked: no keys are set here, {words} Set AWS_")
    assert type(caught.value) is error
