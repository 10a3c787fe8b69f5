"""The processes that train together, and the little that they tell each other besides gradients."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it comes from C++

from ..errors import ProcessesApart, XrunError

Found = TypeVar("Found")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: evaluation, saving and exporting on one of them must
fit."""


@dataclass(frozen=True)
class World:
    """This process's rank, how many there are, and two groups on the CPU: one for the loop, one for
    the saving thread.

    `store` is what they have met at, which the first process serves as long as it keeps it.
    """

    rank: int = 0
    size: int = 1
    loop: Any = None
    saving: Any = None
    store: Any = None

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sums of these numbers over all processes, the same bits on each."""
        return self.sums_soon(values)()

    def sums_soon(self, values: Sequence[float]) -> Callable[[], list[float]]:
        """What gives the sums once it is asked; the processes tell each other meanwhile."""
        if self.size == 1:
            return lambda: list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(tensor, group=self.loop, async_op=True)

        def sums() -> list[float]:
            work.wait()
            return tensor.tolist()

        return sums

    def all_reduce_min(self, value: float) -> float:
        """The least of all processes' numbers."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self.loop)
        return float(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """What each process has, in their order, (size, *shape), by the group of its own device:
        no host waits for that."""
        every = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(every), tensor)
        return every

    def broadcast(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.loop)
        return box[0]

    def gathered(self, value: Any) -> list[Any] | None:
        """What each process has, in their order, on the first; None on the others."""
        if self.size == 1:
            return [value]
        box: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, box, dst=0, group=self.loop)
        return box

    def everybody(self, value: Found) -> list[Found]:
        """What each process has, in their order, on all of them."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.loop)
        return box

    def from_first(self, find: Callable[[], Found]) -> Found:
        """What the first process finds; an error of ours that it raises there is raised on all."""
        found: Found | XrunError | None = None
        if self.rank == 0:
            try:
                found = find()
            except XrunError as error:
                found = error
        found = self.broadcast(found)
        if isinstance(found, XrunError):
            raise found
        assert found is not None, "the first process has said something"
        return found

    def barrier(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier(group=self.loop)


@dataclass(frozen=True)
class Timeouts:
    """Seconds until all processes must be there (they import torch, perhaps from a slow disk), and
    then understand each other."""

    meeting: float = 600.0
    talking: float = 180.0


def join_world(sharded: bool, timeouts: Timeouts = Timeouts()) -> World:
    """Meet the other processes, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say, and see that
    sums over all are right.

    A sharded model needs a process group even for one process.

    Raises:
        ProcessesApart: which of them are missing, or what went wrong.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not sharded:
        return World()
    try:
        store: Any = TCPStore(
            os.environ.get("MASTER_ADDR", "127.0.0.1"),
            int(os.environ.get("MASTER_PORT", "0")),
            size,
            rank == 0,
            timedelta(seconds=timeouts.meeting),
            wait_for_workers=False,
        )
        _arrive(store, rank, size, timeouts.meeting)
        own = store.clone()  # a store lets in one thread at a time
        world = _in_time(lambda: _join(own, rank, size), timeouts.talking)
        return replace(world, store=store)
    except TimeoutError:
        absent = _absent(store, "joined", size)
        what = (
            f"The processes cannot talk to each other after {timeouts.talking:.0f} s. Missing:"
            f" {absent}."
        )
        raise ProcessesApart(
            what, "NCCL_DEBUG: INFO under `env` in the recipe shows more."
        ) from None
    except dist.DistError as error:
        what = str(error).strip().splitlines()[0]
        raise ProcessesApart(
            f"Rank {rank} on {socket.gethostname()} cannot join the others: {what}"
        ) from error


def _arrive(store: Any, rank: int, size: int, seconds: float) -> None:
    """Be there, and wait until all are."""
    store.set(f"here/{rank}", socket.gethostname())
    try:
        store.wait([f"here/{other}" for other in range(size)], timedelta(seconds=seconds))
    except dist.DistStoreError as error:
        raise ProcessesApart(
            f"Not here after {seconds:.0f} s: {_absent(store, 'here', size)}."
        ) from error


def _absent(store: Any, what: str, size: int) -> str:
    """The processes that have not come so far, with their machines as far as they have said."""
    ranks = [rank for rank in range(size) if not store.check([f"{what}/{rank}"])]
    names = [
        f" on {store.get(f'here/{rank}').decode()}" if store.check([f"here/{rank}"]) else ""
        for rank in ranks
    ]
    return ", ".join(f"rank {rank}{name}" for rank, name in zip(ranks, names, strict=True))


def _in_time(task: Callable[[], World], seconds: float) -> World:
    """What the task gives; it waits inside of libraries that cannot be interrupted, so it gets a
    thread of its own.

    Raises:
        TimeoutError: it is not done yet; it is left behind.
    """
    box: queue.Queue[World | Exception] = queue.Queue()

    def work() -> None:
        try:
            box.put(task())
        except Exception as error:
            box.put(error)

    threading.Thread(target=work, name="xrun-world", daemon=True).start()
    try:
        done = box.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(done, Exception):
        raise done
    return done


def _join(store: Any, rank: int, size: int) -> World:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    world = World(rank, size, dist.new_group(backend="gloo"), dist.new_group(backend="gloo"))
    devices = (
        ["cpu", f"cuda:{os.environ.get('LOCAL_RANK', '0')}"]
        if torch.cuda.is_available()
        else ["cpu"]
    )
    for device in devices:
        tensor = torch.full((1024,), rank + 1, device=device)
        dist.all_reduce(tensor)
        check_sum(tensor.tolist(), size, device)
    store.set(f"joined/{rank}", "")
    return world


def check_sum(values: Sequence[int], size: int, device: str) -> None:
    """The sum over the ranks, counted from 1, which every element must be.

    Raises:
        ProcessesApart: one is not.
    """
    expected = size * (size + 1) // 2
    if wrong := [value for value in values if value != expected]:
        raise ProcessesApart(
            f"A sum over {size} processes on {device} of {socket.gethostname()} is {wrong[0]}"
            f" instead of {expected}.",
            "A device or the network between the nodes changes numbers; another machine may not.",
        )
