"""What one process reads of a checkpoint that any number of processes saved in shards, of every
store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.buckets import Server, moto
from support.conformance import begun, names
from support.hub_store import HUB_WARNINGS
from support.worlds import BucketWorld, FolderWorld, HubWorld, bucket_world, hub_world
from xrun.checkpoint import tensor_file
from xrun.checkpoint.share import ALL, Share, fetch_soon, fetched, needed
from xrun.checkpoint.tensor_file import TensorReader
from xrun.errors import CheckpointCorrupt, CheckpointError
from xrun.run.checkpoint import Checkpoint
from xrun.run.record import RunRecord
from xrun.store.protocol import StoredFile

pytestmark = [*HUB_WARNINGS, pytest.mark.once]
ROWS = 4001
BLOCK = 16_384
OurWorld = FolderWorld | BucketWorld | HubWorld
WEIGHT, MOMENT = (
    torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
)
NUMBERS = itertools.count(1)
STEP = torch.tensor(7.0)


def shard(share: Share, tensor: Tensor) -> Tensor:
    low, high = share.rows(len(tensor))
    return tensor[low:high].contiguous()


def put(world: OurWorld, size: int, *, blocks: bool = True) -> list[StoredFile]:
    """The files of a checkpoint that so many processes have saved."""
    store, files = world.open("a1"), []
    head = store.head() or begun(store)
    for rank in range(size):
        share = Share(rank, size)
        model = {"model.w": shard(share, WEIGHT)}
        step = {"optimizer.w.step": STEP} if not rank else {}
        moments = {**step, "optimizer.w.exp_avg": shard(share, MOMENT)}
        for tensors in (model, moments):
            rows = {
                name: (share.rows(ROWS)[0], (ROWS, 64)) for name in tensors if "step" not in name
            }
            chunks = [
                tensor_file.header(tensors, rows, "a1"),
                *map(tensor_file.bytes_of, tensors.values()),
            ]
            files.append(store.put(chunks, blocks=blocks))
    checkpoint = Checkpoint(7, files={f"{n}": file for n, file in enumerate(files)})
    store.commit({**RunRecord(checkpoints=(checkpoint,)).to_json(), **names(*files)}, head)
    return files


def small_blocks(world: OurWorld) -> OurWorld:
    """Of which a rank's rows have many."""
    world.block = BLOCK
    return world


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with moto() as server:
        yield server


@pytest.fixture(params=["folder", "hub", "hub-bucket", "s3"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OurWorld]:
    """An empty place of each kind."""
    if request.param == "folder":
        yield small_blocks(FolderWorld(tmp_path))
    elif request.param == "s3":
        server = request.getfixturevalue("s3")
        with bucket_world(tmp_path, server, f"bucket-{next(NUMBERS)}") as world:
            yield small_blocks(world)
    else:
        with hub_world(tmp_path, request.param, monkeypatch) as world:
            yield small_blocks(world)


def read_by(world: OurWorld, files: list[StoredFile], share: Share) -> tuple[int, list[Tensor]]:
    """How many bytes one process reads from the store, on a machine of its own, and what it has
    then: its rows and the step."""
    store = world.open(f"r{next(NUMBERS)}")
    assert store.head() is not None
    before = world.read()
    paths = [fetched(store, file, share) for file in files]
    read = world.read() - before
    low, high = share.rows(ROWS)
    own = [torch.empty(high - low, 64), torch.empty(high - low, 64), torch.empty(())]
    reader = TensorReader(paths, share)
    for name, tensor in zip(("model.w", "optimizer.w.exp_avg"), own, strict=False):
        reader.fill(name, tensor, (low, (ROWS, 64)))
    reader.fill("optimizer.w.step", own[2], (0, ()))
    return read, own


@pytest.mark.parametrize(("saved", "restored"), [(4, 2), (1, 3)])
def test_a_process_reads_its_own_rows(world: OurWorld, saved: int, restored: int) -> None:
    """Bit by bit, and at most 1.2 times their bytes, but for the blocks that each file begins and
    each range ends in."""
    files = put(world, saved)
    for rank in range(restored):
        share = Share(rank, restored)
        read, own = read_by(world, files, share)
        wanted = [shard(share, WEIGHT), shard(share, MOMENT), STEP]
        assert all(map(torch.equal, own, wanted))
        needs = sum(tensor.nbytes for tensor in wanted)
        assert read <= 1.2 * needs + 3 * BLOCK * len(files)
        assert read < 0.8 * sum(file.size for file in files)


def test_one_process_reads_everything(world: OurWorld) -> None:
    """Of whatever number that has saved."""
    _, own = read_by(world, put(world, 4), ALL)
    assert all(map(torch.equal, own, [WEIGHT, MOMENT, STEP]))


def test_only_whose_rows_are_damaged_finds_it(world: OurWorld) -> None:
    """The last byte of a file belongs to the last process."""
    files = put(world, 2)
    world.damage_file(files[-1], lose=False)
    _, own = read_by(world, files, Share(0, 2))
    assert torch.equal(own[1], shard(Share(0, 2), MOMENT))
    with pytest.raises(CheckpointCorrupt):
        read_by(world, files, Share(1, 2))


def test_an_older_checkpoint_is_read_whole(world: OurWorld) -> None:
    """Each process reads and verifies all of it, and has its own rows."""
    files = put(world, 2, blocks=False)
    _, own = read_by(world, files, Share(1, 3))
    assert torch.equal(own[0], shard(Share(1, 3), WEIGHT))
    world.damage_file(files[-1], lose=False)
    with pytest.raises(CheckpointCorrupt):
        read_by(world, files, Share(0, 3))


def test_rows_that_nobody_verified_are_never_taken(tmp_path: Path) -> None:
    """A model that asks for others than its process has read ends with a sentence."""
    world = FolderWorld(tmp_path)
    files, share = put(world, 1), Share(0, 2)
    store = world.open("r")
    reader = TensorReader([fetched(store, file, share) for file in files], share)
    with pytest.raises(CheckpointError, match=r"model\.w: rows 0 to 4001 .* rows 0 to 2001"):
        reader.fill("model.w", torch.empty(ROWS, 64), (0, (ROWS, 64)))


def test_what_is_begun_early_is_not_read_again(tmp_path: Path, s3: Server) -> None:
    """While torch is imported each process of a sharded run reads its own part; of others the first
    one of a machine begins with all, and the rest with nothing."""
    with bucket_world(tmp_path, s3, f"bucket-{next(NUMBERS)}") as place:
        world = small_blocks(place)
        files, share = put(world, 4), Share(1, 2)
        store = world.open("r")
        before = world.read()
        fetch_soon(store, ALL, first=False)
        assert world.read() == before
        fetch_soon(store, share, first=False)
        read = world.read() - before
        assert 0 < read < 0.8 * sum(file.size for file in files)
        for file in files:
            fetched(store, file, share)
        assert world.read() - before == read


def test_shares_are_torchs_chunks() -> None:
    """Also where there are fewer rows than processes."""
    for count in (1, 2, 7, 1001):
        for size in (1, 2, 3, 4, 8):
            chunks = [len(chunk) for chunk in torch.arange(count).chunk(size)]
            shares = [Share(rank, size).rows(count) for rank in range(size)]
            assert [high - low for low, high in shares] == [*chunks, *[0] * (size - len(chunks))]


def test_what_is_no_shard_is_needed_whole() -> None:
    """And of a shard the rows that both have; a tensor without elements has none."""
    told = {
        "__metadata__": {"rows": '{"a": [4, [10, 2]], "none": [10, [10, 2]]}'},
        "step": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "a": {"dtype": "F32", "shape": [4, 2], "data_offsets": [4, 36]},
        "none": {"dtype": "F32", "shape": [0, 2], "data_offsets": [36, 36]},
    }
    ranges = [list(needed(told, 100, Share(rank, 2))) for rank in range(2)]
    assert [[each for each in one if each[0] < each[1]] for one in ranges] == [
        [(100, 104), (104, 112)],
        [(100, 104), (112, 136)],
    ]
