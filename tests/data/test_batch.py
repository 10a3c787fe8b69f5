"""Batches in every container that people use, leaf by leaf."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xrun.data.batch import as_tensors, batch_bytes, described, leaves, mapped, to_device

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Frozen:
    """A batch that cannot be changed in place."""

    x: Any
    names: list[str]


class Movable:
    """An object that moves itself, as a graph of PyTorch Geometric does."""

    def __init__(self, device: str) -> None:
        self.device = device

    def to(self, device: Any, non_blocking: bool = False) -> Movable:
        return Movable(str(device))


def one() -> Tensor:
    return torch.arange(4.0)


CONTAINERS: list[Any] = [
    {"x": one(), "y": None},
    OrderedDict(x=one(), text="a"),
    defaultdict(list, x=one()),
    UserDict(x=one()),
    (one(), "name"),
    [one(), [one()]],
    Pair(one(), 3),
    Frozen(one(), ["a", "b"]),
    {"inputs": {"x": [one(), Pair(one(), None)]}, "names": ["a"]},
    one(),
]


@pytest.mark.parametrize("batch", CONTAINERS, ids=lambda batch: type(batch).__name__)
def test_every_leaf_is_reached_and_every_container_stays(batch: Any) -> None:
    """Each tensor is changed, everything else stays, in containers of the same kinds."""
    changed = mapped(batch, lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf)
    assert type(changed) is type(batch)
    pairs = list(zip(leaves(batch), leaves(changed), strict=True))
    assert pairs
    for before, after in pairs:
        expected = before + 1 if isinstance(before, Tensor) else before
        assert torch.equal(after, expected) if isinstance(after, Tensor) else after == expected


@pytest.mark.parametrize("batch", CONTAINERS, ids=lambda batch: type(batch).__name__)
def test_everything_moves(batch: Any) -> None:
    """On another device is every tensor, whatever it lies in."""
    moved = to_device(batch, torch.device("meta"))
    devices = {leaf.device.type for leaf in leaves(moved) if isinstance(leaf, Tensor)}
    assert devices == {"meta"}


def test_an_object_moves_itself() -> None:
    """What has a method `to` is asked, also inside of a container."""
    graph = to_device({"graph": Movable("cpu")}, torch.device("meta"))["graph"]
    assert graph.device == "meta"


def test_numbers_of_numpy_become_tensors() -> None:
    """With their dtype and values, where torch's default_collate would; names stay."""
    backwards = np.arange(3)[::-1]
    fixed = np.ones(2, dtype=np.float32)
    fixed.flags.writeable = False
    batch = {"x": fixed, "more": (backwards, np.array(["a"])), "flag": np.array([True])}
    made = as_tensors(batch)
    assert torch.equal(made["x"], torch.ones(2))
    assert made["more"][0].tolist() == [2, 1, 0]
    assert made["more"][1].tolist() == ["a"]
    assert made["flag"].dtype == torch.bool
    pair = (one(), one())
    assert as_tensors(pair) is pair


def test_the_bytes_of_all_tensors_are_counted() -> None:
    """In every container, and of nothing else."""
    sizes = [batch_bytes(batch) for batch in CONTAINERS]
    assert sizes == [16, 16, 16, 16, 16, 32, 16, 16, 32, 16]


def test_a_batch_is_described_in_a_line() -> None:
    """Names, types and shapes; long lists are cut."""
    batch = {"x": one(), "y": [torch.zeros(2, dtype=torch.int64)] * 9, "z": None, "n": "a"}
    told = (
        "{x: float32 (4,), y: [int64 (2,), int64 (2,), int64 (2,), ... 9 in all], z: None, n: str}"
    )
    assert described(batch) == told
    assert described(Pair(one(), 3)) == "Pair(float32 (4,), int)"
