"""What a machine has fetched, whole and once. Covers `xrun.store.cache`."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from loopback.hub import Hub
from support.hub_store import (
    HUB_WARNINGS,
    REPO,
    Clock,
    Opener,
    contents,
    files_of,
    own,
    requests,
    saved,
)
from xrun.errors import CheckpointCorrupt, StoreUnavailable
from xrun.store.hub.store import HubStore
from xrun.store.protocol import StoredFile

pytestmark = HUB_WARNINGS


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


class WithoutRanges(Hub):
    """A server that answers with a whole file where a part was asked for."""

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [header for header in scope.get("headers", []) if header[0] != b"range"]
        await super().serve({**scope, "headers": headers}, receive, send)


CONTENT = random.Random(0).randbytes(9000)


def stored_in_blocks(store: HubStore) -> StoredFile:
    """A committed file that is larger than many blocks."""
    head = store.commit({}, store.head())
    file = store.put([b'{"attempt": "a1"}', CONTENT], blocks=True)
    store.commit({"files": [file.to_json()]}, head)
    return file


def part(store: HubStore, file: StoredFile, begin: int, end: int) -> bytes:
    """These bytes as the store fetches them."""
    with store.fetch_ranges(file, [(begin, end)]).open("rb") as content:
        content.seek(begin)
        return content.read(end - begin)


def test_a_server_that_reads_no_parts_is_read_whole(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, lfs: None
) -> None:
    """What it answers is not taken for the part."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with WithoutRanges(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        opened = [
            HubStore(
                f"hub://{REPO}",
                "digits-1",
                name,
                name,
                tmp_path / name,
                token=hub.token("alice"),
                clock=clock,
                sleep=clock.sleep,
                block=640,
            )
            for name in ("a1", "a2")
        ]
        file = stored_in_blocks(opened[0])
        assert part(opened[1], file, 2000, 3000) == (b'{"attempt": "a1"}' + CONTENT)[2000:3000]
        assert opened[1].fetch_ranges(file, [(0, 1)]).stat().st_size == file.size


def test_blocks_come_once_to_a_machine(attempt: Opener, hub: Hub, lfs: None) -> None:
    """Of several processes one downloads each block, into one file; who comes later reads the
    machine's disk. What lies wrong there is downloaded again, and all of it goes with the
    checkpoint."""
    file, whole = stored_in_blocks(attempt(block=640)), b'{"attempt": "a1"}' + CONTENT
    stores = [attempt("a2", block=640) for _ in range(3)]
    since = len(hub.requests)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda store: part(store, file, 2000, 3000), stores))
    assert found == [whole[2000:3000]] * 3
    asked = [r.headers["range"] for r in hub.requests[since:] if "/objects/" in r.path]
    assert sorted(asked) == ["bytes=1920-2559", "bytes=2560-3199"]
    path = stores[0].fetch_ranges(file, [(0, 1)])
    assert path == stores[0].cache / f"{file.copies[0]}.part"
    with path.open("r+b") as content:
        content.seek(2100)
        content.write(b"????")
    assert part(stores[1], file, 2000, 3000) == whole[2000:3000]
    later = attempt("a3", cache=stores[0].cache)
    later.commit({}, later.head())
    later.sweep()
    assert not path.exists()
