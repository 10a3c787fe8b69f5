"""Which samples a step trains on: a pure function of (seed, epoch, step), never of processes or
workers.

An epoch is a seeded permutation with random access, so going to any position costs nothing. It is a
Feistel network (Luby and Rackoff, 1988) over the smallest even power of two that holds the dataset,
with cycle walking (Black and Rogaway, 2002) for the numbers outside it, computed in blocks with
numpy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_ROUNDS = 6
_BLOCK = 4096
"""Positions that are permuted at once: about 0.3 ms, spread over every batch cut from them."""
_AHEAD = 64
"""Micro-batches that are cut at once: in a row each takes half as long as between two steps."""
_MASK = (1 << 64) - 1


def key(*parts: int, mixed: int = 0) -> int:
    """Mix integers into one 64-bit seed (splitmix64, Steele et al. 2014), so that near inputs give
    far seeds; `mixed` is the key of those before them."""
    for part in parts:
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed


def permute(positions: Indices, size: int, seed: int) -> Indices:
    """Where a seeded permutation of `range(size)` sends each position; O(1) each and without a
    table."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [np.uint64(key(seed, number)) for number in range(_ROUNDS)]
    values = _feistel(positions.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: Words, half: int, keys: list[np.uint64]) -> Words:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for round_key in keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xC4CEB9FE1A85EC53)
    return words ^ (words >> np.uint64(32))


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass: some samples of one step.

    `slot` counts within the global batch and `number` within the epoch; both are the same whoever
    computes it. `weight` is 0 for a placeholder: a process that owns nothing of a short last batch
    computes one and adds nothing. `last` marks the step's last one on this process, `total` counts
    the samples of the whole step. `examples` holds raw examples where the dataset streams;
    `indices` are then their positions in the epoch's stream.
    """

    step: int
    epoch: int
    slot: int
    number: int
    indices: Indices
    total: int
    weight: int = 1
    last: bool = False
    examples: tuple[Any, ...] | None = None

    @property
    def samples(self) -> int:
        """How many samples it has, whatever its batch looks like."""
        return len(self.indices)

    def digest(self) -> int:
        """40 bits of what is trained on and where; the sum over a step says which samples it really
        used."""
        data = self.slot.to_bytes(8, "little") + self.indices.tobytes()
        return int.from_bytes(hashlib.blake2b(data, digest_size=5).digest(), "little")


class Sampler:
    """Cuts epochs into global batches and these into micro-batches.

    Every sample of an epoch comes exactly once; the last batch of an epoch is smaller when the
    batch does not divide the dataset, and a last micro-batch of one sample joins the one before it
    (a single sample breaks batch statistics). With `weights`, samples are drawn with replacement in
    their proportion, an epoch being as many draws as there are samples.
    """

    whole = True

    def __init__(
        self,
        samples: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        self.samples, self.global_batch, self.micro_batch, self.seed = (
            samples,
            global_batch,
            micro_batch,
            seed,
        )
        self.steps_per_epoch = -(-samples // global_batch)
        self.slots = global_batch // micro_batch
        self._cumulative = (
            None if weights is None else np.cumsum(np.asarray(weights, dtype=np.float64))
        )
        self._block = lru_cache(maxsize=4)(self._compute_block)

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """The sample indices at positions start..stop of an epoch."""
        blocks = range(start // _BLOCK, -(-stop // _BLOCK))
        parts = [
            self._block(epoch, number)[max(0, start - number * _BLOCK) : stop - number * _BLOCK]
            for number in blocks
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def state(self, step: int) -> None:
        """Nothing has to be saved: the step says it all."""

    def steps(self, first: int, last: int, rank: int, world: int) -> Iterator[MicroBatch]:
        """The micro-batches that a process computes from step `first` to before `last`, in
        order."""
        ahead = max(1, _AHEAD // self.slots)
        for start in range(first, last, ahead):
            pieces = [
                self.step(step, rank, world) for step in range(start, min(start + ahead, last))
            ]
            yield from itertools.chain.from_iterable(pieces)

    def step(self, step: int, rank: int, world: int) -> list[MicroBatch]:
        """The micro-batches of one step that a process computes, never none."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.global_batch
        indices = self.indices(epoch, start, min(start + self.global_batch, self.samples))
        bounds = cut(len(indices), self.micro_batch)
        own = share(len(bounds), self.slots, rank, world)
        return [
            MicroBatch(
                step,
                epoch,
                slot,
                batch * self.slots + slot,
                indices[slice(*bounds[slot])],
                len(indices),
                weight,
                last,
            )
            for slot, weight, last in own
        ]

    def _compute_block(self, epoch: int, number: int) -> Indices:
        positions = np.arange(
            number * _BLOCK, min((number + 1) * _BLOCK, self.samples), dtype=np.int64
        )
        seed = key(self.seed, epoch)
        if self._cumulative is None:
            return permute(positions, self.samples, seed)
        return self.at(_mix(positions.astype(np.uint64) ^ np.uint64(seed)))

    def at(self, words: Words) -> Indices:
        """The samples that random words fall on, in proportion to the weights."""
        cumulative: npt.NDArray[np.float64] = self._cumulative  # type: ignore[assignment]  # asked only with weights
        end = np.nextafter(
            cumulative[-1], 0.0
        )  # the largest words round up to 1.0, behind the last sample
        return np.searchsorted(
            cumulative, np.minimum(words / 2.0**64 * cumulative[-1], end), side="right"
        ).astype(np.int64)


def cut(count: int, size: int) -> list[tuple[int, int]]:
    """Cut `count` samples into pieces of `size`; a last piece of one sample joins the one
    before."""
    bounds = [*list(range(0, count, size)), count]
    if size > 1 and len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
        del bounds[-2]
    return list(itertools.pairwise(bounds))


def share(pieces: int, slots: int, rank: int, world: int) -> list[tuple[int, int, bool]]:
    """What one process out of `world` computes of a step's pieces, as (slot, weight, last): [rank *
    M / P, (rank + 1) * M / P).

    Every process gets as many as the first one (in a short batch filled up with placeholders of
    weight 0), because sharded models meet in every forward pass.
    """
    per_rank = slots // world
    rounds = min(per_rank, pieces)
    first = rank * per_rank
    own = [(slot, 1, False) for slot in range(first, min(first + rounds, pieces))]
    own += [(0, 0, False)] * (rounds - len(own))
    return [*own[:-1], (*own[-1][:2], True)]
