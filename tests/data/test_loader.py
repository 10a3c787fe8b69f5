"""The loader: the same bits from 0, 1 and 3 real workers.

Covers `xrun.data.randomness`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.paths import SOURCES
from xrun.data.batch import batch_bytes
from xrun.data.loader import Ahead, Fetch, Loader, check_shared_memory, check_splits
from xrun.data.randomness import LOOP, seed_generators
from xrun.data.sampler import MicroBatch, Sampler
from xrun.errors import ComponentError, TrainError


class Augmented:
    """Samples that draw from all three generators that people use."""

    def __len__(self) -> int:
        return 37

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]  # as users do
        return torch.tensor([index, *drawn], dtype=torch.float64), index


class Listed(Augmented):
    """Fetches many samples at once and collates them itself."""

    asked: tuple[int, ...] = ()

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.asked = (*self.asked, len(indices))
        return indices

    def collate(self, items: list[int]) -> dict[str, torch.Tensor]:
        return {"ids": torch.tensor(items)}


class Broken(Augmented):
    """Fails at one sample."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 20:
            raise ValueError("sample 20 is damaged")
        return super().__getitem__(index)


def batches(
    split: Any, workers: int, first: int = 0, rank: int = 0, world: int = 1
) -> dict[tuple[int, int], Any]:
    sampler = Sampler(37, 8, 2, seed=3)
    loader = Loader(split, sampler.steps(first, 9, rank, world), 3, workers)
    return {
        (piece.step, piece.slot): batch for step in loader for piece, batch in step if piece.weight
    }


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(a, b) for name in left for a, b in zip(left[name], right[name], strict=True)
    )


@pytest.fixture(scope="module")
def alone() -> dict[tuple[int, int], Any]:
    return batches(Augmented(), 0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit(alone: dict[tuple[int, int], Any], workers: int) -> None:
    """Batches with augmentation from torch, numpy and random are bit-identical with 0, 1 and 3
    workers."""
    assert same(batches(Augmented(), workers), alone)


def test_processes_change_no_bit(alone: dict[tuple[int, int], Any]) -> None:
    """The micro-batches of 4 processes are those of one process, augmentation included."""
    parts = [batches(Augmented(), 0, rank=rank, world=4) for rank in range(4)]
    assert same(parts[0] | parts[1] | parts[2] | parts[3], alone)


def test_a_resumed_loader_goes_on(alone: dict[tuple[int, int], Any]) -> None:
    """A loader that begins at step 4, in workers, gives what the first one gave from step 4 on."""
    assert same(
        batches(Augmented(), 1, first=4),
        {place: batch for place, batch in alone.items() if place[0] >= 4},
    )


def test_augmentation_differs_between_epochs_and_micro_batches(
    alone: dict[tuple[int, int], Any],
) -> None:
    """No two micro-batches of two epochs draw the same numbers."""
    drawn = [tuple(batch[0][0, 1:].tolist()) for batch in alone.values()]
    assert len(set(drawn)) == len(drawn)
    assert all(len({row[column] for row in drawn}) == len(drawn) for column in range(3))


def test_dropout_is_keyed_by_place() -> None:
    """Seeded by (seed, step, micro-batch), dropout is the same whatever was drawn before, and
    another at every place."""

    def dropped(*place: int) -> torch.Tensor:
        seed_generators(0, LOOP, *place)
        return nn.functional.dropout(torch.ones(64), 0.5)

    first = dropped(5, 2)
    torch.rand(17)
    assert torch.equal(dropped(5, 2), first)
    assert not any(torch.equal(dropped(*place), first) for place in ((5, 3), (6, 2), (2, 5)))


def test_a_step_comes_whole() -> None:
    """Each item is the list of this process's micro-batches of one step, in slot order."""
    steps = list(Loader(Augmented(), Sampler(37, 8, 2, 3).steps(0, 6, 1, 2), 3))
    assert [[piece.slot for piece, _ in step if piece.weight] for step in steps] == [[2, 3]] * 4 + [
        [],
        [2, 3],
    ]
    assert all(step[-1][0].last for step in steps)


def test_what_goes_wrong_ahead_is_raised_when_it_is_asked_for() -> None:
    """A step that was looked at comes once, in its order, and an error in its place."""

    def steps() -> Any:
        yield ["one"]
        yield ["two"]
        raise OSError("three")

    ahead: Any = Ahead(steps())
    assert ahead.next() == ["one"]
    ahead.look()
    ahead.look()
    assert ahead.next() == ["two"]
    ahead.look()
    with pytest.raises(OSError, match="three"):
        ahead.next()
    ahead.look()
    assert ahead.next() is None


def test_a_dataset_may_fetch_and_collate_itself() -> None:
    """`__getitems__` is asked once per micro-batch and `collate` makes the batch."""
    split = Listed()
    found = batches(split, 0)
    assert torch.cat(
        [batch["ids"] for place, batch in found.items() if place[0] < 5]
    ).sort().values.tolist() == list(range(37))
    assert max(split.asked) == 3  # the last sample alone joined the micro-batch before
    assert len(split.asked) == len(found)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_s_own_error_is_kept(workers: int) -> None:
    """What the dataset raises reaches the training process under its own type, from workers too."""
    with pytest.raises(ValueError, match="sample 20 is damaged"):
        batches(Broken(), workers)


def test_too_little_shared_memory_is_said_beforehand(tmp_path: Path) -> None:
    """Batches in flight that cannot fit are refused with both sizes; without workers nothing is
    asked."""
    batch = {"x": torch.empty(2**44, device="meta")}
    with pytest.raises(TrainError, match=r"2 workers need about \d+ MB.*--shm-size"):
        check_shared_memory([batch], 2, 1, str(tmp_path))
    check_shared_memory([batch], 0, 1, str(tmp_path))
    check_shared_memory([{"x": torch.zeros(3)}], 2, 1, str(tmp_path))


def test_all_workers_of_a_node_share_its_memory(tmp_path: Path) -> None:
    """What is free is enough for one rank, or for training alone: not for four ranks, and not for
    evaluation's batches beside them."""
    status = os.statvfs(tmp_path)
    share = status.f_bavail * status.f_frsize // 8 // 4  # of one tensor, in numbers of 4 bytes
    fits = torch.empty(share, device="meta")  # 2 workers and 3 batches for each: 6 of 8
    check_shared_memory([fits], 2, 1, str(tmp_path))
    with pytest.raises(TrainError, match=r"4 x 2 workers need about \d+ MB"):
        check_shared_memory([fits], 2, 4, str(tmp_path))
    with pytest.raises(TrainError, match=r": 2 workers need about \d+ MB"):
        check_shared_memory([fits, {"x": fits}], 2, 1, str(tmp_path))


def test_bytes_of_a_batch_count_every_tensor() -> None:
    """Dicts, pairs and lists are added up; what is no tensor has no bytes."""
    tensor = torch.zeros(10, dtype=torch.float32)
    assert (
        batch_bytes({"a": tensor, "b": [tensor, (tensor.half(), "text")], "c": 3}) == 40 + 40 + 20
    )


@pytest.mark.parametrize("splits", [[1], {"val": [1]}, None])
def test_splits_without_train_are_refused(splits: Any) -> None:
    """A dataset component that gives no split 'train' is refused by its file and by what it
    gave."""
    with pytest.raises(ComponentError, match=r"datasets/d\.py.*'train' \(got"):
        check_splits(splits, "d")
    check_splits({"train": [1]}, "d")


def test_an_empty_training_split_is_refused() -> None:
    """A split without a sample is refused by name before a step is computed."""
    with pytest.raises(ComponentError, match=r"datasets/d\.py: the split 'train' is empty"):
        check_splits({"train": []}, "d")


def test_ctrl_c_does_not_end_workers() -> None:
    """SIGINT to the whole process group leaves the workers working."""
    code = """
import os, signal, sys
from xrun.data.loader import Loader
from xrun.data.sampler import MicroBatch, Sampler
signal.signal(signal.SIGINT, signal.SIG_IGN)
class Data:
    def __len__(self): return 400
    def __getitem__(self, index): return index
steps = iter(Loader(Data(), Sampler(400, 2, 2, 0).steps(0, 200, 0, 1), 0, num_workers=1))
next(steps)
signal.signal(signal.SIGINT, lambda *_: print("asked", flush=True))
os.killpg(0, signal.SIGINT)
print(sum(1 for _ in steps))
"""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": SOURCES,
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        start_new_session=True,
    )
    assert run.stdout.split() == ["asked", "199"], run.stderr
    assert run.returncode != -signal.SIGINT


class Flat(Augmented):
    """A batch that cannot be cut: everything in one row, and where each sample ends."""

    def collate(self, items: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        rows = [row for row, _ in items]
        return {"row": torch.cat(rows), "ends": torch.tensor([len(r) for r in rows]).cumsum(0)}


class Batched(Augmented):
    """Gives a batch instead of samples."""

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"ids": torch.tensor(indices)}


def micro_batch(samples: int) -> MicroBatch:
    return MicroBatch(0, 0, 0, 0, np.arange(samples), samples)


@pytest.mark.parametrize(
    ("samples", "parts", "expected"),
    [
        (5, 2, [(3, True), (2, True)]),
        (3, 4, [(1, True), (1, True), (1, True), (1, False)]),
        (6, 4, [(2, True), (2, True), (2, True), (1, False)]),
    ],
)
def test_parts_are_collated_by_themselves(
    samples: int, parts: int, expected: list[tuple[int, bool]]
) -> None:
    """The very samples of the whole, augmentation included, in their order; too few are filled up
    with one that does not count."""
    whole = Fetch(Flat(), 3)[micro_batch(samples)][1]
    made = Fetch(Flat(), 3, parts=parts)[micro_batch(samples)][1]
    assert [(part.samples, part.counts) for part in made] == expected
    counted = torch.cat([part.batch["row"] for part in made if part.counts])
    assert torch.equal(counted, whole["row"])
    assert [part.batch["ends"].tolist() for part in made] == [
        [4 * (n + 1) for n in range(count)] for count, _ in expected
    ]


def test_a_batch_instead_of_samples_has_no_parts() -> None:
    """Samples that do not come one by one are refused in one sentence."""
    split = Batched()
    split.collate = lambda batch: batch  # type: ignore[attr-defined]
    with pytest.raises(TrainError, match=r"cannot be computed in parts.*returns a dict"):
        Fetch(split, 3, parts=2)[micro_batch(4)]
    assert Fetch(split, 3)[micro_batch(4)][1]["ids"].tolist() == [0, 1, 2, 3]
