"""A run's store in a bucket: what it costs in requests and in space, and that nobody's machine
overwrites another one's. What every store promises is in tests/store/test_conformance.py.

Covers `xrun.store.bucket.model`.
"""

from __future__ import annotations

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.bad_way import Answer, BadWay
from support.buckets import Server
from support.conformance import begun, contents, files_of, names, saved
from xrun.errors import LeaseLost
from xrun.store.address import Address
from xrun.store.bucket.client import BucketClient
from xrun.store.bucket.model import BucketModel
from xrun.store.bucket.store import BucketStore
from xrun.store.directory.commits import KEPT
from xrun.store.protocol import Head, Publisher, StopRequests, Store

from .conftest import Opener

pytestmark = pytest.mark.once


def test_a_commit_is_two_requests(attempt: Opener, way: BadWay) -> None:
    """The number is taken, and it is the highest; a look is two, a sweep at most three."""
    store = attempt()
    head = begun(store)
    since = len(way.lines)
    head = store.commit({"number": 2}, head)
    assert [line.split()[0] for line in way.lines[since:]] == ["PUT", "GET"]
    since = len(way.lines)
    assert attempt("a2").head() == head
    assert [line.split()[0] for line in way.lines[since:]] == ["GET", "GET"]
    store.put([b"never named"])
    since = len(way.lines)
    store.sweep()
    assert [line.split()[0] for line in way.lines[since:]] == ["GET", "GET", "POST"]


def test_the_space_is_bounded(attempt: Opener, s3: Server, place: str) -> None:
    """Two checkpoints are kept, and attempts are killed in the middle of a save: never more than
    the two, the one that is written and what a killed attempt has left; few commits."""
    chance, state = random.Random(0), 5000
    for life in range(8):
        store = attempt(f"a{life}")
        head = begun(store)
        for step in range(3):
            new = store.put([b"%d %d" % (life, step), bytes(state - 4)])
            assert size(s3, place, "objects/") <= (2 + 2) * state, (life, step)
            if chance.random() < 0.3:
                break  # killed before the commit
            kept = [*files_of(head)[-1:], new]
            head = store.commit(names(*kept), head)
            if chance.random() < 0.5:
                break  # killed before the sweep
            store.sweep()
    commits = [key for key in s3.objects(place) if key.startswith("commits/")]
    assert len(commits) <= KEPT + 2


def size(s3: Server, place: str, below: str) -> int:
    return sum(size for key, size in s3.objects(place).items() if key.startswith(below))


def test_old_commits_go(attempt: Opener, s3: Server, place: str) -> None:
    """All but the newest, at the next sweep."""
    store = attempt()
    head = begun(store)
    for number in range(KEPT + 5):
        head = store.commit({"number": number}, head)
    store.sweep()
    assert sorted(s3.objects(place)) == [
        f"commits/{number:08}.json" for number in range(head.number - KEPT + 1, head.number + 1)
    ]


def test_a_sweep_deletes_nothing_once_the_run_is_another_ones(
    attempt: Opener, way: BadWay, s3: Server, place: str
) -> None:
    """Its successor came while it listed what is there: it looks who has the head after that."""
    store = attempt()
    saved(store, begun(store), b"kept")
    store.put([b"forgotten"])
    successor = attempt("a2", environ=s3.environ)
    came: list[Head] = []

    def come(line: str) -> None:
        if "objects%2F" in line and not came:
            found = successor.head()
            assert found is not None
            came.append(successor.commit(found.record, found))

    way.met = come
    before = s3.objects(place).keys()
    store.sweep()
    assert came
    assert s3.objects(place).keys() - before == {f"commits/{came[0].number:08}.json"}
    assert before <= s3.objects(place).keys()


def test_what_was_fetched_is_not_fetched_again(attempt: Opener, way: BadWay) -> None:
    """A restart on the same machine reads it from there, and verifies it."""
    store = attempt()
    head = saved(store, begun(store), b"x" * 3000)
    other = attempt("a2")
    other.fetch_soon(files_of(head))
    assert contents(other) == [b"x" * 3000]
    again = attempt("a2")
    since = way.count("GET .*/objects/")
    path = again.fetch(files_of(head)[0])
    assert way.count("GET .*/objects/") == since
    path.write_bytes(b"damaged")
    assert contents(again) == [b"x" * 3000]


def test_the_finished_model_lies_below_the_run(
    attempt: Opener, s3: Server, place: str, tmp_path: Path
) -> None:
    """In its own folder, with nothing of an older one; the same files are the same revision."""
    store = attempt()
    begun(store)
    model = tmp_path / "model"
    (model / "more").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "more" / "empty").write_bytes(b"")
    first = store.publish(model, "digits-1", "digits-1: 5 steps")
    assert store.publish(model, "digits-1", "again") == first
    (model / "more" / "empty").rename(model / "config.json")
    assert store.publish(model, "digits-1", "another one") != first
    found = {key: size for key, size in s3.objects(place).items() if key.startswith("model/")}
    assert found == {"model/config.json": 0, "model/model.safetensors": 7}
    client = BucketClient(Address.parse(place), environ=s3.environ)
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "old").touch()
    assert BucketModel(client).fetch(tmp_path / "back")
    back = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert back == {"config.json": b"", "model.safetensors": b"weights"}
    assert not BucketModel(client).fetch(tmp_path / "none", "xrun")
    store.drop_history()


def test_it_is_what_is_asked_for(attempt: Opener) -> None:
    """Wherever a store, a publisher or somebody who hears is."""
    store: Store = attempt()
    listening: StopRequests = attempt()
    assert isinstance(store, Publisher)
    assert not listening.asked_to_stop()


WHERE = ["PUT .*/objects/", "PUT .*/commits/", "GET .*commits%2F", "GET .*objects%2F", "POST "]
"""Where a zombie is held."""


class Gate(BadWay):
    """A way on which the next request of a kind stops, before or after its work, until somebody
    opens. `overwritten` are the objects that were written where one was."""

    where = ""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.there, self.overwritten = set[str](), list[str]()

    def hold(self, where: str) -> None:
        self.arrived, self.opened = threading.Event(), threading.Event()
        self.where = where

    def met(self, line: str) -> None:

        if self.where and re.search(self.where, line):
            self.where = ""
            self.arrived.set()
            assert self.opened.wait(30)

    def ask(self, line: str, headers: list[tuple[str, str]], body: bytes, stale: bool) -> Answer:
        answer = super().ask(line, headers, body, stale)
        method, path = line.split(" ", 1)
        if method == "POST" and answer[0] == 200:
            bucket = path.partition("?")[0]
            self.there -= {f"{bucket}/{key}" for key in re.findall("<Key>(.+?)</Key>", f"{body!r}")}
        elif method == "PUT" and answer[0] == 200:
            self.overwritten += [path] if path in self.there else []
            self.there.add(path)
        return answer


@pytest.mark.parametrize("races", [15, pytest.param(200, marks=pytest.mark.soak)])
def test_a_zombie_overwrites_nothing(attempt: Opener, s3: Server, place: str, races: int) -> None:
    """Many times an attempt is held at some request of a save while its successor takes over and
    saves, one time or forty times.

    Then it goes on. Whatever it was about to do: none that was acknowledged is lost, after the
    lease none is the zombie's, and what the head names is whole.
    """
    chance = random.Random(3)
    with Gate(s3.url) as way, ThreadPoolExecutor(1) as thread:

        def save(store: BucketStore, head: Head) -> Head:
            file = store.put([b"{%s}" % store.attempt.encode(), b"%d" % head.number * 300])
            head = store.commit(names(*files_of(head)[-1:], file), head)
            store.sweep()
            return head

        zombie = attempt("z000", environ=s3.at(way.url))
        head = save(zombie, begun(zombie))
        for race in range(1, races + 1):
            way.hold(chance.choice(WHERE))
            saving = thread.submit(save, zombie, head)
            while not way.arrived.wait(0.001) and not saving.done():
                pass
            successor = attempt(f"z{race:03}", environ=s3.at(way.url))
            theirs = save(successor, begun(successor))
            for _ in range(KEPT + 2 if chance.random() < 0.1 else 0):
                theirs = save(successor, theirs)
            way.opened.set()
            parent = head if saving.exception() else saving.result()
            with pytest.raises(LeaseLost):
                save(zombie, parent)
            zombie, head = successor, theirs
            reader = attempt("reader", environ=s3.environ)
            assert reader.head() == head
            assert all(reader.fetch(file).stat().st_size == file.size for file in files_of(head))
    found = s3.objects(place)
    assert len([key for key in found if "objects/" in key]) <= 6
    assert way.overwritten == []
    assert way.there == {f"/{place.removeprefix('s3://')}/{key}" for key in found}
