"""What is sent to a Hub, once, and what is kept there (`xrun.store.hub.objects`)."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from xxhash import xxh3_128

from loopback.hub import Hub
from support.hub_store import (
    HUB_WARNINGS,
    REPO,
    Clock,
    Opener,
    contents,
    own,
    saved,
)
from xrun.errors import CheckpointCorrupt, StoreError
from xrun.store.hub.api import HubApi, Patience
from xrun.store.protocol import StoredFile

pytestmark = HUB_WARNINGS


def sent(hub: Hub, since: int) -> int:
    """Bytes of all requests."""
    return sum(request.size for request in hub.requests[since:])


def written(path: Path, content: bytes) -> Path:
    """A new file."""
    path.write_bytes(content)
    return path


def test_a_file_that_the_head_names_is_not_sent_again(
    attempt: Opener, hub: Hub, form: str, way: str
) -> None:
    """Frozen weights are named again by every attempt, and equal content is recognised before it is
    sent."""
    store, frozen = attempt(form=form), random.Random(1).randbytes(400_000)
    head, files = saved(store, None, frozen, own("a1", b"0"))
    since = len(hub.requests)
    head, again = saved(store, head, frozen, own("a1", b"1"))
    assert again[0] == files[0]
    other = attempt("a2", form=form)
    file = other.put([own("a2", b"2")])
    other.commit({"files": [files[0].to_json(), file.to_json()]}, other.head())
    other.sweep()
    assert sent(hub, since) < 20_000
    assert contents(attempt("a3", form=form))[0] == frozen


def test_a_process_commits_files_that_others_have_sent(attempt: Opener, form: str) -> None:
    """Every process of every node sends its own part; one names them all, and need not have their
    content."""
    first, second = attempt(form=form), attempt(form=form, cache=attempt("b").cache)
    head = first.commit({}, first.head())
    files = [first.put([own("a1", b"rank 0")]), second.put([own("a1", b"rank 1")])]
    first.commit({"files": [file.to_json() for file in files]}, head)
    assert contents(attempt("a2", form=form)) == [own("a1", b"rank 0"), own("a1", b"rank 1")]


def test_the_repository_stays_small_however_long_the_run(attempt: Opener, hub: Hub) -> None:
    """Over 40 checkpoints within an hour, 4 attempts and 2 kept, it never holds more than (2 + 2)
    states; the cache holds 2."""
    size = 20_000
    kept: list[StoredFile] = []
    rng, head = random.Random(2), None
    for name in ("a1", "a2", "a3", "a4"):
        store = attempt(name)
        head = store.commit(head.record if head else {}, store.head())
        for _ in range(10):
            kept = [*kept, store.put([own(name, rng.randbytes(size))])][-2:]
            head = store.commit({"files": [file.to_json() for file in kept]}, head)
            assert hub.stored_bytes(REPO) < 4.2 * size
            store.sweep()
            assert hub.stored_bytes(REPO) < 2.2 * size
        store.put([own(name, rng.randbytes(size))])  # killed before the commit
        assert len([path for path in store.cache.rglob("objects/*/*") if path.is_file()]) <= 3
    assert len(contents(attempt("a9"))) == 2


def test_no_two_attempts_send_the_same_content(attempt: Opener, hub: Hub) -> None:
    """A file without an attempt's id in it is sent with a signature, and read without: a dropped
    one goes at once, whatever comes later, and the same bytes of a successor are other ones."""
    store, other = attempt(), attempt("a2")
    head, (file,) = saved(store, None, b"frozen")
    signed = hub.stored_bytes(REPO)
    assert file.size == 6 < signed
    head, (again,) = saved(other, other.commit({}, head), b"frozen")
    other.sweep()
    assert (again.hash, again.size) == (file.hash, file.size)
    assert again.copies != file.copies
    assert hub.stored_bytes(REPO) == signed
    assert contents(attempt("a3")) == [b"frozen"]
    saved(other, head, b"")
    other.sweep()
    assert contents(attempt("a4")) == [b""]
    assert hub.stored_bytes(REPO) == signed - 6


def test_shared_files_of_an_older_xrun_stay_and_go(attempt: Opener, hub: Hub) -> None:
    """What names no attempt was put into one folder, as it is; a head that names such a file is
    read, and so is the next one; once dropped it is deleted."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    content, sha256 = b"frozen", hashlib.sha256(b"frozen").hexdigest()
    place = f"objects/shared/{sha256}.safetensors"
    HubApi(REPO, hub.token("alice"), Patience(60, time.time, time.sleep)).upload(
        written(store.cache / "frozen", content), place, "state"
    )
    file = StoredFile(xxh3_128(content).hexdigest(), len(content), (place,))
    head = store.commit({"files": [file.to_json()]}, head)
    store.sweep()
    head = attempt("a2").commit(head.record, head)
    assert contents(attempt("a3")) == [content]
    later = attempt("a4")
    saved(later, later.commit(head.record, later.head()), own("a4", b"two"))
    later.sweep()
    assert hub.stored_bytes(REPO) == len(own("a4", b"two"))


def test_a_clock_that_is_ahead_makes_nobodys_content_old(
    attempt: Opener, hub: Hub, clock: Clock
) -> None:
    """This machine's clock is three days ahead: what an attempt dropped that was killed before it
    could delete it is an hour old in an hour."""
    killed = attempt()
    head, _ = saved(killed, None, own("a1", b"one"))
    head = killed.commit({}, head)
    store = attempt("a2", clock=lambda: clock() + 3 * 86400)
    saved(store, store.commit({}, store.head()), own("a2", b"two"))
    store.sweep()
    assert hub.stored_bytes(REPO) == len(own("a1", b"one") + own("a2", b"two"))
    clock.sleep(3601)
    store.sweep()
    assert hub.stored_bytes(REPO) == len(own("a2", b"two"))


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_nothing_that_a_branch_or_tag_names_is_deleted(
    attempt: Opener, hub: Hub, clock: Clock, kind: str
) -> None:
    """Somebody who has kept an old state by a branch or a tag can still restore it."""
    store = attempt()
    head, (file,) = saved(store, None, own("a1", b"one"))
    api = HfApi(endpoint=hub.url, token=hub.token("alice"))
    make = {"branch": api.create_branch, "tag": api.create_tag}[kind]
    make(REPO, **{kind: "keep"}, revision="state")
    for number in range(3):
        head, _ = saved(store, head, own("a1", b"%d" % number))
        store.sweep()
        clock.sleep(4000)
    store.sweep()
    assert hub.read(REPO, file.copies[0], "keep") == own("a1", b"one")
    assert hub.stored_bytes(REPO) == file.size + len(own("a1", b"0"))


def test_two_runs_with_the_same_frozen_tensors_do_not_touch_each_other(
    attempt: Opener, hub: Hub, clock: Clock
) -> None:
    """One run drops and deletes what another run in another repository still names; that one
    restores it."""
    one, two = attempt(), attempt("b1", run="digits-2", repo="alice/other")
    head, _ = saved(one, None, b"frozen" * 1000, own("a1", b"1"))
    saved(two, None, b"frozen" * 1000, own("b1", b"1"))
    saved(one, head, own("a1", b"2"))
    clock.sleep(4000)
    one.sweep()
    assert hub.stored_bytes(REPO) == len(own("a1", b"2"))
    assert contents(attempt("b2", run="digits-2", repo="alice/other")) == [
        b"frozen" * 1000,
        own("b1", b"1"),
    ]


def test_what_cannot_be_deleted_now_is_deleted_later(attempt: Opener, hub: Hub) -> None:
    """A sweep that fails is no error; content whose deletion may still come is not put again."""
    store = attempt()
    head, _ = saved(store, None, own("a1", b"one"))
    head, _ = saved(store, head, own("a1", b"two"))
    hub.faults.add(r"POST .*/lfs-files/batch", when="before")
    store.sweep()
    with pytest.raises(StoreError, match=r"deletion of .* was asked for a moment ago"):
        store.put([own("a1", b"one")])
    assert hub.stored_bytes(REPO) == 2 * len(own("a1", b"one"))
    store.sweep()
    assert hub.stored_bytes(REPO) == len(own("a1", b"one"))


def test_a_process_that_never_commits_keeps_its_cache_small(attempt: Opener, clock: Clock) -> None:
    """Another node's process learns from the branch what its cache need not hold any more."""
    first, second = attempt(), attempt(cache=attempt("b").cache)
    head = first.commit({}, first.head())
    for number in range(12):
        files = [
            first.put([own("a1", b"0 %d" % number)]),
            second.put([own("a1", b"1 %d" % number)]),
        ]
        head = first.commit({"files": [file.to_json() for file in files]}, head)
        clock.sleep(60)
    assert len(list(second.cache.rglob("objects/*/*"))) <= 2


def test_bulk_lies_in_the_bucket_and_leaves_it(attempt: Opener, hub: Hub) -> None:
    """hub-bucket: the repository has nothing but the head; the bucket is private and holds the
    head's files, no others long."""
    store = attempt(form="hub-bucket")
    head, (first,) = saved(store, None, own("a1", b"one"))
    head, (second,) = saved(store, head, own("a1", b"two"))
    api = HfApi(endpoint=hub.url, token=hub.token("alice"))
    api.batch_bucket_files(REPO, add=[(b"x", "digits-2/objects/b1/x"), (b"x", "digits-1/notes")])
    store.sweep()
    files = {
        entry.path for entry in api.list_bucket_tree(REPO, recursive=True) if entry.type == "file"
    }
    assert files == {second.copies[0], "digits-2/objects/b1/x", "digits-1/notes"}
    assert second.copies[0].startswith("digits-1/objects/a1/")
    assert api.bucket_info(REPO).private
    assert set(hub.repository(REPO).tree(hub.history(REPO, "state")[0].id)) == {
        ".gitattributes",
        "head.json",
    }
    with pytest.raises(CheckpointCorrupt, match="is missing"):
        attempt("a2", form="hub-bucket").fetch(first)
