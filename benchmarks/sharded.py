"""A sharded model on 1, 2 and 4 processors' processes: what each reads to restore, and the memory
that building, saving and restoring take, over its own part of the state.

    python -m benchmarks.sharded [WIDTH]

Each life restores what the one before it has saved, trains a step and saves. Memory is anonymous
(RssAnon), looked at every 2 ms. The state is one of AdamW: weights and two moments.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xrun.store.blocks import BLOCK

SIZES = (4, 2, 1, 4)
"""Of the lives, one after the other."""
BLOCKS = 8
SMALL = 64
"""A block's bytes are divided by this, as the state is smaller than one that needs sharding."""


def main(width: int) -> None:
    print(f"{BLOCKS} layers of {width} x {width}, blocks of {BLOCK // SMALL >> 10} kB")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            environment = {
                **os.environ,
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            command = [sys.executable, "-m", "benchmarks.sharded", folder, str(width)]
            ranks = [
                subprocess.Popen(command, env={**environment, "RANK": str(rank)})
                for rank in range(size)
            ]
            ends = [rank.wait() for rank in ranks]
            assert ends == [0] * size


def rank(folder: Path, width: int) -> None:
    """One process of a life."""
    import torch
    from torch import nn

    from xrun.checkpoint.checkpointer import Checkpointer, Writers
    from xrun.checkpoint.lease import Lease
    from xrun.checkpoint.restore import load, newest
    from xrun.checkpoint.schedule import SaveSchedule
    from xrun.checkpoint.share import Share
    from xrun.checkpoint.state import TrainState, local
    from xrun.recipe.interval import Every
    from xrun.recipe.schema import Train
    from xrun.run.record import AttemptRecord, RunRecord
    from xrun.store.directory.store import DirectoryStore
    from xrun.training.objective import Objective
    from xrun.training.optimizer import build_optimizer
    from xrun.training.sharding import shard
    from xrun.training.start import taken
    from xrun.training.world import join_world

    torch.set_num_threads(1)
    world = join_world(sharded=True)
    store = DirectoryStore(
        folder, "run", f"a{os.getppid()}-{world.size}", "me", block=BLOCK // SMALL
    )
    if world.rank == 0:
        head = store.head()
        first = RunRecord(digest="d", attempts=(AttemptRecord(store.attempt),))
        store.commit(head.record if head else first.to_json(), head)
    world.barrier()
    head = store.head()
    assert head is not None
    taken_by: dict[str, int] = {}
    with peak(taken_by, "building"):
        layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(BLOCKS))
        objective = Objective(_Stack(layers), "classification")
        shard(objective, "cpu")
    train = Train(steps=9, global_batch=4, sharding="fsdp")
    state = TrainState(objective.model, build_optimizer(train, objective), micro_batch=1)
    share = Share(world.rank, world.size)
    take = functools.partial(taken, store, share, world)
    world.barrier()
    with peak(taken_by, "restoring"):
        before = _bytes_read()
        head, checkpoint, paths = newest(store, head, take, world.from_first)
        read = _bytes_read() - before
        if checkpoint is not None:
            load(state, checkpoint, paths, share)
    x = torch.ones(4, width)
    (objective((x, torch.zeros(4, dtype=torch.long)))["loss"] * world.size).backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    own = sum(local(tensor).nbytes for tensor in state.tensors().values())
    schedule = SaveSchedule(Every.parse("1 step"), 1, lambda: 1.0, lambda: 0.0)
    writers = Writers(world.rank, world.size, world.saving)
    run = Checkpointer(state, Lease(store, head, environment={}), schedule, None, writers)
    with peak(taken_by, "saving"):
        run.begin()
        run.before_step()
        run.wait()
    run.close()
    told = {name: value / own for name, value in {"read": read, **taken_by}.items()}
    for number, (size, each) in enumerate(world.gathered((own, told)) or []):
        shares = ", ".join(f"{name} {value:.3f}" for name, value in each.items())
        print(f"rank {number} of {world.size}: {size >> 20} MB; of that {shares}")
    world.barrier()
    os._exit(0)


@contextlib.contextmanager
def peak(told: dict[str, int], name: str) -> Iterator[None]:
    """The most anonymous memory in the block above what was there before."""
    before, most, done = _anonymous(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, _anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    yield
    done.set()
    thread.join()
    told[name] = max(most, _anonymous()) - before


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def _Stack(layers: Any) -> Any:  # noqa: N802  a class, made where torch is imported
    from torch import Tensor, nn

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    return Stack()


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
