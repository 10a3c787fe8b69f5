"""The sampler of streaming datasets that are read in lanes: a process reads what it trains on.

The shards are dealt out to so many lanes once and for all, and each lane gives every step the same
places of its global batch. Processes compute neighbouring places, so each reads a few lanes and
nothing else; which sample comes when depends on the lanes, never on the processes. A lane that has
ended begins again, with its shards in another order, so they need not be equally long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np

from ..errors import ComponentError, DataExhausted
from .sampler import Indices, MicroBatch, key, permute, share
from .stream import Position, Reader, StreamSampler, shuffle_block

_SHARDS, _BLOCKS, _DEALT = range(2, 5)
"""Keys of randomness; 0 and 1 are those of a stream without lanes."""
_THREADS = 4
"""Lanes that a process reads at once: they wait for the same network."""
_Samples = list[tuple[int, Any]]
"""(its number in all lanes together, raw example)."""
Taken = Future[tuple[dict[str, Any], list[Any]]]


def sampler_of(split: Any) -> type[StreamSampler | LaneSampler]:
    """What samples a streaming split: in lanes, if it says in how many."""
    return StreamSampler if getattr(split, "lanes", None) is None else LaneSampler


def check_lanes(name: str, split: Any, global_batch: int) -> None:
    """Each lane has a shard, and the same share of every global batch.

    Raises:
        ComponentError: it does not.
    """
    lanes: Any = getattr(split, "lanes", None)
    if lanes is None:
        return
    if not isinstance(lanes, int) or isinstance(lanes, bool) or lanes < 1:
        raise ComponentError(
            f"The dataset {name!r} has `lanes` {lanes!r}; that must be a whole number from 1 on."
        )
    if global_batch % lanes:
        raise ComponentError(
            f"train.global_batch: {global_batch} samples cannot be shared equally by the {lanes}"
            f" lanes of the dataset {name!r}.",
            "Give a number of lanes that divides the global batch.",
        )
    if lanes > split.num_shards:
        raise ComponentError(
            f"The dataset {name!r} has {lanes} lanes and only {split.num_shards} shards for them.",
            f"Give at most {split.num_shards} lanes.",
        )


class Lane:
    """One lane's samples without end, the next block being read meanwhile; `at` is where the next
    sample is."""

    def __init__(
        self, split: Any, number: int, seed: int, at: Position, reading: ThreadPoolExecutor
    ) -> None:
        self.split, self.number, self.seed, self.at = split, number, seed, at
        self.reading = reading
        self._block: _Samples = []
        self._open(at)

    def take(self, count: int) -> _Samples:
        """The next samples.

        Raises:
            DataExhausted: there are none in all its shards.
        """
        taken: _Samples = []
        while len(taken) < count:
            more = self._block[self.at.offset :][: count - len(taken)]
            if more:
                taken += more
                self.at = replace(self.at, offset=self.at.offset + len(more))
            else:
                self._next_block()
        return taken

    def _open(self, at: Position) -> None:
        self._epoch, self._start, self._offset, self._found = at.epoch, at.start, at.offset, False
        self._reader = Reader(self.split, self._order(at.epoch), at)
        self._ahead = self._read()

    def _read(self) -> Taken:
        return self.reading.submit(self._reader.take, shuffle_block(self.split))

    def _order(self, epoch: int) -> Indices:
        """This lane's shards, as it reads them the `epoch`-th time."""
        count = self.split.num_shards
        dealt = permute(np.arange(count), count, key(self.seed, _DEALT))
        own = dealt[self.number :: self.split.lanes]
        mixed: Indices = permute(
            np.arange(len(own)), len(own), key(self.seed, _SHARDS, self.number, epoch)
        )
        return own[mixed]

    def _next_block(self) -> None:
        state, examples = self._ahead.result()
        if not examples:
            if not self._found:
                raise DataExhausted(
                    f"Lane {self.number} of the training stream is empty in epoch {self._epoch}."
                )
            self._open(Position(epoch=self._epoch + 1, start=self._start))
            return
        self._ahead, self._found, count = self._read(), True, len(examples)
        mixed = permute(
            np.arange(count), count, key(self.seed, _BLOCKS, self.number, self._start)
        ).tolist()
        first, lanes = self._start * self.split.lanes + self.number, self.split.lanes
        self._block = [(first + i * lanes, examples[i]) for i in mixed]
        self.at = Position(epoch=self._epoch, start=self._start, offset=self._offset, **state)
        self._start, self._offset = self._start + count, 0


class LaneSampler:
    """Cuts what the lanes give into the same kind of steps as `Sampler` does. `state(step)` is this
    process's part of what a checkpoint has to keep, `joined` the whole."""

    steps_per_epoch: int | None = None
    whole = False

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
        lanes = state["lanes"] if state else {}
        self._resumed = {int(number): Position(**at) for number, at in lanes.items()}
        self._positions: dict[int, dict[int, Position]] = {}

    def state(self, step: int) -> dict[str, Any]:
        """Where this process's lanes are at `step`, as JSON; forgets the steps before."""
        for old in [number for number in self._positions if number < step]:
            del self._positions[old]
        return _state(self._positions.get(step, self._resumed))

    @staticmethod
    def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The state of all lanes, of each process's part."""
        lanes = dict(chain.from_iterable(part["lanes"].items() for part in parts))
        return {"lanes": dict(sorted(lanes.items(), key=lambda lane: int(lane[0])))}

    @staticmethod
    def next_epoch(state: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The state where the lanes cannot go on: their shards are others now."""
        del step  # a lane counts its own epochs
        lanes = {int(number): Position(**at) for number, at in state["lanes"].items()}
        return _state(
            {
                number: Position(epoch=at.epoch + 1, start=at.start + at.offset)
                for number, at in lanes.items()
            }
        )

    def steps(self, first: int, last: int, rank: int, world: int) -> Iterator[MicroBatch]:
        """The micro-batches that a process computes from step `first`, where the state was taken,
        to before `last`."""
        own = [slot for slot, _, _ in share(self.slots, self.slots, rank, world)]
        each = self.global_batch // self.split.lanes
        begin, end = own[0] * self.micro_batch, (own[-1] + 1) * self.micro_batch
        numbers = range(begin // each, -(-end // each))
        before = numbers.start * each
        with ThreadPoolExecutor(
            min(len(numbers), _THREADS), thread_name_prefix="xrun-lane"
        ) as reading:
            lanes = [
                Lane(self.split, number, self.seed, self._resumed.get(number, Position()), reading)
                for number in numbers
            ]
            for step in range(first, last):
                batch = list(chain.from_iterable(lane.take(each) for lane in lanes))
                self._positions[step + 1] = {lane.number: lane.at for lane in lanes}
                for slot in own:
                    start = slot * self.micro_batch - before
                    yield self._piece(step, slot, batch[start : start + self.micro_batch], own[-1])

    def _piece(self, step: int, slot: int, samples: _Samples, last: int) -> MicroBatch:
        return MicroBatch(
            step,
            0,
            slot,
            step * self.slots + slot,
            np.array([number for number, _ in samples], dtype=np.int64),
            self.global_batch,
            last=slot == last,
            examples=tuple(example for _, example in samples),
        )


def _state(lanes: Mapping[int, Position]) -> dict[str, Any]:
    return {"lanes": {str(number): asdict(at) for number, at in lanes.items()}}
