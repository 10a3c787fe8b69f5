"""What a store promises to everybody who saves and restores, checked on real folders and real
processes.

Covers `xrun.store.protocol`, `xrun.store.directory.commits` and `xrun.store.durable`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_128

from support.paths import WITH_SUPPORT
from xrun.errors import CheckpointCorrupt, LeaseLost, StoreError, StoreUnavailable
from xrun.store.directory.store import DirectoryStore
from xrun.store.protocol import (
    Duplicating,
    Head,
    Publisher,
    RateLimited,
    StopRequests,
    Store,
    StoredFile,
    copies_named,
)


def attempt(root: Path, name: str = "a1", run: str = "digits-1") -> DirectoryStore:
    return DirectoryStore(root, run, name, f"{name}@host", clock=lambda: 1.5)


def saved(store: Store, parent: Head | None, *contents: bytes) -> tuple[Head, list[StoredFile]]:
    """Put these files and commit a record that names exactly them; without a parent, take the lease
    first."""
    parent = parent or store.commit({}, None)
    files = [store.put([content]) for content in contents]
    return store.commit({"files": [file.to_json() for file in files]}, parent), files


def files_of(head: Head | None) -> list[StoredFile]:
    return [StoredFile.from_json(file) for file in head.record["files"]] if head else []


def objects(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in (root / "objects").rglob("*") if path.is_file()}


def commit_file(root: Path, number: int) -> Path:
    return root / "commits" / f"{number:08}.json"


def test_what_was_committed_comes_back(tmp_path: Path) -> None:
    """Another process that opens the folder finds the same head, and every file byte for byte."""
    root = tmp_path / "deep" / "state"
    store = attempt(root)
    assert store.head() is None
    assert not root.exists()
    first = store.commit({"attempts": ["a1"]}, None)
    head, files = saved(store, first, b"weights" * 1000, b"")
    assert attempt(root, "a2").head() == head
    assert (head.number, head.parent, head.attempt, head.owner, head.time) == (
        2,
        first.id,
        "a1",
        "a1@host",
        1.5,
    )
    assert [attempt(root, "a2").fetch(file).read_bytes() for file in files_of(head)] == [
        b"weights" * 1000,
        b"",
    ]
    assert files_of(head) == files


def test_only_the_attempt_that_is_asked_hears_it(tmp_path: Path) -> None:
    """The one that had the head when it was asked, once; one that follows goes on."""
    root = tmp_path / "state"
    first, second = attempt(root), attempt(root, "a2")
    assert first.ask_to_stop() == ""
    head = first.commit({}, None)
    assert not first.asked_to_stop()
    assert attempt(root, "reader").ask_to_stop() == "a1"
    second.commit({}, head)
    assert not second.asked_to_stop()
    assert first.asked_to_stop()
    assert not first.asked_to_stop()


def test_any_contiguous_buffer_is_a_chunk(tmp_path: Path) -> None:
    """Chunks of every element type and shape, empty ones too, are written as their bytes, in order,
    over slice borders."""
    grid = memoryview(bytes(range(12))).cast("B", (3, 4))
    chunks: list[Any] = [b"ab", b"", memoryview(b"12345678").cast("d"), grid, bytes(9 << 20)]
    store = attempt(tmp_path)
    store.commit({}, None)
    path = store.fetch(store.put(chunks))
    assert path.read_bytes() == b"ab12345678" + bytes(range(12)) + bytes(9 << 20)


def test_bytes_from_any_place_in_memory_are_written(tmp_path: Path) -> None:
    """Chunks that begin with a page, and go to the disk from where they are, among others that do
    not, of any lengths."""
    store = attempt(tmp_path)
    store.commit({}, None)
    numbers = random.Random(0)
    for _ in range(30):
        chunks: list[memoryview] = []
        for _ in range(numbers.randrange(1, 5)):
            size = numbers.choice([0, 1, 4095, 4096, 8192, 70_000, 9 << 20])
            memory = memoryview(mmap.mmap(-1, size + 4096))
            memory[:] = numbers.randbytes(len(memory))
            start = numbers.choice([0, 0, 0, 4096, 17])
            chunks.append(memory[start : start + size])
        file = store.put(chunks)
        assert file.hash == xxh3_128(b"".join(chunks)).hexdigest()
        assert store.fetch(file).read_bytes() == b"".join(chunks)


def test_a_file_that_was_put_is_invisible_until_it_is_committed(tmp_path: Path) -> None:
    """Putting changes no head, and a file that never got committed is gone after the next sweep."""
    store = attempt(tmp_path)
    head, kept = saved(store, None, b"kept")
    store.put([b"forgotten"])
    assert store.head() == head
    store.sweep()
    assert objects(tmp_path) == set(kept[0].copies)


def test_stored_files_survive_json_and_newer_keys() -> None:
    """A record written by a newer xrun, with keys unknown to this one, still names its files."""
    file = StoredFile("ab" * 32, 7, ("objects/a1/x", "objects/a2/x"))
    assert StoredFile.from_json({**file.to_json(), "colour": "red"}) == file
    assert list(copies_named({"a": [{"b": file.to_json()}], "copies": 3})) == list(file.copies)


def test_a_part_is_read_from_the_copy_that_has_it(tmp_path: Path) -> None:
    """A bad block in one copy: who needs it gets another, who does not need it the first one, which
    stays where it is. Bad in both, it is said where."""
    store = DirectoryStore(tmp_path / "state", "run", "a1", "me", block=640)
    head = store.commit({}, None)
    content = b"0123456789" * 200
    file = store.duplicate(store.put([content], blocks=True))
    store.commit({"files": [file.to_json()]}, head)
    first, second = (store.root / copy for copy in file.copies)
    first.write_bytes(content[:1300] + b"?" + content[1301:])
    assert store.fetch_ranges(file, [(0, 1280)]) == first
    assert store.fetch_ranges(file, [(1299, 1300)]) == second
    assert first.exists()
    second.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointCorrupt, match=r"other content in bytes 1280 to 1920.* 1999 bytes"
    ):
        store.fetch_ranges(file, [(1290, 1291)])
    assert store.fetch_ranges(file, [(0, 1), (1999, 2000)]) == first


def damages(content: bytes) -> Iterator[bytes]:
    """Every truncation, one flipped bit in every byte, something appended, and zeros of the same
    length."""
    yield from (content[:length] for length in range(len(content)))
    for place, byte in enumerate(content):
        yield content[:place] + bytes([byte ^ 1 << place % 8]) + content[place + 1 :]
    yield content + b"\n"
    yield bytes(len(content))


def test_a_damaged_commit_is_skipped_and_said(tmp_path: Path) -> None:
    """However the newest commit file is damaged, the one before is the head, and its number is not
    used again."""
    store = attempt(tmp_path)
    first, _ = saved(store, None, b"one")
    second, _ = saved(store, first, b"two")
    path = commit_file(tmp_path, second.number)
    reader, whole = attempt(tmp_path, "a2"), path.read_bytes()
    for damaged in damages(whole):
        path.write_bytes(damaged)
        assert reader.head() == first
        assert reader.damaged == [path.name]
    assert reader.commit({}, first).number == 4
    assert path.exists()


def test_an_attempt_whose_commit_was_damaged_does_not_go_on(tmp_path: Path) -> None:
    """Who committed what is damaged now must not build on it, and must not sweep by it."""
    store = attempt(tmp_path)
    head, _ = saved(store, None, b"one")
    head, files = saved(store, head, b"two")
    commit_file(tmp_path, 3).write_bytes(b"{}\n")
    store.sweep()
    assert files[0].copies[0] in objects(tmp_path)
    with pytest.raises(LeaseLost, match=r"00000003\.json"):
        store.commit({}, head)


@pytest.mark.parametrize("loss", ["damaged", "deleted", "folder deleted", "only quarantine left"])
def test_state_without_a_valid_commit_is_never_an_empty_store(tmp_path: Path, loss: str) -> None:
    """When there is state and no valid head, the answer is an error and not None, which would start
    the run again."""
    saved(attempt(tmp_path), None, b"one")
    for path in (tmp_path / "commits").iterdir():
        if loss == "damaged":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
    if "folder" in loss:
        (tmp_path / "commits").rmdir()
    if loss == "only quarantine left":
        (tmp_path / "objects" / "a1").rename(tmp_path / "quarantine")
    with pytest.raises(CheckpointCorrupt):
        attempt(tmp_path, "a2").head()
    with pytest.raises(CheckpointCorrupt):
        attempt(tmp_path, "a2").commit({}, None)


def test_an_attempt_killed_before_its_first_commit_leaves_an_empty_store(tmp_path: Path) -> None:
    """Folders and half-written temporary files alone mean that nothing was ever committed."""
    (tmp_path / "commits").mkdir()
    (tmp_path / "commits" / ".a1.77.x").write_bytes(b"{")
    (tmp_path / "objects" / "a1").mkdir(parents=True)
    (tmp_path / "objects" / "a1" / ".tmp-x").write_bytes(b"half")
    assert attempt(tmp_path, "a2").head() is None


@pytest.mark.parametrize("place", [".", "commits", "objects", "objects/a1"])
def test_a_folder_that_cannot_be_read_is_not_an_empty_store(tmp_path: Path, place: str) -> None:
    """A file where a folder should be (ENOTDIR stands for EIO, ESTALE and EACCES) means "cannot
    tell"."""
    root = tmp_path / "state"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_bytes(b"")
    with pytest.raises(StoreUnavailable):
        attempt(root).head()


def test_a_link_to_a_disk_that_is_not_there_is_not_an_empty_store(tmp_path: Path) -> None:
    """A folder that is reached through a dangling link, as when a disk is not mounted, means
    "cannot tell"."""
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    with pytest.raises(StoreUnavailable):
        attempt(tmp_path / "runs" / "digits-1" / "state").head()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    """A store never reads or continues another run's state."""
    attempt(tmp_path, run="cifar-2").commit({}, None)
    with pytest.raises(StoreError, match=r"cifar-2.*digits-1"):
        attempt(tmp_path).head()


def test_an_attempt_cannot_be_called_like_a_path(tmp_path: Path) -> None:
    """An attempt's name becomes a folder's, so it cannot lead out of the store."""
    for name in ("../a", "", ".a", "a/b"):
        with pytest.raises(StoreError):
            attempt(tmp_path, name)


def test_a_record_that_json_cannot_say_is_refused(tmp_path: Path) -> None:
    """An object is an error before anything is written, and none of the store's."""
    with pytest.raises(TypeError, match="JSON"):
        attempt(tmp_path).commit({"x": object()}, None)
    assert attempt(tmp_path).head() is None


def test_a_record_with_a_number_that_json_does_not_have_is_json(tmp_path: Path) -> None:
    """NaN and infinity are committed as strings, so that every reader of JSON reads the head."""
    record = {"metrics": {"a": float("nan"), "b": [float("-inf"), 1.5]}}
    attempt(tmp_path).commit(record, None)
    head = attempt(tmp_path).head()
    assert head is not None
    assert head.record == {"metrics": {"a": "NaN", "b": ["-Infinity", 1.5]}}


def test_every_damage_to_a_file_is_found_and_the_file_moved_away(tmp_path: Path) -> None:
    """A file that is cut, flipped, longer or missing is never returned; its bytes are kept in
    quarantine under a new name."""
    content = b"weights and biases"
    store = attempt(tmp_path)
    _, (file,) = saved(store, None, content)
    for count, damaged in enumerate(damages(content)):
        path = store.fetch(store.put([content]))
        path.write_bytes(damaged)
        with pytest.raises(
            CheckpointCorrupt, match=rf"{file.hash}.*quarantine/a1-{file.hash}-{count}\b"
        ):
            attempt(tmp_path, "a2").fetch(file)
        assert (tmp_path / "quarantine" / f"a1-{file.hash}-{count}").read_bytes() == damaged
    with pytest.raises(
        CheckpointCorrupt, match=rf"was damaged and is in quarantine/a1-{file.hash}-0"
    ):
        store.fetch(file)
    _, (other,) = saved(store, store.head(), b"never damaged")
    (tmp_path / other.copies[0]).unlink()
    with pytest.raises(CheckpointCorrupt, match="is missing"):
        store.fetch(other)


@pytest.mark.parametrize("broken", [0, 1])
def test_the_second_copy_is_used_and_can_be_made_again(tmp_path: Path, broken: int) -> None:
    """A duplicated file survives the loss of either copy, and duplicating again brings back two."""
    store = attempt(tmp_path)
    _, (file,) = saved(store, None, b"shared")
    twice = store.duplicate(file)
    assert len({(tmp_path / copy).stat().st_ino for copy in twice.copies}) == 2
    assert store.duplicate(twice) == twice
    (tmp_path / twice.copies[broken]).write_bytes(b"sharee")
    assert store.fetch(twice).read_bytes() == b"shared"
    assert len(list(tmp_path.glob("quarantine/*"))) == 1 - broken  # the first good copy is enough
    if broken:
        (tmp_path / twice.copies[1]).unlink()
    again = attempt(tmp_path, "a2").duplicate(twice)
    assert len(again.copies) == 2
    assert [(tmp_path / copy).read_bytes() for copy in again.copies] == [b"shared", b"shared"]


def test_a_bad_source_is_not_duplicated(tmp_path: Path) -> None:
    """The second copy is made from verified bytes only."""
    store = attempt(tmp_path)
    _, (file,) = saved(store, None, b"shared")
    (tmp_path / file.copies[0]).write_bytes(b"sharee")
    with pytest.raises(CheckpointCorrupt):
        store.duplicate(file)


def test_a_place_outside_the_store_is_not_read(tmp_path: Path) -> None:
    """A record cannot make fetch return, or move away, a file that is not the store's."""
    (tmp_path / "secret").write_bytes(b"x")
    store = attempt(tmp_path / "state")
    for place in (
        "../secret",
        "objects/../../secret",
        "objects/a1/../../../secret",
        str(tmp_path / "secret"),
    ):
        with pytest.raises(CheckpointCorrupt, match="not a place"):
            store.fetch(StoredFile("0" * 64, 1, (place,)))
    assert (tmp_path / "secret").exists()


def test_sweep_keeps_what_the_head_names_and_newest_commits(tmp_path: Path) -> None:
    """A long run keeps the head's files, 32 commit files and nothing that earlier attempts left."""
    first = attempt(tmp_path)
    head, old = saved(first, None, b"old", b"frozen")
    (tmp_path / "objects" / "a1" / ".tmp-x").write_bytes(b"half")
    (tmp_path / "commits" / ".a1.77.x").write_bytes(b"{")
    (tmp_path / "objects" / "stranger").mkdir()
    (tmp_path / "objects" / "stranger" / "x").write_bytes(b"of a successor, perhaps")
    store = attempt(tmp_path, "a2")
    for number in range(40):
        new = store.put([b"%d" % number])
        head = store.commit({"files": [old[1].to_json(), new.to_json()]}, head)
        store.sweep()
    assert objects(tmp_path) == {*old[1].copies, *new.copies, "objects/stranger/x"}
    assert sorted(path.name for path in (tmp_path / "commits").iterdir()) == [
        f"{n:08}.json" for n in range(11, 43)
    ]
    later = attempt(tmp_path, "a3")
    later.commit({"files": [new.to_json()]}, later.head())
    later.sweep()
    assert objects(tmp_path) == {*new.copies, "objects/stranger/x"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 4 MB."""
    place, mount, umount = tmp_path / "disk", shutil.which("mount"), shutil.which("umount")
    place.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if (
        not mount
        or not umount
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    yield place
    subprocess.run([umount, str(place)], check=True)


def fill_to_the_last_page(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_full_disk_loses_that_save_and_nothing_else(small_disk: Path) -> None:
    """The error says that the disk is full, the old head stays whole, nothing is left behind, and a
    sweep makes room again."""
    store = attempt(small_disk / "state")
    head, files = saved(store, None, b"x" * (1 << 20))
    lost = store.put([b"y" * (2 << 20)])
    with pytest.raises(
        StoreError, match=r"Disk full: no space left on .*; at least 2097152 bytes were needed"
    ):
        store.put([b"z" * (512 << 10)] * 4)
    assert objects(store.root) == {*files[0].copies, *lost.copies}
    fill_to_the_last_page(small_disk / "filler")
    with pytest.raises(StoreError, match="Disk full"):
        store.commit({"text": "t" * 100_000}, head)
    assert attempt(store.root, "a2").head() == head
    assert store.fetch(files[0]).read_bytes() == b"x" * (1 << 20)
    store.sweep()
    assert saved(store, head, b"z" * (1 << 20))[0] == store.head()


def test_the_first_commit_comes_before_the_first_file(tmp_path: Path) -> None:
    """A file is refused while nothing is committed: killed there, the run would look like one whose
    commits are gone."""
    with pytest.raises(StoreError, match="first commit"):
        attempt(tmp_path).put([b"x"])
    assert attempt(tmp_path).head() is None


def test_a_put_that_is_interrupted_leaves_no_file(tmp_path: Path) -> None:
    """If whoever produces the chunks fails, its error comes through and the temporary file is
    gone."""

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    store = attempt(tmp_path)
    store.commit({}, None)
    with pytest.raises(KeyboardInterrupt):
        store.put(chunks())
    assert objects(tmp_path) == set()


def run_python(code: str, *args: str, under: tuple[str, ...] = ()) -> str:
    env = {**os.environ, "PYTHONPATH": WITH_SUPPORT}
    command = [*under, sys.executable, "-c", code, *args]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.e2e
def test_everything_is_synced_before_the_commit_is_acknowledged(tmp_path: Path) -> None:
    """The kernel is asked, in this order, to sync the file, its name, the commit and its name; only
    then commit returns."""
    strace, log = shutil.which("strace"), tmp_path / "calls"
    assert strace, "strace is not installed (tests/cluster/packages.txt)"
    calls = "trace=fsync,link,linkat,rename,renameat,renameat2,write"
    under = (strace, "-f", "-y", "-s", "64", "-e", calls, "-o", str(log))
    run_python(COMMIT_AND_SAY_SO, str(tmp_path / "state"), under=under)
    wanted = [
        r"fsync(",
        "/objects/a1/.tmp-",
        r"rename",
        "/objects/a1/.tmp-",
        r"fsync(",
        "/objects/a1>",
        r"fsync(",
        "/commits/.a1.",
        r"link",
        "/commits/00000002.json",
        r"fsync(",
        "/commits>",
        r"write(1",
        "acknowledged",
    ]
    lines = iter(line for line in log.read_text().splitlines() if "= -1" not in line)
    for call, path in zip(wanted[::2], wanted[1::2], strict=True):
        assert any(call in line and path in line for line in lines), (
            f"{call} {path} did not come in its place"
        )


COMMIT_AND_SAY_SO = """
import os, sys, pathlib
from xrun.store.directory.store import DirectoryStore
store = DirectoryStore(pathlib.Path(sys.argv[1]), "r", "a1", "me")
head = store.commit({}, None)
store.commit({"file": store.put([b"weights"]).to_json()}, head)
os.write(1, b"acknowledged")
"""

MEMORY_OF_A_LARGE_FILE = """
import sys, pathlib
from xrun.store.directory.store import DirectoryStore
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
store = DirectoryStore(pathlib.Path(sys.argv[1]), "r", "a1", "me")
chunk = bytes(bytearray(b"x") * (32 << 20))
store.commit({}, None)
before = peak()
file = store.put(chunk for _ in range(8))
store.fetch(store.duplicate(file))
print(file.size, peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to see a process's memory"
)
def test_memory_stays_flat_while_a_large_file_is_written_and_verified(tmp_path: Path) -> None:
    """256 MB in 32 MB chunks are put, duplicated and fetched with less than 64 MB of memory of
    their own."""
    size, growth_kb = map(int, run_python(MEMORY_OF_A_LARGE_FILE, str(tmp_path)).split())
    assert size == 256 << 20
    assert growth_kb < 64 << 10


def test_the_protocol_is_what_the_folder_store_implements(tmp_path: Path) -> None:
    """A DirectoryStore can stand wherever a Store is asked for (checked by mypy, and here by its
    methods)."""
    store: Store = attempt(tmp_path)
    twice: Duplicating = attempt(tmp_path)
    asking: StopRequests = attempt(tmp_path)
    methods: list[Callable[..., object]] = [
        store.head,
        store.put,
        store.commit,
        store.fetch,
        store.sweep,
        twice.duplicate,
        asking.ask_to_stop,
        asking.asked_to_stop,
    ]
    assert not isinstance(store, Publisher | RateLimited), "a folder publishes nothing, at any rate"
    assert all(method.__doc__ for method in methods)
