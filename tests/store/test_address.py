"""Where a run's state lives: one text, one type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrun.store.address import Address, NoAddressError


@pytest.mark.parametrize(
    ("text", "kind", "name", "durable", "shared"),
    [
        ("local", "local", "", False, False),
        ("hub", "hub", "", True, True),
        ("hub://me/digits", "hub", "me/digits", True, True),
        ("hub-bucket://lab/di.g-i_ts", "hub-bucket", "lab/di.g-i_ts", True, True),
        ("s3://my.bucket-1", "s3", "my.bucket-1", True, True),
        ("s3://bucket/team/runs_2=x", "s3", "bucket/team/runs_2=x", True, True),
        ("gs://bucket/runs", "gs", "bucket/runs", True, True),
        ("az://container/runs", "az", "container/runs", True, True),
        ("./runs", "folder", "./runs", False, False),
        ("../runs", "folder", "../runs", False, False),
        ("/mnt/runs", "folder", "/mnt/runs", False, True),
        ("~/runs", "folder", "~/runs", False, True),
        ("$HOME/runs", "folder", "$HOME/runs", False, False),
        ("runs/mine", "folder", "runs/mine", False, False),
    ],
)
def test_every_kind_is_read_and_written(
    text: str, kind: str, name: str, durable: bool, shared: bool
) -> None:
    address = Address.parse(text)
    assert (address.kind, address.name) == (kind, name)
    assert (address.durable, address.shared) == (durable, shared)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("", "neither", "A folder is written `./`."),
        ("runs", "neither `local`, `hub` nor a path", "A folder is written `./runs`."),
        ("lokal", "neither `local`, `hub` nor a path", "Did you mean `local`?"),
        ("s4://bucket", "there is no such kind of store", "hub-bucket://owner/name"),
        ("http://bucket/x", "there is no such kind of store", "s3://bucket/prefix"),
        ("s3://", "a bucket there is `s3://bucket/prefix`", ""),
        ("s3://Bucket/x", "a bucket there is `s3://bucket/prefix`", ""),
        ("gs://bucket//x", "a bucket there is `gs://bucket/prefix`", ""),
        ("az://bucket/../x", "a bucket there is `az://bucket/prefix`", "letters, digits"),
        ("s3://bucket/a?b", "a bucket there is `s3://bucket/prefix`", ""),
        ("hub://me", "a repository there is `hub://owner/name`", ""),
        ("hub://me/a/b", "a repository there is `hub://owner/name`", ""),
        ("hub://mé/a", "a repository there is `hub://owner/name`", ""),
    ],
)
def test_what_is_no_address_is_told(text: str, what: str, hint: str) -> None:
    with pytest.raises(NoAddressError) as error:
        Address.parse(text)
    assert what in error.value.what
    assert hint in error.value.hint


def test_a_place_that_is_named_by_its_run_gets_its_name() -> None:
    """One that has a name, and a folder, keep theirs."""
    assert str(Address.parse("hub").of_run("alice", "digits-1")) == "hub://alice/digits-1"
    for text in ("hub://lab/x", "hub-bucket://lab/x", "./runs", "local"):
        assert str(Address.parse(text).of_run("alice", "digits-1")) == text
    assert Address.parse("hub://lab/x").owner == "lab"


def test_a_bucket_holds_each_run_under_its_id() -> None:
    """Below the prefix; whoever launches, the bucket is the same. Everything else is one run's."""
    for text in ("s3://bucket", "gs://bucket/team/runs", "az://container/runs"):
        address = Address.parse(text)
        assert str(address.place_of("digits-1")) == f"{text}/digits-1"
        assert address.of_run("alice", "digits-1") == address
        assert (address.in_bucket, address.on_hub) == (True, False)
    assert str(Address.parse("s3://bucket/runs/")) == "s3://bucket/runs"
    for text in ("hub://lab/x", "hub", "./runs", "local"):
        assert str(Address.parse(text).place_of("digits-1")) == text


@given(st.text())
def test_any_text_is_an_address_or_told(text: str) -> None:
    """And what is one says itself again."""
    try:
        address = Address.parse(text)
    except NoAddressError:
        return
    assert Address.parse(str(address)) == address
