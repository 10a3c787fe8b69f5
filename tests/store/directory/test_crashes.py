"""What is left of a store when its writers are killed, race each other, or come back from the dead.

Children are forked, so that one costs milliseconds; where a moment matters, an audit hook in the
child stops or kills it at exactly that system call.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xrun.errors import LeaseLost, StoreUnavailable, XrunError
from xrun.store.directory.store import DirectoryStore
from xrun.store.protocol import Head, StoredFile

fork = multiprocessing.get_context("fork")


def attempt(root: Path, name: str) -> DirectoryStore:
    return DirectoryStore(root, "digits-1", name, f"{name}@host", clock=lambda: 1.5)


def names(*files: StoredFile) -> dict[str, Any]:
    return {"files": [file.to_json() for file in files]}


def files_of(head: Head | None) -> list[StoredFile]:
    return [StoredFile.from_json(file) for file in head.record.get("files", [])] if head else []


def whole_head(root: Path) -> Head:
    """Return the head as a new reader finds it, after reading every byte that it names."""
    store = attempt(root, "reader")
    head = store.head()
    assert head is not None
    for file in files_of(head):
        assert store.fetch(file).stat().st_size == file.size
    assert store.damaged == []
    return head


def in_child(work: Callable[[], object]) -> int:
    """Fork, do the work, and return the child's process id; what the child raises is printed and
    becomes exit status 1."""
    child = os.fork()
    if child:
        return child
    signal.alarm(60)  # ends a child that hangs
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def status_of(child: int) -> int:
    """Return a child's exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Races


def test_of_two_that_replace_the_same_head_exactly_one_wins(tmp_path: Path) -> None:
    """In each of 200 races between two processes one commit succeeds, the other is told who won,
    and no number is lost."""
    rounds, barrier, wins = 200, fork.Barrier(2), fork.Array("i", 200 * 2)
    attempt(tmp_path, "a0").commit({}, None)

    def race(me: int) -> None:
        store = attempt(tmp_path, f"a{me + 1}")
        for number in range(rounds):
            parent = store.head()
            barrier.wait(30)
            wins[2 * number + me] = commits(store, parent, f"attempt a{2 - me} of")
            barrier.wait(30)

    children = [in_child(partial(race, me)) for me in range(2)]
    assert [status_of(child) for child in children] == [0, 0]
    assert [wins[2 * number] + wins[2 * number + 1] for number in range(rounds)] == [1] * rounds
    assert whole_head(tmp_path).number == rounds + 1


def commits(store: DirectoryStore, parent: Head | None, winner: str) -> bool:
    try:
        store.commit({}, parent)
    except LeaseLost as error:
        if winner not in str(error):
            raise
        return False
    return True


# Attempts that were believed dead


class Paused:
    """A forked child that stops where its audit hook sees `event` with `text` in its first
    arguments, until it is let go."""

    def __init__(self, event: str, text: str, work: Callable[[], object]) -> None:
        told, self._tell = os.pipe()
        self._said, say = os.pipe()
        stopped: list[str] = []

        def stop(name: str, args: tuple[Any, ...]) -> None:
            if name == event and text in str(args[:2]) and not stopped:
                stopped.append(name)
                os.write(say, b"s")
                os.read(told, 1)

        def hooked() -> None:
            sys.addaudithook(stop)
            work()

        self._child = in_child(hooked)
        os.close(say)
        assert os.read(self._said, 1) == b"s", "the child never came to that moment"

    def let_go(self) -> int:
        os.write(self._tell, b"g")
        return status_of(self._child)


@pytest.mark.parametrize("sweeps", [True, False])
@pytest.mark.parametrize("moment", [("open", "commits/.z."), ("os.link", "commits/.z.")])
def test_a_commit_that_was_asleep_loses(
    tmp_path: Path, moment: tuple[str, str], sweeps: bool
) -> None:
    """An attempt that slept inside commit, while a successor made 40 commits and swept its number
    away, cannot commit."""
    zombie = attempt(tmp_path, "z")
    parent = head = zombie.commit({}, None)

    def work() -> None:
        with pytest.raises(LeaseLost, match="attempt a2 of a2@host"):
            zombie.commit({"mine": True}, parent)

    asleep = Paused(*moment, work)
    successor = attempt(tmp_path, "a2")
    for number in range(40):
        head = successor.commit({"number": number}, head)
        if sweeps:
            successor.sweep()
    assert (tmp_path / "commits" / "00000002.json").exists() != sweeps
    assert asleep.let_go() == 0
    assert whole_head(tmp_path) == head
    assert successor.commit({}, head).number == 42


def test_a_sweep_that_was_asleep_deletes_nothing_of_its_successor(tmp_path: Path) -> None:
    """An attempt that slept inside sweep, before its first deletion, deletes nothing that the
    successor has committed since."""
    zombie = attempt(tmp_path, "z")
    head = zombie.commit({}, None)
    kept, dropped = zombie.put([b"kept"]), zombie.put([b"dropped"])
    head = zombie.commit(names(kept, dropped), head)
    zombie.commit(names(kept), head)
    asleep = Paused("os.remove", "objects/z", zombie.sweep)
    successor = attempt(tmp_path, "a2")
    head = successor.commit(
        names(kept, successor.put([b"new"]), successor.put([b"dropped"])), successor.head()
    )
    successor.put([b"not committed yet"])
    assert asleep.let_go() == 0
    assert whole_head(tmp_path) == head
    assert len(list((tmp_path / "objects" / "a2").iterdir())) == 3
    assert not (tmp_path / dropped.copies[0]).exists()


def test_an_attempt_that_was_taken_over_can_hurt_nothing(tmp_path: Path) -> None:
    """Whatever a zombie puts, duplicates, sweeps or commits, its successor's head and every file of
    it stay as they were."""
    zombie = attempt(tmp_path, "z")
    head = zombie.commit({}, None)
    shared = zombie.put([b"shared"])
    old = zombie.commit(names(shared), head)
    successor = attempt(tmp_path, "a2")
    head = successor.commit(names(shared, successor.put([b"new"])), old)
    writing = successor.put([b"not committed yet"])
    zombie.put([b"shared"])
    zombie.put([b"new"])
    zombie.duplicate(shared)
    zombie.sweep()
    for parent in (old, head, None):
        if parent != head:
            with pytest.raises(LeaseLost, match="attempt a2 of a2@host"):
                zombie.commit({}, parent)
    assert whole_head(tmp_path) == head
    assert successor.fetch(writing).read_bytes() == b"not committed yet"
    successor.sweep()
    assert len(list((tmp_path / "objects" / "z").iterdir())) == 1


# Commits that nobody could confirm


def test_a_commit_that_could_not_be_confirmed_is_recognised(tmp_path: Path) -> None:
    """If the disk fails between the link and its sync the outcome is unknown, nothing is swept, and
    the same parent goes on."""
    assert status_of(in_child(partial(commit_while_the_disk_fails, tmp_path))) == 0
    assert whole_head(tmp_path).number == 4


def commit_while_the_disk_fails(root: Path) -> None:
    store, failing = attempt(root, "a1"), [False]
    head = store.commit({}, None)
    old = store.put([b"old"])
    head = store.commit(names(old), head)

    def fail(event: str, args: tuple[Any, ...]) -> None:
        if failing[0] and event == "open" and str(args[0]).endswith("/commits"):
            raise OSError(errno.EIO, "Input/output error")

    sys.addaudithook(fail)
    failing[0] = True
    with pytest.raises(StoreUnavailable, match="whether commit 3 is durable"):
        store.commit(names(store.put([b"new"])), head)
    failing[0] = False
    store.sweep()
    assert store.fetch(old).read_bytes() == b"old"
    with pytest.raises(LeaseLost):
        attempt(root, "a1").commit({}, head)
    assert store.commit(names(old), head).number == 4


# Kills


def train(root: Path, name: str, acknowledge: Callable[[Head], object]) -> None:
    """Do what a training does to its store, for as long as it is let: put, duplicate, commit,
    sweep."""
    store, chance = attempt(root, name), random.Random(name)
    head = store.commit({**(store.head() or names_nothing()).record, "attempt": name}, store.head())
    while True:
        acknowledge(head)
        new = [store.put([chance.randbytes(chance.randrange(300_000))]) for _ in range(2)]
        kept = files_of(head)[-2:]
        head = store.commit(names(*[store.duplicate(file) for file in kept], *new), head)
        store.sweep()


def say_number(pipe: int, head: Head) -> None:
    os.write(pipe, b"%8d" % head.number)


def names_nothing() -> Head:
    return Head(0, "", "", "", "", "", 0.0, {})


def spin_until(moment: float) -> None:
    while time.perf_counter() < moment:
        pass


@pytest.mark.once
def test_sigkill_at_any_moment_leaves_the_last_commit(tmp_path: Path) -> None:
    """After each of 80 kills at random moments every acknowledged commit is there and every file of
    the head is whole."""
    chance = random.Random(0)
    for kill in range(80):
        said, say = os.pipe()
        child = in_child(partial(train, tmp_path, f"k{kill}", partial(say_number, say)))
        os.close(say)
        heard = os.read(said, 8)
        started = time.perf_counter()
        for _ in range(chance.randrange(1, 4)):
            heard = os.read(said, 8)
        spin_until(time.perf_counter() + chance.random() * (time.perf_counter() - started))
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        acknowledged = int((heard + os.read(said, 1 << 16))[-8:])
        os.close(said)
        assert whole_head(tmp_path).number in (acknowledged, acknowledged + 1)
    assert whole_head(tmp_path).number > 160  # so most kills struck after the lease was taken


@pytest.mark.once
def test_sigkill_before_every_single_call_leaves_the_last_commit(tmp_path: Path) -> None:
    """Killed before its 1st, 2nd, 3rd ... file operation, a new run comes up with nothing or its
    last commit, never an error."""
    found = set()
    for count in range(1, 100):
        root = tmp_path / str(count)
        assert status_of(in_child(partial(train_until, root, count))) == -signal.SIGKILL
        head = attempt(root, "reader").head()
        found.add(head and whole_head(root).number)
        if head:
            again = attempt(root, "a2").commit(head.record, head)
            attempt(root, "a2").sweep()
            assert whole_head(root) == again
            assert not list(root.glob("*/.*")) + list(root.glob("objects/a1/.*"))
    assert {None, 1, 2, 3} <= found


def train_until(root: Path, count: int) -> None:
    left = [count]

    def strike(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.listdir") and str(
            root
        ) in str(args):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(strike)
    train(root, "a1", lambda head: None)


# Any order of calls


class AnyOrder(RuleBasedStateMachine):
    """The store against a model: a dictionary of what the newest record names. Old attempts stay
    alive as zombies."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name) / "state"
        self.zombies: list[tuple[DirectoryStore, Head | None]] = []
        self.contents: dict[str, bytes] = {}
        self.lives = 0

    @initialize()
    def start(self) -> None:
        self.store = attempt(self.root, "l0")
        self.head = self.store.commit(names(), None)

    @rule(contents=st.lists(st.binary(max_size=3), max_size=3), keep=st.integers(0, 4))
    def save(self, contents: list[bytes], keep: int) -> None:
        """Commit new files and the last few of the old ones; what the head has already is not put
        again."""
        old = files_of(self.head)[-keep:] if keep else []
        have = {self.contents[file.hash] for file in old}
        new = []
        for content in sorted(set(contents) - have):
            new.append(self.store.put([content]))
            self.contents[new[-1].hash] = content
        self.head = self.store.commit(names(*old, *new), self.head)

    @rule()
    def duplicate(self) -> None:
        """Give every file a second copy."""
        twice = [self.store.duplicate(file) for file in files_of(self.head)]
        assert all(
            len({(self.root / copy).stat().st_ino for copy in file.copies}) == 2 for file in twice
        )
        self.head = self.store.commit(names(*twice), self.head)

    @rule()
    def sweep(self) -> None:
        """Afterwards, of the current attempt nothing lies there that the head does not name."""
        self.store.sweep()
        named = {copy for file in files_of(self.head) for copy in file.copies}
        own = {
            f"objects/{self.store.attempt}/{path.name}"
            for path in self.root.glob(f"objects/{self.store.attempt}/*")
        }
        assert own <= named

    @rule()
    def fail(self) -> None:
        """A save that was given up between put and commit."""
        self.store.put([b"never committed"])

    @rule(takes=st.booleans())
    def reopen(self, takes: bool) -> None:
        """A new attempt takes the run over, or the same one is opened again in another process."""
        self.lives += takes
        if takes:
            self.zombies.append((self.store, self.head))
        self.store = attempt(self.root, f"l{self.lives}")
        if takes:
            self.head = self.store.commit(self.head.record, self.store.head())

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0, 9), content=st.binary(max_size=3), sweeps=st.booleans())
    def wake_a_zombie(self, which: int, content: bytes, sweeps: bool) -> None:
        """It puts, duplicates what it knew, perhaps sweeps, and loses its commit."""
        zombie, head = self.zombies[which % len(self.zombies)]
        new = zombie.put([content])
        for file in files_of(head):
            with_reason(partial(zombie.duplicate, file))
        if sweeps:
            zombie.sweep()
        with pytest.raises(LeaseLost):
            zombie.commit(names(new), head)

    @invariant()
    def is_what_the_model_says(self) -> None:
        if not hasattr(self, "head"):
            return
        reader = attempt(self.root, "reader")
        assert reader.head() == self.head
        assert [reader.fetch(file).read_bytes() for file in files_of(self.head)] == [
            self.contents[file.hash] for file in files_of(self.head)
        ]

    def teardown(self) -> None:
        self.folder.cleanup()


def with_reason(call: Callable[[], object]) -> None:
    """What a zombie may be told: that its files were swept."""
    try:
        call()
    except XrunError as error:
        if "is missing" not in str(error):
            raise


AnyOrder.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnyOrder = AnyOrder.TestCase
