"""`micro_batch: auto`: the largest micro-batch that fits, found once and committed with step 0."""

from __future__ import annotations

import contextlib
import copy
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import find_executable_batch_size

from .errors import TrainError
from .loader import Fetch, to_device
from .objective import Objective
from .optimizer import build_optimizer
from .recipe import Train
from .sampler import MicroBatch
from .stream import is_stream
from .world import World

_SHARE = 0.8
"""How much of the free memory a micro-batch may take: the rest is for fragments and for what a run needs later."""


def sizes(global_batch: int, world: int) -> list[int]:
    """The micro-batches that cut a global batch evenly for so many processes, the largest first."""
    return [
        size for size in range(global_batch // world, 0, -1) if global_batch % size == 0 and global_batch // size % world == 0
    ]


def find_micro_batch(train: Train, objective: Objective, fetch: Fetch, accelerator: Any, world: World) -> int:
    """Try forward, backward and an optimizer step with ever smaller micro-batches until one fits on every process.

    Only a copy of the model is trained.

    Raises:
        TrainError: not even one sample fits.
    """
    allowed = sizes(train.global_batch, world.size)

    def smaller() -> int:
        state["at"] += 1
        if state["at"] == len(allowed):
            raise TrainError("train.micro_batch: auto: not even one sample fits into memory.", "Use a larger machine.")
        return allowed[state["at"]]

    def attempt(size: int) -> int:
        try:
            with limited_memory():
                _train_once(train, objective, fetch, accelerator, size)
        except MemoryError as error:  # numpy's and Python's own: said in the words that are searched for
            raise RuntimeError("CPU out of memory.") from error
        return size

    state = {"at": 0}
    if not allowed:
        raise TrainError(f"train.global_batch: {world.size} processes cannot share {train.global_batch} samples evenly.")
    find = find_executable_batch_size(attempt, starting_batch_size=allowed[0], reduce_batch_size_fn=smaller)
    return int(world.least(find()))


def _train_once(train: Train, objective: Objective, fetch: Fetch, accelerator: Any, size: int) -> None:
    probe = copy.deepcopy(objective).to(accelerator.device)
    optimizer = build_optimizer(train, probe)
    with accelerator.autocast():
        loss = probe(to_device(_batch(fetch, size), accelerator.device))["loss"]
    loss.backward()
    optimizer.step()


def _batch(fetch: Fetch, size: int) -> Any:
    """The first `size` samples, as a micro-batch."""
    examples = None
    if is_stream(fetch.split):
        source = fetch.split.shard(0) if hasattr(fetch.split, "shard") else fetch.split
        examples = tuple(example for example, _ in zip(source, range(size), strict=False))
    indices = np.arange(size, dtype=np.int64) % (size if examples is not None else len(fetch.split))
    return fetch[MicroBatch(0, 0, 0, 0, indices, size, examples=examples)][1]


@contextlib.contextmanager
def limited_memory(limit: int | None = None) -> Iterator[None]:
    """Let the allocator fail before the kernel ends the process: a limit on its data, `limit` bytes more than now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(memory["MemAvailable"].split()[0]) << 10
    used = int(status["VmData"].split()[0]) << 10
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [used + (limit or int(free * _SHARE)), *before]  # one that is set already (`ulimit -d`) may be the smallest
    resource.setrlimit(resource.RLIMIT_DATA, (min(number for number in limits if number != resource.RLIM_INFINITY), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
