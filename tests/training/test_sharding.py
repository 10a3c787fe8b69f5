"""Sharded models on real processes: saved by four, restored on two and one with the same values.

The file is also the program that the processes run: `python test_sharding.py FOLDER RANK`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from support.ranks import run_ranks
from xrun.checkpoint.checkpointer import Checkpointer, Writers
from xrun.checkpoint.lease import Lease
from xrun.checkpoint.restore import load, newest
from xrun.checkpoint.schedule import SaveSchedule
from xrun.checkpoint.state import TrainState, local
from xrun.recipe.interval import Every
from xrun.recipe.schema import Train
from xrun.run.record import AttemptRecord, RunRecord
from xrun.store.directory.store import DirectoryStore
from xrun.tracker.jsonl import JsonlTracker
from xrun.training.export import full_copy
from xrun.training.objective import Objective
from xrun.training.optimizer import build_optimizer
from xrun.training.sharding import checkpoint_activations, repeated_blocks, shard
from xrun.training.world import World

SIZES = (4, 2, 1)


class Model(nn.Module):
    """Blocks whose rows no number of processes divides, a layer with fewer rows than processes, and
    a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(7, 7), nn.GELU()) for _ in range(2)])
        self.head = nn.Linear(7, 2)
        self.register_buffer("scale", torch.full((3,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x) * self.scale[0]


def model() -> Any:
    torch.manual_seed(0)
    return Model()


def make() -> tuple[TrainState, Objective]:
    objective = Objective(model(), "classification")
    shard(objective, "cpu")
    train = Train(steps=9, global_batch=4, sharding="fsdp")
    return TrainState(objective.model, build_optimizer(train, objective), micro_batch=1), objective


def whole(state: TrainState) -> dict[str, Tensor]:
    """Every tensor of the state, put together from all processes."""
    return {
        name: t.full_tensor() if hasattr(t, "full_tensor") else t.clone()
        for name, t in state.tensors().items()
    }


def open_run(folder: Path, attempt: str, world: World, state: TrainState) -> Checkpointer:
    store = DirectoryStore(folder / "state", "run", attempt, "me")
    if world.rank == 0:
        head = store.head()
        first = RunRecord(digest="d", attempts=(AttemptRecord(attempt),))
        store.commit(head.record if head else first.to_json(), head)
    world.barrier()
    tracker = JsonlTracker(folder / f"tracker-{world.rank}")
    tracker.start({}, 0)
    head = store.head()
    assert head is not None
    lease = Lease(store, head, environment={})
    schedule = SaveSchedule(Every.parse("1 step"), 1, lambda: 1.0, lambda: 0.0)
    writers = Writers(world.rank, world.size, world.saving)
    return Checkpointer(state, lease, schedule, tracker, writers)


def step(state: TrainState, objective: Objective, world: World) -> None:
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(state.step))
    (objective((x, torch.tensor([0, 1, 0, 1])))["loss"] * world.size).backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    for size in SIZES:
        if rank >= size:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size
        )
        world = World(rank, size, dist.new_group(), dist.new_group())
        state, objective = make()
        run = open_run(folder, f"a{size}", world, state)
        found: dict[str, Any] = {}
        if size == 4:
            step(state, objective, world)
            step(state, objective, world)
            run.begin()
            before = whole(state)
            run.before_step()
            step(state, objective, world)  # the save goes on meanwhile and has the old values
            run.wait()
            found["own bytes"] = sum(
                local(t).nbytes for t in run.state.tensors().values() if hasattr(t, "to_local")
            )
            whole_ones = (
                state.tensors()["model.scale"].nbytes if rank == 0 else 0
            )  # the first process writes what is not sharded
            found["copied bytes"] = (
                sum(room.nbytes for room in run._snapshot.rooms.values()) - whole_ones
            )
        else:
            _, checkpoint, paths = newest(run.lease.store, run.lease.head)
            assert checkpoint is not None
            load(state, checkpoint, paths)
            before = whole(state)
        found |= {
            "values": before,
            "step": state.step,
            "copy": full_copy(state.model, model),
        }
        if found["copy"] is not None:
            found["copy"] = found["copy"].state_dict()
        now = whole(state)
        found["now"] = now
        torch.save(found, folder / f"{size}-{rank}.pt")
        dist.barrier()
        run.close()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """What every rank of 4, 2 and 1 real processes has."""
    folder = tmp_path_factory.mktemp("sharding")
    run_ranks(__file__, folder, max(SIZES))
    return {
        (size, rank): torch.load(folder / f"{size}-{rank}.pt")
        for size in SIZES
        for rank in range(size)
    }


@pytest.mark.parametrize("size", [2, 1])
def test_what_four_saved_is_what_fewer_restore(
    found: dict[tuple[int, int], Any], size: int
) -> None:
    """The unsharded weights and optimizer state on 2 and 1 processes are bitwise those that 4
    processes had when they saved."""
    saved, restored = found[4, 0]["values"], found[size, 0]["values"]
    assert restored.keys() == saved.keys()
    assert all(torch.equal(restored[name], tensor) for name, tensor in saved.items())
    assert any(name.startswith("optimizer.blocks.0") for name in saved)
    assert found[size, size - 1]["step"] == 2


def test_the_save_went_on_while_the_model_trained(found: dict[tuple[int, int], Any]) -> None:
    """The checkpoint has the values from before the step that ran during the save: that step did
    change them."""
    saved, after = found[4, 0]["values"], found[4, 0]["now"]
    assert not torch.equal(saved["model.head.weight"], after["model.head.weight"])


def test_each_process_copies_its_own_part(found: dict[tuple[int, int], Any]) -> None:
    """Saving takes one copy of a process's own rows; nowhere is the whole state put together."""
    for rank in range(4):
        assert (
            found[4, rank]["copied bytes"] <= found[4, rank]["own bytes"] + 4 * 6
        )  # and six step counters on the first
    assert sum(found[4, rank]["own bytes"] for rank in range(4)) == sum(
        t.nbytes
        for name, t in found[4, 0]["values"].items()
        if name != "model.scale" and not name.endswith(".step")
    )


def test_an_unsharded_copy_is_made_on_the_first_process(found: dict[tuple[int, int], Any]) -> None:
    """For the export the first process has an ordinary model with all values, the others have
    none."""
    for size in (4, 2):
        copy, now = found[size, 0]["copy"], found[size, 0]["now"]
        assert all(torch.equal(copy[name], now[f"model.{name}"]) for name in model().state_dict())
        assert all(found[size, rank]["copy"] is None for rank in range(1, size))


def test_repeated_blocks_are_the_children_of_module_lists() -> None:
    """Units of sharding and recomputation are what a model repeats."""
    own = model()
    assert list(repeated_blocks(own)) == list(own.blocks)
    assert list(repeated_blocks(nn.Linear(2, 2))) == []


def test_recomputed_activations_give_the_same_gradient() -> None:
    """With activation checkpointing the loss and every gradient are bitwise the same, dropout
    included."""
    grads = []
    for wrap in (False, True):
        own = model()
        own.blocks.append(nn.Sequential(nn.Linear(7, 7), nn.Dropout(0.5)))
        with torch.no_grad():
            own.blocks[2][0].weight.fill_(0.1)
            own.blocks[2][0].bias.fill_(0.1)
        if wrap:
            checkpoint_activations(own)
        torch.manual_seed(5)
        own(torch.ones(3, 7)).sum().backward()
        grads.append([p.grad for p in own.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_checkpointing_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A model without blocks has nothing to compute again."""
    checkpoint_activations(nn.Sequential(nn.Linear(2, 2)))
    assert "train.activation_checkpointing changes nothing" in caplog.text
    caplog.clear()
    checkpoint_activations(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])))
    assert caplog.text == ""


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
