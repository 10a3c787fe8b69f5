"""The sampler of streaming datasets: shards in a seeded order, blocks of consecutive examples
shuffled by seed.

A shuffle buffer cannot be resumed: what lay in it is lost. Here the stream is cut into blocks; the
position of a step is the state of the stream at its block's start and an offset into the shuffled
block, so resuming reads one block again and goes on within it. Every process reads the raw examples
(cheap, not decoded); workers transform only those of their own micro-batches.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from ..errors import ComponentError, DataExhausted
from .sampler import Indices, MicroBatch, cut, key, permute, share

SHUFFLE_BLOCK = 1000
_SHARDS, _BLOCKS = range(2)


def is_stream(split: Any) -> bool:
    """Whether a split streams: it has shards, or it can be iterated but not indexed. Torch's own
    stream is one whatever its base class has, and may have a length."""
    return (
        hasattr(split, "num_shards")
        or isinstance(split, IterableDataset)
        or not (hasattr(split, "__len__") and hasattr(split, "__getitem__"))
    )


def shard_of(split: Any, number: int) -> Any:
    """One shard of a split; one without shards is its own. Hugging Face's streams are asked for
    their share of so many."""
    if not hasattr(split, "shard"):
        return split
    if "num_shards" in inspect.signature(split.shard).parameters:
        return split.shard(num_shards=split.num_shards, index=number)
    return split.shard(number)


def shuffle_block(split: Any) -> int:
    """How many examples in a row are shuffled."""
    return int(getattr(split, "shuffle_block", SHUFFLE_BLOCK))


@dataclass(frozen=True)
class Position:
    """Where a step begins: `offset` examples into the shuffled block that starts at `shard`,
    `taken`, `inner`.

    `shard` counts in the epoch's order of shards, `taken` the examples read from it before the
    block, `inner` is the shard's own state there (None: it has none, so examples are skipped one by
    one), `start` the block's first position in the epoch, `first_step` the epoch's first step.
    """

    epoch: int = 0
    first_step: int = 0
    start: int = 0
    offset: int = 0
    shard: int = 0
    taken: int = 0
    inner: dict[str, Any] | None = None


class Reader:
    """Reads an epoch's raw examples from a position on, shard after shard in this order, and says
    where it is."""

    def __init__(self, split: Any, order: Indices, at: Position) -> None:
        self.split, self.order = split, order
        self.shard, self.taken = at.shard, at.taken
        self._open(at.inner)

    def _open(self, inner: dict[str, Any] | None = None) -> None:
        self.source: Any = None
        if self.shard >= len(self.order):
            return
        self.source = shard_of(self.split, int(self.order[self.shard]))
        if inner is not None:
            self.source.load_state_dict(inner)
        self.examples = iter(self.source)
        if inner is None:
            for _ in range(self.taken):
                next(self.examples, None)

    def state(self) -> dict[str, Any]:
        """Fields of a Position that starts a block here."""
        own = (
            self.source is not None and self.source is not self.split
        )  # a split's own state would stay in the epochs after
        resumable = own and self.taken and hasattr(self.source, "state_dict")
        inner = json.loads(json.dumps(self.source.state_dict())) if resumable else None
        return {"shard": self.shard, "taken": self.taken, "inner": inner}

    def take(self, count: int) -> tuple[dict[str, Any], list[Any]]:
        """The state here, and the next `count` examples, fewer only at the epoch's end."""
        state, examples = self.state(), list[Any]()
        while len(examples) < count and self.source is not None:
            for example in self.examples:
                examples.append(example)
                self.taken += 1
                if len(examples) == count:
                    break
            else:
                self.shard, self.taken = self.shard + 1, 0
                self._open()
        return state, examples


class StreamSampler:
    """Cuts a stream into the same kind of steps as `Sampler` does; `state(step)` is what a
    checkpoint has to keep."""

    steps_per_epoch: int | None = None
    whole = True
    """Each process knows the whole state."""

    def __init__(
        self,
        split: Any,
        global_batch: int,
        micro_batch: int,
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.split, self.global_batch, self.micro_batch, self.seed = (
            split,
            global_batch,
            micro_batch,
            seed,
        )
        self.slots = global_batch // micro_batch
        self.block = shuffle_block(split)
        self._resumed = Position(**state) if state else Position()
        self._positions: dict[int, Position] = {}

    def state(self, step: int) -> dict[str, Any]:
        """What resuming at `step` needs, as JSON; forgets the steps before."""
        for old in [number for number in self._positions if number < step]:
            del self._positions[old]
        return asdict(self._positions.get(step, self._resumed))

    @staticmethod
    def next_epoch(state: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The state at `step` where the epoch of a state cannot go on: its shards are others
        now."""
        return asdict(Position(epoch=Position(**state).epoch + 1, first_step=step))

    def steps(self, first: int, last: int, rank: int, world: int) -> Iterator[MicroBatch]:
        """The micro-batches that a process computes from step `first`, where the state was taken,
        to before `last`."""
        step, at = first, self._resumed
        with ThreadPoolExecutor(1, thread_name_prefix="xrun-stream") as reading:
            while step < last:
                began = step
                for pieces in self._epoch(step, at, reading):
                    own = share(len(pieces), self.slots, rank, world)
                    yield from (
                        replace(pieces[slot], weight=weight, last=end) for slot, weight, end in own
                    )
                    step += 1
                    if step == last:
                        return
                if step == began and at == Position(epoch=at.epoch, first_step=at.first_step):
                    raise DataExhausted(f"The training stream is empty in epoch {at.epoch}.")
                at = Position(epoch=at.epoch + 1, first_step=step)

    def _epoch(
        self, step: int, at: Position, reading: ThreadPoolExecutor
    ) -> Iterator[list[MicroBatch]]:
        """Batches of one epoch from a position on; the next block is read while this one is
        used."""
        batch: list[tuple[int, Any]] = []
        for position, block in self._blocks(at, reading):
            offset = position.offset
            while offset < len(block):
                need = self.global_batch - len(batch)
                batch += block[offset : offset + need]
                offset = min(offset + need, len(block))
                if len(batch) == self.global_batch:
                    step += 1
                    self._positions[step] = Position(**{**asdict(position), "offset": offset})
                    yield self._cut(step - 1, at, batch)
                    batch = []
        if batch:
            self._positions[step + 1] = Position(epoch=at.epoch + 1, first_step=step + 1)
            yield self._cut(step, at, batch)

    def _blocks(
        self, at: Position, reading: ThreadPoolExecutor
    ) -> Iterator[tuple[Position, list[tuple[int, Any]]]]:
        """Shuffled blocks as (where it starts, [(position in the epoch, raw example)])."""
        count = getattr(self.split, "num_shards", 1)
        order = permute(np.arange(count), count, key(self.seed, _SHARDS, at.epoch))
        reader = Reader(self.split, order, at)
        ahead: Future[tuple[dict[str, Any], list[Any]]] = reading.submit(reader.take, self.block)
        start, offset = at.start, at.offset
        while (taken := ahead.result())[1]:
            state, examples = taken
            ahead = reading.submit(reader.take, self.block)
            shuffled = permute(
                np.arange(len(examples)), len(examples), key(self.seed, _BLOCKS, at.epoch, start)
            )
            yield (
                Position(
                    epoch=at.epoch, first_step=at.first_step, start=start, offset=offset, **state
                ),
                [(start + int(i), examples[int(i)]) for i in shuffled],
            )
            start, offset = start + len(examples), 0

    def _cut(self, step: int, at: Position, batch: list[tuple[int, Any]]) -> list[MicroBatch]:
        first = (step - at.first_step) * self.slots
        return [
            MicroBatch(
                step,
                at.epoch,
                slot,
                first + slot,
                _ordinals(batch[a:b]),
                len(batch),
                examples=_raw(batch[a:b]),
            )
            for slot, (a, b) in enumerate(cut(len(batch), self.micro_batch))
        ]


def _ordinals(batch: list[tuple[int, Any]]) -> Indices:
    return np.array([ordinal for ordinal, _ in batch], dtype=np.int64)


def _raw(batch: list[tuple[int, Any]]) -> tuple[Any, ...]:
    return tuple(example for _, example in batch)


def check_stream(name: str, split: Any, epochs: int | None) -> None:
    """A stream has no length, so the recipe must count in steps.

    Raises:
        ComponentError: the recipe counts in epochs.
    """
    if is_stream(split) and epochs is not None:
        raise ComponentError(
            f"train.epochs: the dataset {name!r} is streamed and has no known length.",
            "Give train.steps.",
        )
