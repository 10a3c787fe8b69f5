"""Which samples a step trains on: every promise of the data's order, without a process in sight.

Covers `xrun.data.randomness`.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xrun.data.randomness import seed_generators
from xrun.data.sampler import MicroBatch, Sampler, cut, key, permute

SEEDS = st.integers(0, 2**63 - 1)
WORLDS = (1, 2, 4)


def by_rank(sampler: Sampler, step: int, world: int) -> list[list[MicroBatch]]:
    return [sampler.step(step, rank, world) for rank in range(world)]


def counted(pieces: list[MicroBatch]) -> list[MicroBatch]:
    return [piece for piece in pieces if piece.weight]


def flat(pieces: list[MicroBatch]) -> list[int]:
    return [int(index) for piece in counted(pieces) for index in piece.indices]


@settings(max_examples=60)
@given(size=st.integers(1, 5000), seed=SEEDS)
@example(size=1, seed=0)
@example(size=2, seed=0)
@example(size=3, seed=0)
@example(size=4, seed=2**63 - 1)
@example(size=4097, seed=1)
def test_a_permutation_takes_every_number_once(size: int, seed: int) -> None:
    """For every size and seed the permutation is a bijection of range(size)."""
    assert sorted(permute(np.arange(size), size, seed).tolist()) == list(range(size))


@settings(max_examples=40)
@given(size=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_any_position_can_be_asked_alone(size: int, seed: int, data: st.DataObject) -> None:
    """A position goes to the same place alone and among others, inside range(size), in datasets far
    too large for a table."""
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = permute(np.array(positions), size, seed)
    assert [int(permute(np.array([p]), size, seed)[0]) for p in positions] == together.tolist()
    assert len(set(together.tolist())) == len(positions)
    assert together.min() >= 0
    assert together.max() < size


def test_asking_changes_no_argument() -> None:
    """The positions that were asked for are not written over."""
    positions = np.arange(100)
    permute(positions, 100, 3)
    assert positions.tolist() == list(range(100))


def test_near_seeds_are_far_apart() -> None:
    """Seeds, epochs and purposes that differ by one give unrelated 64-bit keys."""
    keys = [key(seed, epoch) for seed in range(40) for epoch in range(40)]
    assert len(set(keys)) == 1600
    assert all(0 <= value < 2**64 for value in keys)
    flips = [(key(1, n) ^ key(1, n + 1)).bit_count() for n in range(200)]
    assert 28 < sum(flips) / 200 < 36


@settings(max_examples=40)
@given(
    samples=st.integers(1, 300),
    micro=st.integers(1, 5),
    slots=st.sampled_from([4, 8]),
    seed=SEEDS,
    step=st.integers(0, 50),
)
def test_a_step_has_the_same_samples_on_any_number_of_processes(
    samples: int, micro: int, slots: int, seed: int, step: int
) -> None:
    """The processes' micro-batches, one after the other, are the global batch itself, slot by slot
    and number by number."""
    sampler = Sampler(samples, micro * slots, micro, seed)
    alone = counted(sampler.step(step, 0, 1))
    for world in WORLDS:
        pieces = [piece for rank in by_rank(sampler, step, world) for piece in counted(rank)]
        assert [(p.slot, p.number, p.total, p.indices.tolist()) for p in pieces] == [
            (p.slot, p.number, p.total, p.indices.tolist()) for p in alone
        ]
        assert sum(piece.digest() for piece in pieces) == sum(piece.digest() for piece in alone)
    assert sum(len(piece.indices) for piece in alone) == alone[0].total


@settings(max_examples=30)
@given(
    samples=st.integers(1, 500),
    micro=st.integers(1, 4),
    slots=st.sampled_from([4, 8]),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_sample_once(samples: int, micro: int, slots: int, epoch: int) -> None:
    """All steps of an epoch on 4 processes take every sample exactly once, and the last batch is as
    short as it must be."""
    sampler = Sampler(samples, micro * slots, micro, 7)
    first = epoch * sampler.steps_per_epoch
    pieces = [
        p
        for step in range(first, first + sampler.steps_per_epoch)
        for rank in by_rank(sampler, step, 4)
        for p in rank
    ]
    assert sorted(flat(pieces)) == list(range(samples))
    assert {piece.epoch for piece in pieces} == {epoch}
    assert pieces[-1].total == samples - (sampler.steps_per_epoch - 1) * sampler.global_batch


def test_numbers_of_micro_batches_are_never_used_twice_in_an_epoch() -> None:
    """What seeds a micro-batch's augmentation is its own in the epoch."""
    sampler = Sampler(103, 16, 2, 0)
    numbers = [
        piece.number
        for step in range(sampler.steps_per_epoch)
        for piece in counted(sampler.step(step, 0, 1))
    ]
    assert len(set(numbers)) == len(numbers)


def test_epochs_differ_and_seeds_differ() -> None:
    """Another epoch, and another seed, is another order of the same samples."""
    sampler, other = Sampler(1000, 10, 5, 0), Sampler(1000, 10, 5, 1)
    orders = [sampler.indices(0, 0, 1000), sampler.indices(1, 0, 1000), other.indices(0, 0, 1000)]
    assert all((orders[a] == orders[b]).mean() < 0.02 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_an_order_has_nothing_left_of_the_dataset_s() -> None:
    """The shuffled positions of neighbours are as far apart as chance has it."""
    order = Sampler(100_000, 10, 5, 3).indices(0, 0, 100_000)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.abs(np.diff(order)).mean() / 100_000 - 1 / 3) < 0.01


def test_any_step_can_be_asked_first() -> None:
    """A step in the middle of the 1000th epoch is the same for a new sampler as for one that has
    come all the way."""
    steps = list(range(0, 3000, 37))
    used = Sampler(10_007, 64, 8, 5)
    walked = {step: flat(used.step(step, 0, 1)) for step in steps}
    random.Random(0).shuffle(steps)
    fresh = Sampler(10_007, 64, 8, 5)
    assert all(flat(fresh.step(step, 0, 1)) == walked[step] for step in steps)
    far = fresh.steps_per_epoch * 999 + 80
    assert flat(fresh.step(far, 0, 1)) == flat(Sampler(10_007, 64, 8, 5).step(far, 0, 1))


def test_batches_over_the_edge_of_a_block_are_whole() -> None:
    """Samples come in order from blocks that are permuted at once, also where a batch lies in
    several of them."""
    sampler = Sampler(30_000, 10_000, 100, 0)
    whole = permute(np.arange(30_000), 30_000, key(0, 0))
    assert flat(sampler.step(1, 0, 1)) == whole[10_000:20_000].tolist()
    assert sampler.indices(0, 4095, 4097).tolist() == whole[4095:4097].tolist()


@pytest.mark.parametrize(
    ("count", "size", "pieces"),
    [
        (8, 4, [(0, 4), (4, 8)]),
        (7, 4, [(0, 4), (4, 7)]),
        (5, 4, [(0, 5)]),
        (9, 4, [(0, 4), (4, 9)]),
        (1, 4, [(0, 1)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_a_last_sample_alone_joins_the_piece_before(
    count: int, size: int, pieces: list[tuple[int, int]]
) -> None:
    """A batch is cut into equal pieces, the last one shorter but never of one sample unless there
    is no other way."""
    assert cut(count, size) == pieces


def test_processes_without_samples_compute_placeholders() -> None:
    """In a short batch every process has as many micro-batches as the first; what fills up has
    weight 0."""
    sampler = Sampler(35, 32, 4, 0)
    ranks = by_rank(sampler, 1, 4)
    assert [[piece.weight for piece in rank] for rank in ranks] == [[1], [0], [0], [0]]
    assert all(len(piece.indices) for rank in ranks for piece in rank)
    assert len({len(rank) for rank in ranks}) == 1
    assert len(flat([piece for rank in ranks for piece in rank])) == 3


def test_the_last_micro_batch_of_a_step_says_so() -> None:
    """Exactly one micro-batch per step and process is marked as the last, placeholders included."""
    sampler = Sampler(45, 32, 4, 0)
    for step in (0, 1):
        for rank in by_rank(sampler, step, 2):
            assert [piece.last for piece in rank] == [False] * (len(rank) - 1) + [True]


def test_a_digest_depends_on_samples_and_place() -> None:
    """The digest of a micro-batch changes with every sample, their order and the slot, and fits 40
    bits."""
    indices = np.arange(4)
    base = MicroBatch(0, 0, 1, 1, indices, 8)
    others = [MicroBatch(0, 0, 2, 1, indices, 8), MicroBatch(0, 0, 1, 1, indices[::-1].copy(), 8)]
    assert len({base.digest(), *(other.digest() for other in others)}) == 3
    assert base.digest() < 2**40


def test_weighted_samples_come_in_their_proportion() -> None:
    """Among many draws each sample's share is its weight's, and weight 0 never comes."""
    weights = np.array([0.0, 1.0, 2.0, 5.0, 0.0] * 2000)
    drawn = Sampler(10_000, 100, 10, 0, weights).indices(0, 0, 10_000)
    share = np.bincount(drawn % 5, minlength=5) / 10_000
    assert share[0] == share[4] == 0
    assert np.abs(share - np.array([0, 1, 2, 5, 0]) / 8).max() < 0.02


def test_weighted_draws_are_a_function_of_their_place() -> None:
    """With weights too, a step has the same samples in a new sampler and on any number of
    processes; epochs differ."""
    weights = np.random.default_rng(0).random(500)
    first, second = Sampler(500, 16, 4, 9, weights), Sampler(500, 16, 4, 9, weights)
    assert flat(first.step(40, 0, 1)) == [
        index for rank in by_rank(second, 40, 4) for index in flat(rank)
    ]
    assert first.indices(0, 0, 500).tolist() != first.indices(1, 0, 500).tolist()


def test_a_weighted_draw_at_the_very_end_is_a_sample() -> None:
    """The largest number that a generator can give still falls on a sample with weight, not behind
    the last."""
    sampler = Sampler(4, 4, 4, 0, [1.0, 1.0, 1.0, 0.0])
    assert sampler.at(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist() == [0, 2]


@pytest.mark.parametrize("place", [(0, 1), (7, 2, 100, 0), (2**64 - 1, 3, 2**40)])
def test_generators_are_seeded_as_their_libraries_do(place: tuple[int, ...]) -> None:
    """With the key of the place, whatever was drawn before: also the second half of a pair of
    normal numbers is gone."""
    seed = key(*place)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    expected = random.gauss(0, 1), np.random.rand(), torch.rand(1).item()
    random.gauss(0, 1)
    seed_generators(*place)
    assert (random.gauss(0, 1), np.random.rand(), torch.rand(1).item()) == expected
    seed_generators(*place)
    assert random.getstate() == random.Random(seed).getstate()
