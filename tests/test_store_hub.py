"""What HubStore promises, on a real Hub server with the real huggingface_hub: every answer can be
late, lost, old or wrong."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from blake3 import blake3
from huggingface_hub import HfApi
from servers.hub import Hub
from servers.server import Request
from starlette.responses import Response

from xrun.errors import CheckpointCorrupt, LaunchError, LeaseLost, StoreError, StoreUnavailable
from xrun.store.directory.commits import head_of
from xrun.store.hub import api as api_module
from xrun.store.hub.branch import checked_line
from xrun.store.hub.store import HubStore, stored_files
from xrun.store.protocol import Head, Store, StoredFile

# The library's own use of httpx and of hf_xet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning"),
]

REPO = "alice/digits"
COMMIT = r"POST .*/commit/state"


class Clock:
    """A time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub. The library reads HF_HUB_OFFLINE once, when it is imported, which was long
    ago."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with Hub(tmp_path / "hub") as hub:
        hub.clock = clock
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


Opener = Callable[..., HubStore]


@pytest.fixture
def attempt(hub: Hub, clock: Clock, tmp_path: Path) -> Opener:
    """Opens the run's store as an attempt, each one on an empty machine of its own."""

    def opened(
        name: str = "a1",
        *,
        form: str = "hub",
        run: str = "digits-1",
        repo: str = REPO,
        **options: Any,
    ) -> HubStore:
        settings = {
            "token": hub.token("alice"),
            "clock": clock,
            "sleep": clock.sleep,
            "patience": 60.0,
            **options,
        }
        cache = settings.pop("cache", tmp_path / f"cache-{name}")
        return HubStore(f"{form}://{repo}", run, name, f"{name}@host", cache, **settings)

    return opened


@pytest.fixture(params=["hub", "hub-bucket"])
def form(request: pytest.FixtureRequest) -> str:
    """Where the bulk lies."""
    return request.param


@pytest.fixture(params=["xet", "lfs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How large files are sent."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go by LFS, which takes half the time."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


def own(name: str, content: bytes) -> bytes:
    """A file that says which attempt wrote it, as a checkpoint's do."""
    return b'{"attempt": "%b"}' % name.encode() + content


def saved(store: HubStore, parent: Head | None, *contents: bytes) -> tuple[Head, list[StoredFile]]:
    """Put these files and commit a record that names exactly them; without a parent, take the lease
    first."""
    parent = parent or store.commit({}, store.head())
    files = [store.put([content]) for content in contents]
    return store.commit({"files": [file.to_json() for file in files]}, parent), files


def files_of(head: Head | None) -> list[StoredFile]:
    return [StoredFile.from_json(file) for file in head.record["files"]] if head else []


def contents(store: HubStore) -> list[bytes]:
    """Every file of the newest head."""
    return [store.fetch(file).read_bytes() for file in files_of(store.head())]


def ours(hub: Hub, repo: str = REPO) -> list[str]:
    """The run's commits, newest first."""
    return [
        commit.title for commit in hub.history(repo, "state") if commit.title.startswith("Commit ")
    ]


def requests(hub: Hub, since: int = 0) -> list[str]:
    return [request.line for request in hub.requests[since:]]


def seen_now(hub: Hub) -> dict[str, Any]:
    """head.json as it is on the server."""
    return json.loads(hub.read(REPO, "head.json", "state"))


# What every store promises


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


@pytest.mark.parametrize("record", [{"loss": float("nan")}, {"x": object()}])
def test_a_record_that_json_cannot_say_is_refused(
    attempt: Opener, hub: Hub, record: dict[str, Any]
) -> None:
    """NaN and objects are errors before anything is sent."""
    store = attempt()
    assert store.head() is None
    with pytest.raises(StoreError, match="JSON"):
        store.commit(record, None)
    assert ours(hub) == []


def test_names_that_lead_elsewhere_are_refused(attempt: Opener, tmp_path: Path) -> None:
    """Attempts, addresses and places in a record cannot point outside of the store."""
    for name in ("../a", "", "a/b", "shared"):
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


# Answers that are lost, late or refused


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
    monkeypatch.setattr(api_module, "TIMEOUT", 0.2)
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
    monkeypatch.setattr(api_module, "TIMEOUT", 0.2)
    hub.faults.add("GET .*/refs", stall=60)
    hub.faults.add("GET .*/head.json", stall=60)
    assert attempt("a2").head() == head


# How often


def test_commits_keep_their_distance_whoever_makes_them(
    attempt: Opener, hub: Hub, clock: Clock, tmp_path: Path
) -> None:
    """30 s and at most 20 an hour here, over attempts, machines, lost answers and the finished
    model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    head: Head | None = None
    for name in ("a1", "a2", "a3"):
        store = attempt(name, hourly=20)
        head = store.head()
        for number in range(13):
            if number % 4 == 0:
                hub.faults.add(COMMIT, when="after")
            wait, asked = store.commit_delay(), clock()
            head = store.commit({}, head)
            assert clock() - asked >= wait
            if number % 6 == 5:
                store.publish(tmp_path / "model", "digits-1", "A model")
    dates = sorted(c.time for branch in ("main", "state") for c in hub.history(REPO, branch)[:-1])
    assert len(dates) == 39 + 1  # the same model again is no commit
    assert min(b - a for a, b in itertools.pairwise(dates)) >= 29  # git keeps whole seconds
    assert all(later - first >= 3599 for first, later in zip(dates, dates[20:], strict=False))


def test_a_wait_that_is_given_up_commits_nothing(attempt: Opener, hub: Hub) -> None:
    """Who has no time for the distance between commits says so through its sleep, and gets an error
    that means: not committed."""
    store = attempt(sleep=lambda seconds: True)
    head = store.commit({}, store.head())
    assert 0 < store.commit_delay() <= 30
    with pytest.raises(StoreError, match="too late") as error:
        store.commit({"again": 1}, head)
    assert not isinstance(error.value, StoreUnavailable)
    assert len(ours(hub)) == 1


# What is sent and what is kept


def sent(hub: Hub, since: int) -> int:
    """Bytes of all requests."""
    return sum(request.size for request in hub.requests[since:])


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


def test_content_that_others_may_write_waits_for_an_hour(
    attempt: Opener, hub: Hub, clock: Clock
) -> None:
    """A dropped file without an attempt's id in it is deleted for good when it is an hour old, and
    not before."""
    store = attempt()
    head, (file,) = saved(store, None, b"frozen")
    head, _ = saved(store, head, own("a1", b"one"))
    store.sweep()
    assert hub.stored_bytes(REPO) == file.size + len(own("a1", b"one"))
    clock.sleep(3000)
    store.sweep()
    assert hub.stored_bytes(REPO) == file.size + len(own("a1", b"one"))
    clock.sleep(601)
    store.sweep()
    assert hub.stored_bytes(REPO) == len(own("a1", b"one"))


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
    with pytest.raises(StoreError, match="to be deleted a moment ago"):
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


# Restoring


def test_a_restart_on_the_same_machine_downloads_nothing(
    attempt: Opener, hub: Hub, form: str
) -> None:
    """What the attempt before has sent or fetched lies in the run's cache, and is verified
    there."""
    store = attempt(form=form)
    head, files = saved(store, None, own("a1", b"one"), b"two")
    again = attempt("a2", form=form, cache=store.cache)
    assert again.head() == head
    since = len(hub.requests)
    again.fetch_soon(files)
    assert [again.fetch(file).read_bytes() for file in files] == [own("a1", b"one"), b"two"]
    assert requests(hub, since) == []


@pytest.mark.parametrize("damaged", [b"", b"on", b"onf", b"onexx"])
def test_a_damaged_file_in_the_cache_is_downloaded_again(
    attempt: Opener, form: str, damaged: bytes
) -> None:
    """A cached file that is cut, flipped or longer is never returned."""
    store = attempt(form=form)
    _, (file,) = saved(store, None, b"one")
    (store.cache / file.copies[0]).write_bytes(damaged)
    assert store.fetch(file).read_bytes() == b"one"


def test_files_are_fetched_at_the_same_time_and_once_per_machine(
    attempt: Opener, hub: Hub, lfs: None
) -> None:
    """Several files are under way together; of several processes of one machine one downloads, and
    all verify."""
    saved(attempt(), None, *(b"file %d" % number for number in range(4)))
    stores = [attempt("a2"), attempt("a2"), attempt("a2")]
    files = files_of(next(store.head() for store in stores))
    hub.faults.add("GET .*/objects/", stall=0.3, times=4)
    for store in stores:
        store.fetch_soon(files)
    assert [[store.fetch(file).read_bytes() for file in files] for store in stores] == [
        [b"file %d" % n for n in range(4)]
    ] * 3
    gets = [
        line
        for line in requests(hub)
        if line.startswith("GET") and "/objects/" in line and "/tree/" not in line
    ]
    assert len(gets) == 4


def test_a_file_that_is_wrong_or_gone_on_the_server_is_corrupt(
    attempt: Opener, hub: Hub, lfs: None
) -> None:
    """Then restore may fall back to the checkpoint before; with the network down it must not."""
    store = attempt()
    head, (file,) = saved(store, None, own("a1", b"one"))
    wrong = StoredFile("0" * 64, file.size, file.copies)
    with pytest.raises(CheckpointCorrupt, match="other content"):
        store.fetch(wrong)
    other = attempt("a2")
    assert other.head() == head
    hub.faults.add("HEAD .*/objects/", status=503, times=None)
    with pytest.raises(StoreUnavailable):
        other.fetch(file)
    hub.faults.clear()
    sha256 = Path(file.copies[0]).stem
    hub.repository(REPO).forget([sha256], rewrite=False)
    with pytest.raises(CheckpointCorrupt, match="is missing"):
        other.fetch(file)


@pytest.mark.parametrize(
    "fault", [{"truncate": 100}, {"cut": True, "when": "after"}, {"status": 503}], ids=str
)
def test_a_download_that_breaks_is_tried_again(
    attempt: Opener, hub: Hub, lfs: None, fault: dict[str, Any]
) -> None:
    """A transfer that goes wrong is not taken for a damaged file, and head.json not for a damaged
    head."""
    saved(attempt(), None, b"long" * 1000)
    hub.faults.add("GET .*/objects/.*safetensors", **fault)
    hub.faults.add("GET .*/head.json", **fault)
    store = attempt("a2")
    assert contents(store) == [b"long" * 1000]
    assert store.damaged == []


# Whether there is anything


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


# Who may


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


# The end of a run


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


# A machine that was believed dead


class Gates(Hub):
    """A Hub on which one attempt's next request of a kind stops, before or after its work, until
    somebody opens."""

    where = ""

    def gate(self, store: HubStore, where: str, after: bool) -> None:
        """Guard the requests that carry this attempt's token from now on."""
        self.token_held, self.after = (
            f"Bearer {self.token(('even', 'odd')[int(store.attempt[1:]) % 2])}",
            after,
        )
        self.arrived, self.opened = threading.Event(), threading.Event()
        self.where = where

    def respond(self, request: Request) -> Response:
        held = (
            self.where in request.line and request.headers.get("authorization") == self.token_held
            if self.where
            else False
        )
        if held:
            self.where = ""
        if held and not self.after:
            self.pause()
        response = super().respond(request)
        if held and self.after:
            self.pause()
        return response

    def pause(self) -> None:
        self.arrived.set()
        assert self.opened.wait(30)


WHERE = {
    "hub": [
        "objects/batch",
        "PUT /lfs",
        "commit/state",
        "commit/state",
        "lfs-files",
        "refs",
        "lfs-files/batch",
        "lfs-files/batch",
    ],
    "hub-bucket": ["batch", "commit/state", "tree/run-1", "refs"],
}
"""Where an attempt is held."""


@pytest.mark.once
@pytest.mark.parametrize(("form", "races"), [("hub", 200), ("hub-bucket", 10)])
def test_a_zombie_overwrites_nothing(
    tmp_path: Path, clock: Clock, lfs: None, monkeypatch: pytest.MonkeyPatch, form: str, races: int
) -> None:
    """200 times an attempt is held at some request of a save while its successor takes over and
    saves the same step.

    Then it goes on. Whatever it was about to do: commits follow one another without a gap, none
    that was acknowledged is lost, after the lease none is the zombie's, and what the head names is
    whole.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    rng = random.Random(3)
    with Gates(tmp_path / "hub") as hub, ThreadPoolExecutor(1) as thread:
        hub.clock = clock
        hub.organisations = {"team": {"odd", "even"}}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        acknowledged: list[str] = []

        def opened(number: int) -> HubStore:
            options: dict[str, Any] = {
                "clock": clock,
                "sleep": clock.sleep,
                "spacing": 0.0,
                "hourly": 1e6,
            }
            token = hub.token(("even", "odd")[number % 2])
            return HubStore(
                f"{form}://team/run",
                "run-1",
                f"a{number}",
                "me",
                tmp_path / "cache",
                token=token,
                **options,
            )

        def committed(store: HubStore, record: dict[str, Any], parent: Head | None) -> Head:
            head = store.commit(record, parent)
            acknowledged.append(head.id)
            return head

        def save(store: HubStore, head: Head) -> Head:
            """Two are kept. A part of each says who wrote it; the other's bytes come again every
            third step, within the hour."""
            step = head.record.get("step", 0) + 1
            pair = [store.put([own(store.attempt, b"%d" % step)]), store.put([b"%d" % (step % 3)])]
            kept = [*head.record.get("kept", []), [file.to_json() for file in pair]]
            head = committed(store, {"step": step, "kept": kept[-2:]}, head)
            store.sweep()
            return head

        zombie = opened(0)
        head = save(zombie, committed(zombie, {}, zombie.head()))
        for race in range(1, races + 1):
            hub.gate(zombie, rng.choice(WHERE[form]), rng.random() < 0.3)
            saving = thread.submit(save, zombie, head)
            while not hub.arrived.wait(0.001) and not saving.done():
                pass
            successor = opened(race)
            found = successor.head()
            assert found is not None
            theirs = save(successor, committed(successor, found.record, found))
            hub.opened.set()
            parent = head if saving.exception() else saving.result()
            with pytest.raises(LeaseLost):
                save(zombie, parent)
            zombie, head = successor, theirs
            assert opened(race).head() == head
            whole(hub, form, head)
        chain = heads(hub)
        assert [head.number for head in chain] == list(range(len(chain), 0, -1))
        assert [head.parent for head in chain] == [*(head.id for head in chain[1:]), ""]
        assert set(acknowledged) <= {head.id for head in chain}
        assert len(acknowledged) >= 2 * races


def heads(hub: Hub) -> list[Head]:
    """Every head that was ever committed, newest first."""
    repository = hub.repository("team/run")
    trees = [repository.tree(commit.id) for commit in hub.history("team/run", "state")[:-1]]
    return [head_of(repository.blob(tree["head.json"].oid).removesuffix(b"\n")) for tree in trees]


def whole(hub: Hub, form: str, head: Head) -> None:
    """The server has the content of everything that the head names."""
    places = {place for pair in head.record["kept"] for file in pair for place in file["copies"]}
    if form == "hub":
        repository = hub.repository("team/run")
        assert all(repository.large(Path(place).stem) for place in places)
    else:
        assert (
            places
            <= json.loads((hub.root / "buckets" / "team--run.json").read_text())["files"].keys()
        )


# The process around it

SMOKE = """
import os, pathlib, sys
from xrun.store.hub.store import HubStore, stored_files
folder, expected = sys.argv[1:]
cache = pathlib.Path(folder) / "cache"
store = HubStore("hub://alice/digits", "digits-1", "a1", "me", cache, spacing=0)
head = store.commit({}, store.head())
file = store.put([b"weights" * 10000])
store.commit({"file": file.to_json()}, head)
other = HubStore("hub://alice/digits", "digits-1", "a2", "me", pathlib.Path(folder) / "elsewhere")
other.head()
assert other.fetch(file).read_bytes() == b"weights" * 10000
assert not {"torch", "numpy"} & sys.modules.keys()
print("done")
"""

MEMORY = """
import os, pathlib, sys
from xrun.store.hub.store import HubStore, stored_files
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
folder = pathlib.Path(sys.argv[1])
store = HubStore("hub://alice/digits", "digits-1", "a1", "me", folder / "cache", spacing=0)
head = store.commit({}, store.head())
store.put([b"warm" * 1000])
chunk = bytes(bytearray(b"x") * (16 << 20))
before = peak()
file = store.put(chunk for _ in range(8))
head = store.commit({"file": file.to_json()}, head)
other = HubStore("hub://alice/digits", "digits-1", "a2", "me", folder / "elsewhere")
other.head()
other.fetch(file)
print(file.size, peak() - before)
"""


def run_python(code: str, hub: Hub, *args: str, **environ: str) -> str:
    env = {**os.environ, **hub.environ("alice"), **environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code, *args], env=env, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_a_process_of_its_own_with_and_without_xet(hub: Hub, tmp_path: Path, disabled: str) -> None:
    """The token and the endpoint come from the environment, and torch is not needed."""
    assert run_python(SMOKE, hub, str(tmp_path), "x", HF_HUB_DISABLE_XET=disabled) == "done\n"
    if disabled == "1":
        assert not [line for line in requests(hub) if "/cas/" in line]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to see a process's memory"
)
def test_memory_stays_flat_while_a_large_file_is_sent_and_fetched(hub: Hub, tmp_path: Path) -> None:
    """128 MB in chunks are hashed, sent, fetched and verified with less than 64 MB of memory of
    their own."""
    size, growth_kb = map(
        int, run_python(MEMORY, hub, str(tmp_path), HF_HUB_DISABLE_XET="1").split()
    )
    assert size == 128 << 20
    assert growth_kb < 64 << 10
