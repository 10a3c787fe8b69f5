"""Every kind of sample that torch's own DataLoader takes: the same batch as its `default_collate`
makes, from 0 and 2 workers, whole, in parts and moved.

What torch refuses (None, dates, pictures, dataclasses) has its promise here too.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from xrun.data.batch import leaves, mapped, to_device
from xrun.data.loader import Fetch, Loader
from xrun.data.sampler import MicroBatch
from xrun.data.stream import is_stream

SIZE = 4
Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Graph:
    """A sample, or a batch, of a person's own kind."""

    nodes: Any
    name: str = "g"


def row(i: int) -> Tensor:
    return torch.arange(3.0) + i


SAMPLES: dict[str, Callable[[int], Any]] = {
    "tensor": row,
    "tensor without dimensions": lambda i: torch.tensor(i),
    "int": lambda i: i,
    "float": lambda i: i / 3,
    "bool": lambda i: i % 2 == 0,
    "complex tensor": lambda i: torch.complex(row(i), row(i)),
    "text": lambda i: f"name {i}",
    "bytes": lambda i: bytes([i]),
    "numpy": lambda i: np.full((2, 3), i, dtype=np.float32),
    "numpy without dimensions": lambda i: np.array(i),
    "numpy scalar": lambda i: np.float64(i),
    "numpy bool": lambda i: np.bool_(i % 2),
    "pair": lambda i: (row(i), i),
    "three": lambda i: (row(i), i, f"name {i}"),
    "dict": lambda i: {"x": row(i), "labels": i},
    "dict in a tuple": lambda i: ({"x": row(i), "mask": {"m": row(i) > i}}, i),
    "list of dicts": lambda i: [{"x": row(i)}, {"x": row(i), "y": i}],
    "tuple in a dict": lambda i: {"views": (row(i), row(-i)), "id": f"{i}"},
    "named tuple": lambda i: Pair(row(i), Pair(i, [row(i)])),
    "ordered": lambda i: OrderedDict(b=row(i), a=i),
    "user's dict": lambda i: UserDict(x=row(i)),
    "user's list": lambda i: UserList([row(i), i]),
    "deque": lambda i: deque([row(i), row(-i)]),
    "a name for each sample": lambda i: {"x": row(i), "names": ["a", f"{i}"]},
}


class Kinds:
    """SIZE samples of each kind, one kind after the other."""

    kinds = tuple(SAMPLES.values())

    def __len__(self) -> int:
        return SIZE * len(self.kinds)

    def __getitem__(self, index: int) -> Any:
        return self.kinds[index // SIZE](index % SIZE + 1)


def pieces(count: int) -> Iterator[MicroBatch]:
    for n in range(count):
        indices = np.arange(n * SIZE, (n + 1) * SIZE)
        yield MicroBatch(n, 0, 0, n, indices, SIZE, 1, True)


def loaded(split: Any, workers: int, count: int) -> list[Any]:
    return [batch for step in Loader(split, pieces(count), 0, workers) for _, batch in step]


def equal(one: Any, other: Any) -> bool:
    """Of the same types throughout, and of the same values to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict | UserDict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple | UserList | deque):
        return len(one) == len(other) and all(map(equal, one, other))
    if dataclasses.is_dataclass(one):
        return equal(vars(one), vars(other))
    return bool(one == other)


def expected(kind: str, numbers: range = range(1, SIZE + 1)) -> Any:
    return default_collate([SAMPLES[kind](i) for i in numbers])


def devices(batch: Any) -> set[str]:
    return {leaf.device.type for leaf in leaves(batch) if isinstance(leaf, Tensor)}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_is_collated_as_torch_does(workers: int) -> None:
    """By default_collate as the oracle."""
    batches = loaded(Kinds(), workers, len(SAMPLES))
    wrong = [k for k, batch in zip(SAMPLES, batches, strict=True) if not equal(batch, expected(k))]
    assert wrong == []


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_kind_moves_and_has_parts(kind: str) -> None:
    """All tensors of it are on the device afterwards; each of its parts is a batch of its own, of
    as many samples as it says."""
    moved = to_device(expected(kind), torch.device("meta"))
    assert type(moved) is type(expected(kind))
    texts = kind in ("text", "bytes")
    assert devices(moved) == (set() if texts else {"meta"})
    assert devices(expected(kind)) == (set() if texts else {"cpu"})
    first = list(SAMPLES).index(kind) * SIZE
    indices = np.arange(first, first + SIZE - 1)
    _, parts = Fetch(Kinds(), 0, parts=2)[MicroBatch(0, 0, 0, 0, indices, SIZE - 1)]
    assert [part.samples for part in parts] == [2, 1]
    assert equal(parts[0].batch, expected(kind, range(1, 3)))
    assert equal(parts[1].batch, expected(kind, range(3, 4)))


@pytest.mark.gpu
@pytest.mark.once
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_is_pinned_and_moves_to_the_gpu(workers: int) -> None:
    """Its tensors are in pinned memory first, on the GPU then, and have the same values."""
    loader = Loader(Kinds(), pieces(len(SAMPLES)), 0, workers, pin_memory=True)
    for kind, step in zip(SAMPLES, loader, strict=True):
        batch = step[0][1]
        assert {leaf.is_pinned() for leaf in leaves(batch) if isinstance(leaf, Tensor)} <= {True}
        moved = to_device(batch, torch.device("cuda"))
        assert devices(moved) <= {"cuda"}
        back = mapped(moved, lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf)
        assert equal(back, expected(kind))


KEPT: dict[str, tuple[Callable[[int], Any], Any]] = {
    "None": (lambda i: (row(i), None), [default_collate([row(1), row(2)]), [None, None]]),
    "date": (lambda i: {"when": date(2026, 1, i)}, {"when": [date(2026, 1, 1), date(2026, 1, 2)]}),
    "object": (lambda i: [Fetch], [[Fetch, Fetch]]),
    "dataclass": (
        lambda i: Graph(row(i), f"{i}"),
        Graph(default_collate([row(1), row(2)]), ["1", "2"]),
    ),
    "None in a dataclass": (
        lambda i: {"graph": Graph(None), "y": i},
        {"graph": Graph([None, None], ["g", "g"]), "y": torch.tensor([1, 2])},
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_torch_refuses_is_kept(kind: str) -> None:
    """What is no tensor, number or text is a list of what the samples have; dataclasses are
    collated field by field."""
    sample, batch = KEPT[kind]
    with pytest.raises(TypeError):
        default_collate([sample(1), sample(2)])
    made = Fetch([sample(1), sample(2)], 0)[MicroBatch(0, 0, 0, 0, np.arange(2), 2)][1]
    assert equal(made, batch)


class Lengths:
    """Sample i has i + 1 numbers."""

    def __len__(self) -> int:
        return 2 * SIZE

    def __getitem__(self, index: int) -> Tensor:
        return torch.arange(index + 1.0)

    def collate(self, items: list[Tensor]) -> PackedSequence:
        return pack_sequence(items, enforce_sorted=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_different_lengths_are_packed_by_collate(workers: int) -> None:
    """Into torch's own kind of batch, which moves itself."""
    batches = loaded(Lengths(), workers, 2)
    for n, batch in enumerate(batches):
        packed = pack_sequence(
            [torch.arange(i + 1.0) for i in range(n * SIZE, n * SIZE + SIZE)], enforce_sorted=False
        )
        assert isinstance(batch, PackedSequence)
        assert torch.equal(batch.data, packed.data)
        assert torch.equal(batch.batch_sizes, packed.batch_sizes)
    assert to_device(batches[0], torch.device("meta")).data.device.type == "meta"


class Opened(Lengths):
    """A sample says by which worker's own handle it was read."""

    handle = -1

    def worker_init(self, worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        assert getattr(info.dataset, "split") is self  # noqa: B009  it is the loader's own
        self.handle = worker

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.handle)

    def collate(self, items: list[Tensor]) -> Any:
        return default_collate(items)


def test_worker_init_prepares_each_worker() -> None:
    """It is called once in each worker on the worker's own split, and by nobody without workers,
    as in torch."""
    split = Opened()
    found = {int(worker) for batch in loaded(split, 2, 2) for worker in batch}
    assert found == {0, 1}
    assert {int(worker) for batch in loaded(split, 0, 2) for worker in batch} == {-1}
    assert split.handle == -1


def table() -> Any:
    rows: dict[str, list[Any]] = {
        "x": [[float(i), 2.0, 3.0] for i in range(SIZE)],
        "grid": [[[i, 1], [2, 3]] for i in range(SIZE)],
        "label": list(range(SIZE)),
        "text": [f"text {i}" for i in range(SIZE)],
        "words": [["a"] * (i + 1) for i in range(SIZE)],
        "note": [None] * SIZE,
        "day": [date(2026, 1, i + 1) for i in range(SIZE)],
        "box": [{"at": [i, i]} for i in range(SIZE)],
    }
    return datasets.Dataset.from_dict(rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_hugging_faces_rows_are_batches(workers: int) -> None:
    """Numbers and lists of them are tensors with the sample first; everything else is as the row
    has it, in a list."""
    (batch,) = loaded(table(), workers, 1)
    assert torch.equal(batch["x"], torch.tensor([[float(i), 2.0, 3.0] for i in range(SIZE)]))
    assert batch["grid"].shape == (SIZE, 2, 2)
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["text"] == [f"text {i}" for i in range(SIZE)]
    assert batch["words"] == [["a"] * (i + 1) for i in range(SIZE)]
    assert batch["note"] == [None] * SIZE
    assert batch["day"][2] == date(2026, 1, 3)
    assert batch["box"]["at"].tolist() == [[i, i] for i in range(SIZE)]


def test_formats_and_views_of_hugging_face() -> None:
    """With torch's format and with a transform of a person's own the rows are what these give."""
    numbers = table().select_columns(["x", "label"])
    (formatted,) = loaded(numbers.with_format("torch"), 0, 1)
    assert torch.equal(formatted["x"], loaded(numbers, 0, 1)[0]["x"])

    def doubled(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"x": [torch.tensor(x) * 2 for x in rows["x"]], "label": rows["label"]}

    (own,) = loaded(numbers.with_transform(doubled), 0, 1)
    assert torch.equal(own["x"], formatted["x"] * 2)
    assert own["label"].tolist() == [0, 1, 2, 3]


class Counted(IterableDataset[int]):
    """Torch's own stream, with a length, as many have."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


def test_a_stream_with_a_length_is_a_stream() -> None:
    """It can be iterated only, whatever its base class has."""
    assert is_stream(Counted())
    assert not is_stream(table())
    assert is_stream(table().to_iterable_dataset())
