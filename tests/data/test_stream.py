"""Streaming datasets: the same order however often a run is resumed, on real iterable datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import IterableDataset

from support.streams import ResumableShard, Shards
from xrun.data.loader import Loader
from xrun.data.sampler import MicroBatch
from xrun.data.stream import StreamSampler, check_stream, is_stream
from xrun.errors import ComponentError, DataExhausted


class Plain(IterableDataset[int]):
    """Torch's own kind: no shards, no state."""

    shuffle_block = 7

    def __iter__(self) -> Iterator[int]:
        return iter(range(29))


class PlainWithState(Plain):
    """No shards; the state that was loaded is where the next iteration begins."""

    begin, at = 0, 0

    def __iter__(self) -> Iterator[int]:
        self.at = self.begin
        while self.at < 29:
            self.at += 1
            yield self.at - 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["at"]


SPLITS = {
    "shards": lambda: Shards(11, 0, 3, 20, 1),
    "resumable": lambda: Shards(11, 0, 3, 20, 1, kind=ResumableShard),
    "plain": Plain,
    "plain with state": PlainWithState,
}
STEPS = 16
GLOBAL, MICRO = 6, 2


def sampler(split: Any, state: dict[str, Any] | None = None) -> StreamSampler:
    return StreamSampler(split, GLOBAL, MICRO, seed=5, state=state)


def what(piece: MicroBatch) -> tuple[Any, ...]:
    return (
        piece.step,
        piece.epoch,
        piece.slot,
        piece.number,
        piece.indices.tolist(),
        piece.total,
        piece.weight,
        piece.examples,
    )


def walk(
    split: Any, first: int = 0, last: int = STEPS, state: Any = None, rank: int = 0, world: int = 1
) -> list[Any]:
    return [what(piece) for piece in sampler(split, state).steps(first, last, rank, world)]


def states(split: Any) -> list[dict[str, Any]]:
    """What a checkpoint would keep at each step, asked when the step has been trained, as the loop
    does."""
    own = sampler(split)
    found = [own.state(0)]
    for piece in own.steps(0, STEPS, 0, 1):
        found += [own.state(piece.step + 1)] if piece.last else []
    return found


@pytest.mark.parametrize("kind", SPLITS)
def test_resuming_at_any_step_changes_nothing(kind: str) -> None:
    """From the JSON state of every step, over blocks, shards and epochs, the stream goes on as if
    it had never stopped."""
    undisturbed = walk(SPLITS[kind]())
    assert undisturbed[-1][1] >= 2  # the third epoch is reached
    for step, state in enumerate(states(SPLITS[kind]())):
        resumed = walk(SPLITS[kind](), first=step, state=json.loads(json.dumps(state)))
        assert resumed == [piece for piece in undisturbed if piece[0] >= step], step


@pytest.mark.parametrize("kind", SPLITS)
def test_resuming_again_and_again_changes_nothing(kind: str) -> None:
    """A run that is stopped after every single step reads the same stream."""
    state, pieces = None, []
    for step in range(STEPS):
        own = sampler(SPLITS[kind](), state)
        pieces += [what(piece) for piece in own.steps(step, step + 1, 0, 1)]
        state = json.loads(json.dumps(own.state(step + 1)))
    assert pieces == walk(SPLITS[kind]())


def test_an_epoch_that_fills_its_last_batch_ends_cleanly() -> None:
    """Where the global batch divides the epoch, the run resumed at the border begins the next epoch
    like the undisturbed one."""
    split = Shards(6, 6)
    undisturbed = walk(split, last=6)
    assert [piece[5] for piece in undisturbed] == [GLOBAL] * 18
    own = sampler(split)
    list(own.steps(0, 2, 0, 1))
    assert walk(split, first=2, last=6, state=own.state(2)) == [
        piece for piece in undisturbed if piece[0] >= 2
    ]


def test_an_epoch_of_a_stream_has_every_example_once() -> None:
    """Each epoch brings every example of every shard once, in an order of its own, the last batch
    being short."""
    orders = []
    for epoch in range(3):
        pieces = [piece for piece in walk(SPLITS["shards"](), last=18) if piece[1] == epoch]
        examples = [example for piece in pieces for example in piece[7]]
        assert sorted(examples) == [
            (s, n) for s, size in enumerate((11, 0, 3, 20, 1)) for n in range(size)
        ]
        assert sorted(index for piece in pieces for index in piece[4]) == list(range(35))
        assert pieces[-1][5] == 35 % GLOBAL
        orders.append(examples)
    assert len({tuple(order) for order in orders}) == 3


def test_examples_are_shuffled_within_blocks_and_shards_among_each_other() -> None:
    """Neither the shards nor the examples of a block come in the order in which they lie."""
    examples = [example for piece in walk(Shards(*[20] * 10), last=33) for example in piece[7]]
    shards = list(dict.fromkeys(example[0] for example in examples))
    assert shards != sorted(shards)
    assert [example[1] for example in examples] != [n for _ in range(10) for n in range(20)][
        : len(examples)
    ]


@pytest.mark.parametrize("world", [1, 3])
def test_processes_share_a_stream_as_they_share_any_batch(world: int) -> None:
    """On any number of processes the micro-batches with weight are together those of one
    process."""
    own = [walk(SPLITS["shards"](), rank=rank, world=world) for rank in range(world)]
    assert sorted(piece for rank in own for piece in rank if piece[6]) == sorted(
        walk(SPLITS["shards"]())
    )
    rounds = [[sum(piece[0] == step for piece in rank) for step in range(STEPS)] for rank in own]
    assert all(counts == rounds[0] for counts in rounds)


def test_the_training_process_does_not_decode() -> None:
    """Examples are only read in the training process; `transform` runs where a micro-batch is
    fetched, in a worker."""
    split = Shards(40)
    alone = [
        batch.tolist()
        for step in Loader(split, sampler(split).steps(0, 4, 0, 1), 5)
        for _, batch in step
    ]
    assert split.transformed == 24
    split.transformed = 0
    worked = [
        batch.tolist()
        for step in Loader(split, sampler(split).steps(0, 4, 0, 1), 5, num_workers=1)
        for _, batch in step
    ]
    assert worked == alone
    assert split.transformed == 0


def test_a_shard_with_a_state_is_not_read_from_its_beginning() -> None:
    """Resuming reads one block of a resumable shard again, not everything before it."""
    split = Shards(5000, kind=ResumableShard)
    own = sampler(split)
    list(own.steps(0, 700, 0, 1))
    fresh = Shards(5000, kind=ResumableShard)
    walk(fresh, first=700, last=701, state=own.state(700))
    assert fresh.read < 40


def test_an_empty_stream_is_said() -> None:
    """A stream without a single example ends training with an error instead of going round for
    ever."""
    for split in (Shards(), Shards(0, 0)):
        with pytest.raises(DataExhausted, match="empty in epoch 0"):
            walk(split)


def test_a_stream_that_becomes_empty_is_said() -> None:
    """An epoch without examples after one with examples is an error too, resumed at its border or
    not."""
    split = Shards(6)
    own = sampler(split)
    pieces = own.steps(0, 9, 0, 1)
    list(islice(pieces, 3))
    state = own.state(1)
    split.sizes = (0,)
    with pytest.raises(DataExhausted, match="epoch 1"):
        list(pieces)
    with pytest.raises(DataExhausted, match="epoch 1"):
        walk(Shards(0), first=1, state=state)


def test_what_streams_is_recognised() -> None:
    """A split with shards, or one that cannot be indexed, streams; a list does not."""
    assert [is_stream(split) for split in (Shards(1), Plain(), [1, 2])] == [True, True, False]


def test_a_stream_cannot_be_counted_in_epochs() -> None:
    """A recipe with epochs over a stream is refused with the way out."""
    with pytest.raises(ComponentError, match=r"Give train\.steps"):
        check_stream("text", Shards(3), epochs=2)
    check_stream("text", Shards(3), epochs=None)
    check_stream("text", [1], epochs=2)
