"""Sampler + dataset -> this rank's micro-batches, step by step, with keyed randomness, in 0 or more
workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import ComponentError, TrainError
from .batch import Batch, as_tensors, batch_bytes
from .collate import collated, collated_rows, is_hugging_face
from .randomness import DATA, seed_generators
from .sampler import MicroBatch

Piece = tuple[MicroBatch, Batch]
"""A micro-batch with its data: a batch, or its parts where it is computed in several."""
_PREFETCH = 2


class Part(NamedTuple):
    """What is computed at once: the batch of so many `samples`, which counts or only fills up."""

    batch: Batch
    samples: int
    counts: bool = True


class Fetch(Dataset[Piece]):
    """Turns a MicroBatch into its batch, all generators seeded by (seed, epoch, micro-batch)
    before.

    A map-style split is asked by index; a streaming one transforms the raw examples that came
    along. With several `parts` the samples are the same ones, and each part of them is collated
    by itself: how a batch can be cut only its collate knows.
    """

    def __init__(self, split: Any, seed: int, purpose: int = DATA, parts: int = 1) -> None:
        self.split, self.seed, self.purpose, self.parts = split, seed, purpose, parts
        plain = collated_rows if is_hugging_face(split) else collated
        self.collate: Callable[[list[Any]], Batch] = getattr(split, "collate", plain)

    def __getitem__(self, piece: MicroBatch) -> Piece:
        seed_generators(self.seed, self.purpose, piece.epoch, piece.number)
        items = self._items(piece)
        if self.parts == 1:
            return piece, as_tensors(self.collate(items))
        check_items(items, len(piece.indices))
        return piece, [
            Part(as_tensors(self.collate(items[start:stop])), stop - start, counts)
            for start, stop, counts in part_bounds(len(items), self.parts)
        ]

    def _items(self, piece: MicroBatch) -> list[Any]:
        if piece.examples is not None:
            transform = getattr(self.split, "transform", None)
            return (
                [transform(example) for example in piece.examples]
                if transform
                else list(piece.examples)
            )
        indices = piece.indices.tolist()
        if hasattr(self.split, "__getitems__"):
            return self.split.__getitems__(indices)
        return [self.split[index] for index in indices]


@dataclass
class Loader:
    """Yields, for each step, this rank's micro-batches with their data.

    Workers that are `lasting` wait after the last piece for whoever iterates again, over the same
    pieces.
    """

    split: Any
    pieces: Iterable[MicroBatch]
    seed: int
    num_workers: int = 0
    pin_memory: bool = False
    purpose: int = DATA
    parts: int = 1
    lasting: bool = False
    _kept: DataLoader[Piece] | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[list[Piece]]:
        step: list[Piece] = []
        for piece in self._loader():
            step.append(piece)
            if piece[0].last:
                yield step
                step = []

    def _loader(self) -> Iterator[Piece]:
        fetch = Fetch(self.split, self.seed, self.purpose, self.parts)
        if not self.num_workers and not self.pin_memory:
            # What a DataLoader adds to that takes a tenth of a small step.
            return map(fetch.__getitem__, self.pieces)
        return self._with_data_loader(fetch)

    def _with_data_loader(self, fetch: Fetch) -> Iterator[Piece]:
        loader = self._data_loader(fetch) if self._kept is None else self._kept
        if self.lasting and self.num_workers:
            self._kept = loader
        try:
            yield from loader
        except RuntimeError as error:
            raise _worker_error(error) from error

    def _data_loader(self, fetch: Fetch) -> DataLoader[Piece]:
        workers: dict[str, Any] = {}
        if self.num_workers:
            workers = {"prefetch_factor": _PREFETCH, "worker_init_fn": prepare_worker}
            workers["persistent_workers"] = self.lasting
        return DataLoader(
            fetch,
            batch_size=None,  # a MicroBatch is a batch already
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batch_size it gets an item, not a list
            sampler=_Pieces(self.pieces),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            **workers,
        )


class Ahead:
    """The steps of a loader. `look` fetches the next one before it is asked for, and what goes
    wrong then is raised when it is."""

    def __init__(self, steps: Iterable[list[Piece]]) -> None:
        self._steps = iter(steps)
        self._seen: list[list[Piece] | Exception | None] = []

    def look(self) -> None:
        """Fetch the next step."""
        if not self._seen:
            try:
                self._seen.append(next(self._steps, None))
            except Exception as error:  # of the step that is to come, not of this one
                self._seen.append(error)

    @property
    def seen(self) -> list[Piece] | None:
        """The next step, where it was fetched and nothing went wrong."""
        found = self._seen[0] if self._seen else None
        return None if isinstance(found, Exception) else found

    def next(self) -> list[Piece] | None:
        """The next step; None after the last one."""
        if not self._seen:
            return next(self._steps, None)
        found = self._seen.pop()
        if isinstance(found, Exception):
            raise found
        return found


def _as_it_is(piece: Piece) -> Piece:
    """What Fetch returns needs no further conversion."""
    return piece


class _Pieces:
    """An iterator as a sampler: DataLoader asks for `__iter__` only."""

    def __init__(self, pieces: Iterable[MicroBatch]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.pieces)


def part_bounds(samples: int, parts: int) -> list[tuple[int, int, bool]]:
    """So many samples in so many parts, as (start, stop, counts): of too few samples one is
    computed again and again and not counted."""
    size = -(-samples // parts)
    bounds = [(start, min(start + size, samples), True) for start in range(0, samples, size)]
    return bounds + [(0, 1, False)] * (parts - len(bounds))


def check_items(items: Any, samples: int) -> None:
    """Samples can be collated in parts if they come one by one.

    Raises:
        TrainError: `__getitems__` has made a batch of them itself.
    """
    if not isinstance(items, Sequence) or len(items) != samples:
        raise TrainError(
            "A micro-batch does not fit into memory, and it cannot be computed in parts: the"
            f" split's `__getitems__` returns a {type(items).__name__} instead of a list of"
            f" {samples} samples.",
            "Use a machine with more memory, or start a new run with a smaller train.micro_batch.",
        )


def prepare_worker(worker: int) -> None:
    """Ctrl-C reaches the whole process group; workers go on until their rank has saved. The
    worker's own split prepares itself by its `worker_init`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    split = get_worker_info().dataset.split  # type: ignore[union-attr]  # this is a worker
    if hasattr(split, "worker_init"):
        split.worker_init(worker)


def check_shared_memory(
    batches: Sequence[Batch],
    num_workers: int,
    ranks: int = 1,
    path: str = "/dev/shm",  # noqa: S108  asked, not written
) -> None:
    """Workers hand batches over in shared memory; say so before the kernel ends one with a bus
    error.

    `batches`: one of each loader, since training's workers keep theirs while evaluation's work.
    `ranks`: how many share the memory, all of this node.

    Raises:
        TrainError: the batches in flight need more than `path` has.
    """
    if not num_workers or not os.path.isdir(path):
        return
    need = ranks * num_workers * (_PREFETCH + 1) * sum(map(batch_bytes, batches))
    status = os.statvfs(path)
    if need > (free := status.f_bavail * status.f_frsize):
        each = f"{ranks} x {num_workers}" if ranks > 1 else str(num_workers)
        raise TrainError(
            f"train.num_workers: {each} workers need about {need >> 20} MB of shared memory,"
            f" {path} has {free >> 20} MB.",
            "Start the container with more (docker: --shm-size=8g) or set train.num_workers: 0.",
        )


def check_splits(splits: Any, name: str) -> None:
    """A dataset component must give a dict with `train`, which is not empty.

    Raises:
        ComponentError: it does not.
    """
    if not isinstance(splits, Mapping) or "train" not in splits:
        named = f"a dict with {sorted(map(str, splits))}" if isinstance(splits, Mapping) else ""
        got = named or type(splits).__name__
        raise ComponentError(
            f"datasets/{name}.py: build() must return a dict with the split 'train' (got {got})."
        )
    if hasattr(splits["train"], "__len__") and len(splits["train"]) == 0:
        raise ComponentError(f"datasets/{name}.py: the split 'train' is empty.")


def _worker_error(error: RuntimeError) -> Exception:
    if "bus error" in str(error).lower() or "shared memory" in str(error).lower():
        return TrainError(
            "A loader worker ran out of shared memory.",
            "Start the container with more (docker: --shm-size=8g) or set train.num_workers: 0.",
        )
    return error
