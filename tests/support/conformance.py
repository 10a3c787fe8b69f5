"""What every store promises, whoever made it: one suite, run against each of them.

A store of somebody else's passes it in the same way: write a `World`, which opens the store as an
attempt and knows how to damage what lies there, and call each of `everything()` with an empty one
(docs/stores.md). Nothing here looks into a store but through its protocol and its world.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from xrun.errors import CheckpointCorrupt, LeaseLost, StoreError, StoreUnavailable
from xrun.store.protocol import Head, StopRequests, Store, StoredFile


class FullStore(Store, StopRequests, Protocol):
    """A store as an attempt has it."""


class World(Protocol):
    """One empty place for a run's state, and what can happen to it."""

    def open(self, attempt: str, run: str = "digits-1") -> FullStore:
        """The run's store as this attempt has it, on a machine of its own."""

    def damaged_commit(self, number: int) -> None:
        """A commit of this number is there, and is damaged."""

    def lose_commits(self) -> None:
        """Every commit is gone, the files are there."""

    def damage_file(self, file: StoredFile, *, lose: bool) -> None:
        """Change a file's last byte, or lose it."""

    def files(self) -> int:
        """How many files lie there, named or not."""

    def read(self) -> int:
        """How many bytes of files have been read from there so far, by whatever counts them."""

    def trouble(self, kind: str) -> bool:
        """The next request for which that is possible goes wrong in this way; False where nothing
        like it can happen. Kinds: those of `TROUBLES`."""

    def peace(self) -> None:
        """Nothing goes wrong any more."""


TROUBLES = (
    "commit not done",
    "commit done, answer lost",
    "commit done, answer cut",
    "file not done",
    "file done, answer lost",
    "look refused",
    "look cut",
    "look stale",
    "file read short",
    "file read cut",
    "slow",
)
LONG = random.Random(0).randbytes(100_000)
"""What a file of many blocks holds."""
Promise = Callable[[World], None]
PROMISES: list[Promise] = []


def promise(check: Promise) -> Promise:
    """Part of the suite."""
    PROMISES.append(check)
    return check


def names(*files: StoredFile) -> dict[str, Any]:
    """A record that names exactly these files."""
    return {"files": [file.to_json() for file in files]}


def files_of(head: Head | None) -> list[StoredFile]:
    """The files of such a record."""
    return [StoredFile.from_json(file) for file in head.record.get("files", [])] if head else []


def begun(store: Store) -> Head:
    """The run's first commit, or the next one of its newest head: the lease."""
    head = store.head()
    return store.commit(head.record if head else {}, head)


def saved(store: Store, parent: Head, *contents: bytes) -> Head:
    """A commit that names exactly these files; contents say who wrote them."""
    own = [b'{"attempt": "%b"}' % parent.attempt.encode() + content for content in contents]
    return store.commit(names(*[store.put([content]) for content in own]), parent)


def contents(store: Store) -> list[bytes]:
    """Every file of the newest head, without the mark of who wrote it."""
    return [
        store.fetch(file).read_bytes().partition(b"}")[2] or b"" for file in files_of(store.head())
    ]


@promise
def what_was_committed_comes_back(world: World) -> None:
    """On another machine: the same head, and every file byte for byte, in whatever pieces."""
    store = world.open("a1")
    assert store.head() is None
    head = begun(store)
    grid = memoryview(bytes(range(12))).cast("B", (3, 4))
    chunks = [b"ab", b"", memoryview(b"12345678").cast("d"), grid, bytes(2500)]
    files = [store.put(chunks), store.put([]), store.put([b"small"])]
    head = store.commit(names(*files), head)
    other = world.open("a2")
    assert other.head() == head
    assert (head.number, head.attempt, head.run, head.owner) == (2, "a1", "digits-1", "a1@host")
    assert files_of(head) == files
    other.fetch_soon(files[:2])
    found = [other.fetch(file).read_bytes() for file in files]
    assert found == [b"ab12345678" + bytes(range(12)) + bytes(2500), b"", b"small"]


@promise
def the_lease_comes_before_the_first_file(world: World) -> None:
    """Files without any commit would look like a run whose commits are gone."""
    with pytest.raises(StoreError):
        world.open("a1").put([b"x"])
    assert world.open("a2").head() is None
    assert begun(world.open("a1")).number == 1


@promise
def a_file_is_invisible_until_it_is_committed(world: World) -> None:
    """And one that never was is gone after the next sweep, as is one that a commit has dropped."""
    store = world.open("a1")
    head = saved(store, begun(store), b"one")
    store.put([b'{"attempt": "a1"} forgotten'])
    assert store.head() == head
    head = saved(store, head, b"two", b"three")
    store.sweep()
    assert contents(world.open("a2")) == [b"two", b"three"]
    assert world.files() == 2


@promise
def of_two_that_replace_the_same_head_one_wins(world: World) -> None:
    """Many times; the other one is told, and no number is lost."""
    head = begun(world.open("a0"))
    stores = [world.open("a1"), world.open("a2")]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(8):
            gate = threading.Barrier(2)

            def race(store: Store, parent: Head = head, gate: threading.Barrier = gate) -> object:
                assert store.head() == parent
                gate.wait(30)
                try:
                    return store.commit({}, parent)
                except LeaseLost as error:
                    return error

            ends = list(threads.map(race, stores))
            won = [end for end in ends if isinstance(end, Head)]
            assert len(won) == 1, ends
            assert won[0].number == head.number + 1
            head = won[0]
    assert world.open("a3").head() == head


@promise
def a_machine_that_was_believed_dead_can_hurt_nothing(world: World) -> None:
    """Whatever it puts, sweeps or commits, its successor's head and every file of it stay."""
    zombie = world.open("a1")
    old = saved(zombie, begun(zombie), b"shared")
    successor = world.open("a2")
    head = successor.commit(old.record, successor.head())
    new = successor.put([b'{"attempt": "a2"}new'])
    head = successor.commit(names(*files_of(old), new), head)
    writing = successor.put([b'{"attempt": "a2"}not committed yet'])
    zombie.put([b'{"attempt": "a1"}shared'])
    zombie.sweep()
    for parent in (old, None):
        with pytest.raises(LeaseLost, match=r"attempt a2 of a2@host|taken over"):
            zombie.commit({}, parent)
    zombie.sweep()
    assert world.open("a3").head() == head
    assert contents(world.open("a3")) == [b"shared", b"new"]
    head = successor.commit(names(new, writing), head)
    successor.sweep()
    assert contents(world.open("a4")) == [b"new", b"not committed yet"]
    assert world.files() == 2


@promise
def an_old_number_that_is_free_again_is_no_way_back(world: World) -> None:
    """After forty commits of a successor, which have swept the zombie's number away."""
    zombie = world.open("a1")
    old = begun(zombie)
    successor = world.open("a2")
    head = begun(successor)
    for number in range(40):
        head = successor.commit({"number": number}, head)
    successor.sweep()
    with pytest.raises(LeaseLost):
        zombie.commit({"mine": True}, old)
    assert world.open("a3").head() == head
    assert successor.commit({}, head).number == head.number + 1


@promise
def a_damaged_commit_is_skipped_and_said(world: World) -> None:
    """The one before is the head, and its number is not used again."""
    store = world.open("a1")
    first = saved(store, begun(store), b"one")
    world.damaged_commit(first.number + 1)
    other = world.open("a2")
    assert other.head() == first
    assert len(other.damaged) == 1
    assert contents(other) == [b"one"]
    assert other.commit(first.record, first).number == first.number + 2
    assert contents(world.open("a3")) == [b"one"]


@promise
def state_without_a_commit_is_never_an_empty_store(world: World) -> None:
    """It is an error and not None, which would start the run again."""
    store = world.open("a1")
    saved(store, begun(store), b"one")
    world.lose_commits()
    with pytest.raises((CheckpointCorrupt, StoreUnavailable)):
        world.open("a2").head()
    with pytest.raises((CheckpointCorrupt, StoreError)):
        world.open("a2").commit({}, None)


@promise
def a_damaged_file_is_never_taken_for_what_was_committed(world: World) -> None:
    """Nor is one that is gone; the others can still be read."""
    store = world.open("a1")
    head = saved(store, begun(store), b"damaged" * 300, b"lost", b"whole")
    damaged, lost, whole = files_of(head)
    world.damage_file(damaged, lose=False)
    world.damage_file(lost, lose=True)
    other = world.open("a2")
    assert other.head() == head
    for file in (damaged, lost):
        with pytest.raises(CheckpointCorrupt):
            other.fetch(file)
    assert other.fetch(whole).read_bytes().endswith(b"whole")


@promise
def a_part_of_a_file_is_read_without_the_rest(world: World) -> None:
    """Wherever it lies: its bytes are right, and no more is read than the blocks that cover it,
    which nobody reads again on the same machine."""
    store, content = world.open("a1"), LONG
    head = begun(store)
    file = store.put([b'{"attempt": "a1"}', content], blocks=True)
    store.commit(names(file), head)
    other = world.open("a2")
    assert files_of(other.head()) == [file]
    assert 0 < file.block <= 1000, "the world opens its stores with small blocks"
    whole = b'{"attempt": "a1"}' + content
    for ranges in ([(0, 8)], [(5000, 5001), (99_000, 99_400)], [(len(whole) - 1, len(whole))], []):
        before = world.read()
        path = other.fetch_ranges(file, ranges)
        assert world.read() - before <= 10_000
        assert path.stat().st_size == len(whole)
        with path.open("rb") as found:
            for begin, end in ranges:
                found.seek(begin)
                assert found.read(end - begin) == whole[begin:end]
    assert other.fetch(file).read_bytes() == whole, "what was not read is not taken for the file"


@promise
def damage_disturbs_those_who_read_it_and_nobody_else(world: World) -> None:
    """A changed byte is found by whoever reads its block, and so is what is gone."""
    store = world.open("a1")
    head = begun(store)
    damaged, lost = (
        store.put([b'{"attempt": "a1"}%b' % name, LONG], blocks=True) for name in (b"1", b"2")
    )
    store.commit(names(damaged, lost), head)
    world.damage_file(damaged, lose=False)
    world.damage_file(lost, lose=True)
    other = world.open("a2")
    assert other.head() is not None
    with other.fetch_ranges(damaged, [(0, 50_000)]).open("rb") as found:
        assert found.read(50_000) == (b'{"attempt": "a1"}1' + LONG)[:50_000]
    for file in (damaged, lost):
        with pytest.raises(CheckpointCorrupt):
            other.fetch_ranges(file, [(file.size - 1, file.size)])


@promise
def a_file_without_blocks_is_read_whole(world: World) -> None:
    """As all were that an older xrun wrote: what is returned is the whole file, and damage is found
    wherever it is. A short file needs none."""
    store = world.open("a1")
    head = begun(store)
    whole, damaged = (
        store.put([b'{"attempt": "a1"}%b' % name, LONG[:9000]]) for name in (b"1", b"2")
    )
    short = store.put([b"short"], blocks=True)
    assert whole.blocks == short.blocks == ()
    head = store.commit(names(whole, short, damaged), head)
    world.damage_file(damaged, lose=False)
    other = world.open("a2")
    assert other.head() == head
    found = other.fetch_ranges(whole, [(0, 1)]).read_bytes()
    assert found == b'{"attempt": "a1"}1' + LONG[:9000]
    assert other.fetch_ranges(short, [(0, 1)]).read_bytes() == b"short"
    with pytest.raises(CheckpointCorrupt):
        other.fetch_ranges(damaged, [(0, 1)])


@promise
def another_run_is_refused(world: World) -> None:
    """Whoever reads and names no run takes what is there."""
    head = begun(world.open("a1"))
    with pytest.raises(StoreError, match="digits-1"):
        world.open("a2", run="digits-2").head()
    assert world.open("reader", run="").head() == head


@promise
def only_the_attempt_that_is_asked_hears_it(world: World) -> None:
    """The one that had the head when it was asked, once; one that follows goes on."""
    first, second = world.open("a1"), world.open("a2")
    assert world.open("reader").ask_to_stop() == ""
    head = begun(first)
    assert not first.asked_to_stop()
    assert world.open("reader").ask_to_stop() == "a1"
    second.commit({}, head)
    assert first.asked_to_stop()
    assert not first.asked_to_stop()
    assert not second.asked_to_stop()


@promise
def a_commit_is_made_once_whatever_becomes_of_its_answer(world: World) -> None:
    """Not done, done and its answer lost, done and its answer cut, seen late: after it there is one
    more commit, by this attempt, and the next one goes on from it."""
    store = world.open("a1")
    head = begun(store)
    for kind in TROUBLES[:3]:
        for more in ("", "look stale", "look refused", "look cut"):
            if world.trouble(kind) and more:
                world.trouble(more)
            made = persistent(store, {"kind": kind, "more": more}, head)
            world.peace()
            assert made.number > head.number
            assert made.record == {"kind": kind, "more": more}
            head = made
    assert world.open("a2").head() == head


@promise
def files_come_whole_whatever_becomes_of_a_transfer(world: World) -> None:
    """Not taken, taken and not said, read short, cut in the middle."""
    store = world.open("a1")
    head = begun(store)
    for number, kind in enumerate(TROUBLES[3:5]):
        world.trouble(kind)
        head = saved(store, head, b"%d" % number * 3000)
        world.peace()
        assert contents(world.open(f"b{number}")) == [b"%d" % number * 3000]
    for number, kind in enumerate(("file read short", "file read cut", "look cut", "slow")):
        reader = world.open(f"c{number}")
        world.trouble(kind)
        assert contents(reader) == [b"1" * 3000]
        world.peace()
    file = store.put([b'{"attempt": "a1"}', LONG], blocks=True)
    store.commit(names(file), head)
    for number, kind in enumerate(("file read short", "file read cut", "slow")):
        reader = world.open(f"d{number}")
        assert reader.head() is not None
        world.trouble(kind)
        with reader.fetch_ranges(file, [(50_000, 52_000)]).open("rb") as found:
            found.seek(50_000)
            assert found.read(2000) == (b'{"attempt": "a1"}' + LONG)[50_000:52_000]
        world.peace()


def persistent(store: Store, record: dict[str, Any], parent: Head) -> Head:
    """A commit that is tried again while nobody can tell."""
    for _ in range(10):
        try:
            return store.commit(record, parent)
        except StoreUnavailable:
            continue
    raise AssertionError("the store cannot tell for ever")


@dataclass
class Schedule:
    """Random saves, sweeps, successors, zombies and troubles from one seed, against a model of what
    must be there: the newest acknowledged commit and its files."""

    world: World
    seed: int
    kept: list[bytes] = field(default_factory=list)
    zombies: list[tuple[FullStore, Head]] = field(default_factory=list)
    lives: int = 0

    def run(self, steps: int = 8) -> None:
        """Play it; raises AssertionError."""
        self.chance = random.Random(self.seed)
        self.store = self.world.open("l00")
        self.head = begun(self.store)
        for number in range(steps):
            if self.chance.random() < 0.5:
                self.world.trouble(self.chance.choice(TROUBLES))
            self.chance.choice([self.save, self.save, self.succeed, self.wake, self.forget])(number)
            self.world.peace()
            reader = self.world.open(f"r{number}")
            assert reader.head() == self.head, (self.seed, number)
            assert contents(reader) == self.kept, (self.seed, number)
        self.store.sweep()
        assert self.world.files() <= len(self.kept), self.seed

    def save(self, number: int) -> None:
        """A checkpoint: new files beside some of the old ones."""
        old = files_of(self.head)[-1:]
        content = b"%d " % number + self.chance.randbytes(self.chance.randrange(3000))
        content = content.replace(b"}", b"]")
        file = self.file(content)
        self.head = persistent(self.store, names(*old, file), self.head)
        self.kept = [*self.kept[-1:], content]
        self.store.sweep()

    def file(self, content: bytes) -> StoredFile:
        """Put one, again while nobody can tell."""
        for _ in range(10):
            try:
                own = self.store_name().encode()
                return self.store.put([b'{"attempt": "%b"}' % own + content])
            except StoreUnavailable:
                continue
        raise AssertionError("the store takes no file")

    def store_name(self) -> str:
        return f"l{self.lives:02}"

    def succeed(self, number: int) -> None:
        """Another attempt takes the run over."""
        self.zombies.append((self.store, self.head))
        self.lives += 1
        self.store = self.world.open(self.store_name())
        for _ in range(10):
            try:
                found = self.store.head()
                self.head = self.store.commit(found.record if found else {}, found)
                assert found is not None, "the run has begun anew"
            except (LeaseLost, StoreUnavailable):  # an old answer, or nobody can tell
                self.lives += 1
                self.store = self.world.open(self.store_name())
                continue
            return
        raise AssertionError("nobody can take the run over")

    def wake(self, number: int) -> None:
        """A machine that was believed dead goes on with what it was about to do."""
        for zombie, head in self.zombies[-2:]:
            with suppress(StoreUnavailable):
                new = zombie.put([b'{"attempt": "zombie"}%d' % number])
                zombie.sweep()
                with pytest.raises(LeaseLost):
                    zombie.commit(names(new), head)
            zombie.sweep()

    def forget(self, number: int) -> None:
        """A save that was given up between put and commit."""
        self.file(b"never committed")
        self.store.sweep()


def everything(schedules: int = 20) -> list[Promise]:
    """The whole suite, each to be called with an empty world of its own: every promise, and so many
    random schedules (`make soak` plays 500)."""

    def played(seed: int) -> Promise:
        def any_schedule_ends_where_the_model_says(world: World) -> None:
            Schedule(world, seed).run()

        any_schedule_ends_where_the_model_says.__name__ += f"_{seed}"
        return any_schedule_ends_where_the_model_says

    return [*PROMISES, *map(played, range(schedules))]
