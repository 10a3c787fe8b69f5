"""`micro_batch: auto` under real limits on a process's memory.

The file is also the program that the processes run: `python test_micro_batch.py FOLDER RANK SIZE
MEGABYTES...`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import default_collate

from support.paths import WITH_SUPPORT
from xrun.checkpoint.state import local
from xrun.data.loader import Fetch
from xrun.errors import TrainError
from xrun.recipe.schema import Train
from xrun.run.cost import sizes
from xrun.training.micro_batch import (
    find_micro_batch,
    find_sharded_micro_batch,
    limited_memory,
)
from xrun.training.objective import Objective
from xrun.training.sharding import shard
from xrun.training.world import World

GLOBAL = 48
PER_SAMPLE = 4 << 20
"""Bytes of one activation of one sample; four of them are alive at once, or somewhat more."""


class Wide(nn.Module):
    """A small model that needs a known number of bytes for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        wide = x[:, :1].expand(-1, PER_SAMPLE // 4) * self.weight[0]
        for _ in range(3):
            wide = wide.sin()
        return torch.stack([wide.mean(-1), x[:, 0] * self.weight[1]], -1)


class Data:
    """Five samples: fewer than a batch wants."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), float(index)), index % 2


class Stream:
    """The same as a stream of two shards, the first of which is held out as a whole."""

    num_shards = 2

    def shard(self, number: int) -> Any:
        return iter([torch.ones(3)] * 5 * number)

    def transform(self, example: Tensor) -> tuple[Tensor, int]:
        return example, 0


def find(world: World, split: Any = None, model: nn.Module | None = None) -> int:
    train = Train(steps=1, global_batch=GLOBAL)
    objective = Objective(model or Wide(), "classification")
    return find_micro_batch(
        train, objective, Fetch(split or Data(), 0), Accelerator(cpu=True), world
    )


def find_sharded(world: World) -> int:
    """Of a model that all processes hold together, which is afterwards what it was."""
    train = Train(steps=1, global_batch=GLOBAL, sharding="fsdp")
    objective = Objective(Wide(), "classification")
    shard(objective, train, "cpu")
    fetch, accelerator = Fetch(Data(), 0), Accelerator(cpu=True)
    found = find_sharded_micro_batch(train, objective, fetch, accelerator, world)
    assert all(bool((local(p) == 1).all()) and p.grad is None for p in objective.parameters())
    return found


def work(folder: Path, rank: int, size: int, megabytes: list[int]) -> None:
    """Under a hard limit that lets this rank allocate so many more bytes, look for the
    micro-batch."""
    torch.set_num_threads(1)
    world = World()
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
        )
        world = World(rank, size, dist.new_group(), dist.new_group())
    fits(1)  # threads and libraries take their memory first
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = (int(status["VmData"].split()[0]) << 10) + (megabytes[rank] << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        found: Any = find_sharded(world) if "SHARDED" in os.environ else find(world)
    except TrainError as error:
        found = str(error)
    after = resource.getrlimit(resource.RLIMIT_DATA)
    fitting = [number for number in sizes(GLOBAL, size) if fits(number)]
    (folder / f"{rank}.json").write_text(
        json.dumps([found, max(fitting, default=0), list(after) == [limit, limit]])
    )


def fits(size: int) -> bool:
    """Whether a step with so many samples can be computed, tried without any of xrun's search."""
    model = Objective(Wide(), "classification")
    try:
        x = torch.ones(size, 3)
        model((x, torch.zeros(size, dtype=torch.int64)))["loss"].backward()
        torch.optim.AdamW(model.parameters(), fused=True).step()
    except RuntimeError:
        return False
    return True


def found_with(folder: Path, *megabytes: int, **more: str) -> list[Any]:
    environment = {
        **os.environ,
        **more,
        "PYTHONPATH": WITH_SUPPORT,
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    size = len(megabytes)
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(size), *map(str, megabytes)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    errors = [rank.communicate(timeout=120)[1].decode()[-2000:] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def test_only_sizes_that_cut_evenly_are_tried() -> None:
    """They divide the global batch into micro-batches that the processes share evenly, the largest
    first."""
    assert sizes(48, 1) == [48, 24, 16, 12, 8, 6, 4, 3, 2, 1]
    assert sizes(48, 4) == [12, 6, 4, 3, 2, 1]
    assert sizes(6, 4) == []


def test_the_largest_that_fits_is_found(tmp_path: Path) -> None:
    """With room for some of the samples, the largest size that can be computed at all is found, and
    the limit is as it was."""
    ((found, largest, limit_kept),) = found_with(tmp_path, 240)
    assert 1 < largest < GLOBAL
    assert found == largest
    assert limit_kept


def test_all_processes_take_what_fits_the_smallest(tmp_path: Path) -> None:
    """Of two processes with different memory both take the smaller one's size, though the other one
    had room for its all."""
    (first, roomy, _), (second, narrow, _) = found_with(tmp_path, 1600, 120)
    assert roomy == GLOBAL // 2
    assert 1 < narrow < roomy
    assert first == second == narrow


def test_a_sharded_model_is_measured_and_not_tried(tmp_path: Path) -> None:
    """Both processes take what fits the smaller one, by what one and two samples take of it: most
    of what could be computed there, and no more."""
    (first, _, _), (second, narrow, _) = found_with(tmp_path, 1600, 240, SHARDED="1")
    assert first == second
    assert narrow / 3 <= first <= narrow


def test_not_even_one_sample_is_an_error(tmp_path: Path) -> None:
    """Where nothing fits there is one sentence with the way out."""
    ((found, largest, _),) = found_with(tmp_path, 10)
    assert largest == 0
    assert "not even one sample fits" in found


def test_memory_that_python_or_numpy_lacks_counts_too() -> None:
    """A dataset whose batches are too large for numpy is tried with smaller ones, as for torch."""

    class Large(Data):
        def collate(self, items: list[tuple[Tensor, int]]) -> Any:
            np.empty(1 << 58 if len(items) > 12 else 1, dtype=np.uint8)
            return default_collate(items)

    assert find(World(), split=Large()) == 12


def test_the_model_itself_is_not_trained() -> None:
    """Looking for the size changes neither weights nor gradients."""
    model = Wide()
    assert find(World(), model=model) == GLOBAL
    assert torch.equal(model.weight, torch.ones(2))
    assert model.weight.grad is None


def test_a_stream_is_looked_at_too() -> None:
    """A streaming split gives its first examples, transformed, for the attempt."""
    assert find(World(), split=Stream()) == GLOBAL


def test_a_batch_that_cannot_be_shared_is_an_error() -> None:
    """A number of processes that divides no micro-batch is refused by both numbers."""
    with pytest.raises(TrainError, match="5 processes cannot share 48 samples evenly"):
        find(World(0, 5))


def test_the_limit_ends_with_the_block() -> None:
    """Inside too much memory is refused by the allocator, afterwards it is there again."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory(32 << 20):
        torch.ones(1 << 20)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.ones(64 << 20)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert float(torch.ones(16 << 20)[-1]) == 1.0


if __name__ == "__main__":
    work(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        [int(value) for value in sys.argv[4:]],
    )
