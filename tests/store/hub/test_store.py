"""What `xrun.store.hub.store` promises as every store does, on a real server and its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from loopback.hub import Hub
from support.hub_store import (
    HUB_WARNINGS,
    REPO,
    Opener,
    contents,
    ours,
    own,
    saved,
)
from xrun.errors import CheckpointCorrupt, StoreError
from xrun.store.hub.store import stored_files
from xrun.store.protocol import Head, Store, StoredFile

pytestmark = HUB_WARNINGS


def test_only_the_attempt_that_is_asked_hears_it(attempt: Opener, hub: Hub) -> None:
    """As for a folder; a wish that nobody has heard is removed by a later attempt, and no content
    is kept alive by it."""
    first, second = attempt(), attempt("a2")
    assert attempt("reader", create=False).ask_to_stop() == ""
    head = first.commit({}, None)
    assert not first.asked_to_stop()
    for _ in range(2):
        assert attempt("reader", create=False).ask_to_stop() == "a1"
    hub.faults.add(r"DELETE .*/branch/", cut=True, when="after")
    assert first.asked_to_stop(), "its removal failed, which is no reason not to hear it"
    assert not first.asked_to_stop()
    assert attempt("reader", create=False).ask_to_stop() == "a1"
    second.commit({}, head)
    assert not second.asked_to_stop()
    assert set(hub.repository(REPO).refs()) == {"refs/heads/main", "refs/heads/state"}


def test_what_was_committed_comes_back(attempt: Opener, form: str, way: str) -> None:
    """Another attempt on an empty machine finds the same head, and every file byte for byte."""
    store = attempt(form=form)
    assert store.head() is None
    first = store.commit({"attempts": ["a1"]}, None)
    chunks: list[Any] = [b"ab", b"", memoryview(b"12345678").cast("d"), bytes(9 << 20)]
    head, files = saved(store, first, b"weights" * 1000, b"")
    large = store.put(chunks)
    head = store.commit({"files": [file.to_json() for file in [*files, large]]}, head)
    other = attempt("a2", form=form)
    assert other.head() == head
    assert (head.number, head.attempt, head.owner) == (3, "a1", "a1@host")
    assert contents(other) == [b"weights" * 1000, b"", b"ab12345678" + bytes(9 << 20)]


def test_a_file_of_an_older_xrun_comes_back(attempt: Opener, form: str, lfs: None) -> None:
    """Its record has a BLAKE3, and by that it is verified, on the way and in the cache."""
    store, content = attempt(form=form), own("a1", b"one")
    head = store.commit({}, store.head())
    file = store.put([content])
    for digest in (blake3(content).hexdigest(), blake3(b"other").hexdigest()):
        head = store.commit(
            {"file": {"blake3": digest, "size": file.size, "copies": list(file.copies)}}, head
        )
        (old,) = stored_files(head.record)
        successor = attempt(f"a{head.number}", form=form)
        if digest == blake3(content).hexdigest():
            assert successor.fetch(old).read_bytes() == successor.fetch(old).read_bytes() == content
        else:
            with pytest.raises(CheckpointCorrupt, match="has other content"):
                successor.fetch(old)


def test_a_file_that_was_put_is_invisible_until_it_is_committed(attempt: Opener, hub: Hub) -> None:
    """Putting changes no head, and what never got committed is gone from the server and the cache
    after the next sweep."""
    store = attempt()
    head, kept = saved(store, None, own("a1", b"kept"))
    store.put([own("a1", b"forgotten")])
    assert attempt("a2").head() == head
    store.sweep()
    assert [path.name for path in store.cache.rglob("objects/*/*")] == [
        Path(kept[0].copies[0]).name
    ]
    assert hub.stored_bytes(REPO) == kept[0].size


def test_no_file_needs_a_line_of_gitattributes(attempt: Opener, hub: Hub, lfs: None) -> None:
    """Which logs and points would make long: the Hub adds one for each large file that no pattern
    of it names."""
    store = attempt()
    head, repository = store.commit({}, store.head()), hub.repository(REPO)
    content = own("a1", b"x"), own("a1", b"y"), b"z"
    suffixes = ".safetensors", ".log", ".jsonl"
    files = [store.put([each], suffix=way) for each, way in zip(content, suffixes, strict=True)]
    before = repository.tree(repository.head("state"))[".gitattributes"]
    store.commit({"files": [file.to_json() for file in files]}, head)
    tree = repository.tree(repository.head("state"))
    assert tree[".gitattributes"] == before
    assert [Path(file.copies[0]).suffix for file in files] == list(suffixes)
    assert all(tree[file.copies[0]].sha256 for file in files)
    assert contents(attempt("a2")) == list(content)


def test_every_checkpoint_is_one_commit_on_top_of_the_one_before(attempt: Opener, hub: Hub) -> None:
    """Head, new files and the deletion of old ones come in one commit with its parent; nothing is
    committed besides."""
    store = attempt()
    head: Head | None = None
    commits, trees = 0, []
    for number in range(4):
        head, files = saved(store, head, own("a1", b"%d" % number), own("a1", b"x%d" % number))
        trees.append({"head.json", ".gitattributes", *(file.copies[0] for file in files)})
        commits = hub.requests.count
    history = hub.history(REPO, "state")
    assert ours(hub) == [f"Commit {n} of digits-1" for n in (5, 4, 3, 2, 1)]
    repository = hub.repository(REPO)
    assert [set(repository.tree(commit.id)) for commit in history[:4]] == trees[::-1]
    posts = [request for request in hub.requests if "/commit/state" in request.path]
    parents = [request.json_lines[0]["value"]["parentCommit"] for request in posts]
    assert parents == [commit.id for commit in history[:0:-1]]
    assert commits
    assert repository.settings()["private"]


def test_a_record_that_json_cannot_say_is_refused(attempt: Opener, hub: Hub) -> None:
    """An object is an error before anything is sent, and none of the store's."""
    store = attempt()
    assert store.head() is None
    with pytest.raises(TypeError, match="JSON"):
        store.commit({"x": object()}, None)
    assert ours(hub) == []


def test_names_that_lead_elsewhere_are_refused(attempt: Opener, tmp_path: Path) -> None:
    """Attempts, addresses and places in a record cannot point outside of the store."""
    for name in ("../a", "", "a/b"):
        with pytest.raises(StoreError, match="attempt"):
            attempt(name)
    for address in ("alice", "a/b/c", "alice/..", "alice/x y"):
        with pytest.raises(StoreError):
            attempt(repo=address)
    store = attempt()
    saved(store, None, b"x")
    (tmp_path / "cache-secret").write_bytes(b"x")
    for place in (
        "../cache-secret",
        "objects/../../cache-secret",
        f"objects/a1/../{'0' * 64}",
        str(tmp_path / "cache-secret"),
    ):
        with pytest.raises(CheckpointCorrupt, match="not a place"):
            store.fetch(StoredFile("0" * 64, 1, (place,)))


def test_another_runs_repository_is_refused(attempt: Opener) -> None:
    """A store never reads or continues another run's state."""
    saved(attempt(run="cifar-2"), None, b"x")
    with pytest.raises(StoreError, match=r"cifar-2.*digits-1"):
        attempt("a2").head()


def test_the_first_commit_comes_before_the_first_file(attempt: Opener) -> None:
    """A file is refused while nothing is committed, and a put that fails leaves nothing behind."""

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    store = attempt()
    with pytest.raises(StoreError, match="first commit"):
        store.put([b"x"])
    store.commit({}, store.head())
    with pytest.raises(KeyboardInterrupt):
        store.put(chunks())
    assert not [path for path in store.cache.rglob("*") if path.is_file()]


def test_the_protocol_is_what_the_store_implements(attempt: Opener) -> None:
    """A HubStore can stand wherever a Store is asked for (checked by mypy, and here by its
    methods)."""
    store: Store = attempt()
    names = [name for name in vars(Store) if not name.startswith("_")]
    assert all(getattr(store, name).__doc__ for name in names)
