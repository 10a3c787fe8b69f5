"""Streams that are read in lanes: the same samples on any number of processes, however often they
resume, and each process reads what it trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.running import Project, curve, weights
from support.streams import ResumableShard, Shards
from xrun.data.lanes import LaneSampler, check_lanes
from xrun.data.sampler import MicroBatch
from xrun.errors import ComponentError, DataExhausted

GLOBAL, MICRO, STEPS = 12, 2, 16
SIZES = (11, 0, 3, 20, 1, 17, 9, 14)


class Lanes(Shards):
    """As a component says it."""

    def __init__(self, *sizes: int, lanes: int = 3) -> None:
        super().__init__(*sizes, kind=ResumableShard)
        self.lanes = lanes


def sampler(split: Any, state: Any = None, micro: int = MICRO) -> LaneSampler:
    return LaneSampler(split, GLOBAL, micro, seed=5, state=state)


def what(piece: MicroBatch) -> tuple[Any, ...]:
    return (piece.step, piece.slot, piece.number, piece.indices.tolist(), piece.examples)


def walk(
    split: Any, first: int = 0, last: int = STEPS, state: Any = None, rank: int = 0, world: int = 1
) -> list[Any]:
    return [what(piece) for piece in sampler(split, state).steps(first, last, rank, world)]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_compute_together_what_one_computes(world: int) -> None:
    """Also where a process has two lanes, or two processes share one."""
    alone = walk(Lanes(*SIZES))
    shared = [
        piece for rank in range(world) for piece in walk(Lanes(*SIZES), 0, STEPS, None, rank, world)
    ]
    assert sorted(shared) == alone


def test_micro_batches_of_another_size_hold_the_same_samples() -> None:
    """In the same order."""
    orders = [
        [
            example
            for piece in sampler(Lanes(*SIZES), micro=micro).steps(0, STEPS, 0, 1)
            for example in piece.examples or ()
        ]
        for micro in (1, 2, 6)
    ]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_goes_on_with_other_processes(before: int, after: int) -> None:
    """From the JSON state of every step, which is joined of what each process knows, over blocks,
    shards and the lanes' ends."""
    alone = walk(Lanes(*SIZES))
    own = [sampler(Lanes(*SIZES)) for _ in range(before)]
    walks = [each.steps(0, STEPS, rank, before) for rank, each in enumerate(own)]
    for step in range(STEPS):
        parts = [each.state(step) for each in own]
        state = json.loads(json.dumps(LaneSampler.joined(parts)))
        rest = [
            piece
            for rank in range(after)
            for piece in walk(Lanes(*SIZES), step, min(step + 3, STEPS), state, rank, after)
        ]
        assert sorted(rest) == [piece for piece in alone if step <= piece[0] < step + 3]
        for each in walks:
            while not next(each).last:
                pass


def test_every_lane_gives_each_of_its_examples_once_before_it_begins_again() -> None:
    """All lanes together have all shards; the second time comes in another order."""
    lanes = 4
    pieces = walk(Lanes(*[10] * 8, lanes=lanes), last=14)
    given: dict[int, list[Any]] = {number: [] for number in range(lanes)}
    for piece in pieces:
        for number, example in zip(piece[3], piece[4], strict=True):
            given[number % lanes].append(example)
    first = {number: examples[:20] for number, examples in given.items()}
    assert sorted(example for each in first.values() for example in each) == [
        (shard, i) for shard in range(8) for i in range(10)
    ]
    for number, examples in given.items():
        assert sorted(examples[20:40]) == sorted(first[number])
        assert examples[20:40] != first[number]
    numbers = [number for piece in pieces for number in piece[3]]
    assert len(set(numbers)) == len(numbers)


def test_a_process_reads_what_it_trains_on() -> None:
    """And at most two blocks of each of its lanes ahead."""
    for world in (1, 2, 3, 6):
        for rank in range(world):
            split = Lanes(*[400] * 8, lanes=6)
            trained = sum(len(piece[3]) for piece in walk(split, 0, 100, None, rank, world))
            assert trained == 1200 // world
            assert split.read <= trained + 2 * split.shuffle_block * (6 // world)


def test_where_the_shards_are_others_the_lanes_begin_again() -> None:
    """Each with a new epoch of its own, which has every example once."""
    own = sampler(Lanes(*SIZES))
    before = [what(piece) for piece in own.steps(0, 3, 0, 1)]
    state = LaneSampler.next_epoch(own.state(3), 3)
    after = walk(Lanes(*[12] * 9), 3, 12, state)
    assert sorted(example for piece in after for example in piece[4]) == [
        (shard, number) for shard in range(9) for number in range(12)
    ]
    assert [piece[0] for piece in before] + [piece[0] for piece in after] == [
        step for step in range(12) for _ in range(GLOBAL // MICRO)
    ]


def test_a_lane_without_a_sample_is_an_error() -> None:
    """Its number says which."""
    with pytest.raises(DataExhausted, match=r"Lane . of the training stream is empty in epoch 0"):
        walk(Lanes(5, 0, 5, lanes=3))


@pytest.mark.parametrize(
    ("lanes", "says"),
    [
        (5, "train.global_batch: 12 samples cannot be shared equally by the 5 lanes"),
        (12, "has 12 lanes and only 8 shards"),
        (0, "has `lanes` 0; that must be a whole number"),
        ("four", "has `lanes` 'four'; that must be a whole number"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(lanes: Any, says: str) -> None:
    with pytest.raises(ComponentError, match=says):
        check_lanes("points", Lanes(*SIZES, lanes=lanes), GLOBAL)


DATASET = """\
import json, os, time
from pathlib import Path

import torch

PROJECT = Path(__file__).parent.parent


def committed():
    # The save of a step after the first may still be on its way, or begin with the next step.
    patience = time.monotonic() + 5
    while time.monotonic() < patience:
        for path in PROJECT.glob("runs/*/committed.json"):
            if json.loads(path.read_text())["step"] > 0:
                return True
        time.sleep(0.01)
    return False


class Shard:
    def __init__(self, number):
        self.number, self.at = number, 0

    def __iter__(self):
        while self.at < 30:
            self.at += 1
            yield self.number * 100 + self.at

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Points:
    num_shards, lanes, shuffle_block = 8, 4, 5
    collated = 0

    def shard(self, number):
        return Shard(number)

    def transform(self, number):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4, generator=generator)
        return x, int(x.sum() > 0)

    def collate(self, items):
        Points.collated += 1
        file = PROJECT / "kill"
        if file.exists() and Points.collated > int(file.read_text()) and committed():
            file.unlink(missing_ok=True)
            os.kill(os.getpid(), 9)
        return torch.utils.data.default_collate(items)


def build(n: int = 100, weighted: bool = False):
    return {"train": Points()}
"""


def test_a_run_that_is_killed_and_resized_trains_on_the_same_samples(tmp_path: Path) -> None:
    """A run on one process, and one on two that is killed after a commit and goes on alone: under
    `reduction: exact` the same weights to the last bit."""
    overrides = ("train.reduction=exact", "checkpoint.every=1 steps")
    projects = [Project(tmp_path / name) for name in ("alone", "resized")]
    for project in projects:
        project.write("datasets/points.py", DATASET)
    assert projects[0].attempt(*overrides).code == 0
    projects[1].write("kill", "18")
    assert projects[1].attempt(*overrides, processes=2).code == 75
    committed = json.loads((projects[1].run.path / "committed.json").read_text())["step"]
    assert 0 < committed < 20
    assert projects[1].attempt(*overrides).code == 0
    assert curve(projects[0].run) == curve(projects[1].run)
    assert weights(projects[0].run) == weights(projects[1].run)
