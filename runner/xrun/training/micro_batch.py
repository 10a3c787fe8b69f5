"""How much of a batch is computed at once.

`micro_batch: auto` is the largest micro-batch that fits, found once and committed with step 0. From
then on it is part of the mathematics: the data's order and all randomness hang on it. A machine on
which it does not fit computes each micro-batch in 2, 4, 8, ... parts, whose gradients add up: the
samples, their augmentation and the sums stay what they were, but the random numbers of the forward
pass are drawn in another order, statistics of a batch are those of a part, and sums are rounded
differently.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import logging
import os
import resource
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from .. import environment
from ..data.batch import Batch, to_device
from ..data.loader import Fetch
from ..data.sampler import MicroBatch
from ..data.stream import is_stream, shard_of
from ..errors import ComponentError, OutOfMemory, TrainError
from ..recipe.schema import Train
from ..run.cost import sizes
from ..run.record import RunRecord
from .footprint import Footprint
from .objective import Objective
from .optimizer import build_optimizer, unfuse
from .sharding import checkpoint_activations
from .twin import twin
from .world import World

log = logging.getLogger("xrun")

_NO_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "std::bad_alloc",
)
_SHARE = 0.8
"""How much of the free memory a micro-batch may take: the rest is for fragments and for what a run
needs later."""


def settled_micro_batch(train: Train, world: World, before: int, find: Callable[[], int]) -> int:
    """What the run has settled on `before` (0: on nothing), else what the recipe says, else what
    `find` finds to fit.

    Raises:
        TrainError: the processes cannot share such micro-batches evenly, or not even one sample
            fits.
    """
    settled = before or (0 if train.micro_batch == "auto" else train.micro_batch)
    if not settled:
        settled = find()
        log.info("micro_batch: auto found %d.", settled)
    slots, rest = divmod(train.global_batch, settled)
    if rest or slots % world.size:
        raise TrainError(
            f"The global batch of {train.global_batch} is cut into {slots} micro-batches of"
            f" {settled}, which {world.size} processes cannot share evenly.",
            "Use a number of processes that divides it, or set train.micro_batch.",
        )
    return settled


def settled_parts(record: RunRecord, memory: str, processes: int) -> int:
    """In how many parts a micro-batch is computed: as the entrypoint says, else as was right on
    such a machine before."""
    return int(environment.PARTS.of() or record.parts_on(memory, processes))


def find_micro_batch(
    train: Train,
    objective: Objective,
    fetch: Fetch,
    accelerator: Any,
    world: World,
    shared: Collection[Tensor] = (),
) -> int:
    """Try steps with ever smaller micro-batches until one fits on every process, beside what a run
    has and the trial lacks.

    Only a copy of the model is trained; weights that are `shared` by the two are there once.

    Raises:
        TrainError: not even one sample fits.
        ComponentError: the forward pass moves a frozen weight, which the copy shares.
    """
    versions = [tensor._version for tensor in shared]
    allowed = _allowed(train, world)
    probing = functools.partial(_fits, train, objective, fetch, accelerator, world, shared=shared)
    found = next(filter(probing, allowed), 0)
    if versions != [tensor._version for tensor in shared]:
        raise ComponentError(
            f"{objective.components.model}: the forward pass changes weights that are frozen, so"
            " that train.micro_batch: auto cannot try it.",
            "Give train.micro_batch a number.",
        )
    if not found:
        raise _nothing_fits()
    return int(world.all_reduce_min(found))


def find_sharded_micro_batch(
    train: Train, objective: Objective, fetch: Fetch, accelerator: Any, world: World
) -> int:
    """The largest micro-batch that fits on every process, by what steps with the two smallest ones
    take: a process of a sharded model that ran out of memory would leave the others waiting. All
    processes call it; weights and buffers are afterwards what they were.

    Raises:
        TrainError: not even one sample fits.
    """
    allowed = _allowed(train, world)
    kept = [(t, _own(t).cpu().clone()) for t in (*objective.parameters(), *objective.buffers())]
    room = _room(accelerator.device)
    taken: dict[int, int] = {}
    for size in allowed[:-3:-1]:
        with enough_memory(1, 1):
            taken[size] = _taken(train, objective, fetch, accelerator, world, size)
    with torch.no_grad():
        for tensor, before in kept:
            _own(tensor).copy_(before)
    (one, least), (two, more) = next(iter(taken.items())), [*taken.items()][-1]
    each = (more - least) / (two - one) if two > one else 0.0
    found = next((size for size in allowed if least + each * (size - one) <= room), 0)
    found = int(world.all_reduce_min(found))
    if not found:
        raise _nothing_fits()
    return found


def _taken(
    train: Train, objective: Objective, fetch: Fetch, accelerator: Any, world: World, size: int
) -> int:
    """The most bytes that live at once while a step is made, beside what lived before."""
    optimizer, device = build_optimizer(train, objective), accelerator.device
    own = train.global_batch // size // world.size
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        _train(train, objective, optimizer, fetch, accelerator, size, own)
        most = torch.cuda.max_memory_allocated(device)
    else:
        with Footprint((*objective.parameters(), *objective.buffers())) as footprint:
            before = footprint.now
            _train(train, objective, optimizer, fetch, accelerator, size, own)
        most = footprint.most
    for p in objective.parameters():
        p.grad = None
    return most - before


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()  # type: ignore[attr-defined]  # a DTensor's method


def _room(device: torch.device) -> float:
    """How many bytes a process may take further."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _SHARE * (free + held)
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = _SHARE * _kilobytes("/proc/meminfo", "MemAvailable") / processes
    if limit == resource.RLIM_INFINITY:
        return own
    return min(own, _SHARE * (limit - _kilobytes("/proc/self/status", "VmData")))


def _kilobytes(path: str, name: str) -> int:
    """A line in kB of one of the kernel's tables, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(path).read_text().splitlines())
    return int(lines[name].split()[0]) << 10


def _allowed(train: Train, world: World) -> list[int]:
    if allowed := sizes(train.global_batch, world.size):
        return allowed
    raise TrainError(
        f"train.global_batch: {world.size} processes cannot share {train.global_batch} samples"
        " evenly."
    )


def _nothing_fits() -> TrainError:
    return TrainError(
        "train.micro_batch: auto: not even one sample fits into memory.", "Use a larger machine."
    )


def _fits(
    train: Train,
    objective: Objective,
    fetch: Fetch,
    accelerator: Any,
    world: World,
    size: int,
    shared: Collection[Tensor],
) -> bool:
    try:
        with limited_memory():
            probe = _probe(objective, shared).to(accelerator.device)
            if train.activation_checkpointing:
                checkpoint_activations(probe.model)
            # Held while it is tried: the average, and the buckets that DDP lays out anew.
            beside = torch.empty(
                _beside(train, probe, world), dtype=torch.uint8, device=accelerator.device
            )
            optimizer, own = build_optimizer(train, probe), train.global_batch // size // world.size
            _train(train, probe, optimizer, fetch, accelerator, size, own)
            del beside
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
    else:
        return True
    # Outside of `except`: the error's traceback holds what did not fit.
    clear_device_cache(garbage_collection=True)
    give_memory_back()
    return False


def give_memory_back() -> None:
    """Freed memory goes back to the kernel, which it does not by itself in a rank
    (`ranks.ON_PROCESSORS`)."""
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def enough_memory(micro_batch: int, parts: int) -> Iterator[None]:
    """What is computed here lacks memory in our words.

    Raises:
        OutOfMemory: in smaller parts it may fit.
        TrainError: not even one sample fits.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        what = _asked(error)
        if parts * 2 > micro_batch:
            raise TrainError(
                f"Not even one sample fits into memory: {what}", "Use a larger machine."
            ) from error
        raise OutOfMemory(
            f"A micro-batch of {micro_batch} in {parts} parts does not fit into memory: {what}",
            parts * 2,
        ) from error


def _asked(error: Exception) -> str:
    """What was asked for: the first sentences of an error, which of CUDA's tell much more."""
    line = [*str(error).strip().splitlines(), type(error).__name__][0]
    return line if len(line) <= 200 else line[:200].rpartition(". ")[0] + "."


def _lacks_memory(error: Exception) -> bool:
    """torch's own error, Python's and numpy's, and those of libraries that say it in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return should_reduce_batch_size(error) or any(words in text for words in _NO_MEMORY)


def _beside(train: Train, probe: Objective, world: World) -> int:
    """Bytes that a run has beside what a trial has."""
    trained = [p for p in probe.parameters() if p.requires_grad]
    weights = sum(t.nbytes for t in (*trained, *probe.buffers())) if train.ema is not None else 0
    buckets = sum(p.nbytes for p in trained) if world.size > 1 else 0
    return weights + buckets


def _train(
    train: Train,
    probe: Objective,
    optimizer: torch.optim.Optimizer,
    fetch: Fetch,
    accelerator: Any,
    size: int,
    own: int,
) -> None:
    """Two steps, of two micro-batches each where a process has several of its `own`: in the second
    step the optimizer's state is there, in its second micro-batch gradients are."""
    batch = to_device(first_batch(fetch, size), accelerator.device)
    for _ in range(2):
        for p in probe.parameters():
            p.grad = None
        for _ in range(min(own, 2)):
            with accelerator.autocast():
                loss = probe(batch, size)["loss"]
            loss.backward()
            del loss
        if any(p.grad is not None and p.grad.is_sparse for p in probe.parameters()):
            unfuse(optimizer)
        optimizer.step()


def _probe(objective: Objective, shared: Collection[Tensor]) -> Objective:
    """The objective with a copy of its model."""
    model = twin(
        objective.model,
        "train.micro_batch: auto tries sizes on a copy of the model",
        "Give train.micro_batch a number.",
        shared,
    )
    probe = Objective(model, objective.task, objective.components)
    probe.others, probe.on_device = objective.others, objective.on_device
    return probe


def first_batch(fetch: Fetch, size: int) -> Batch:
    """The first `size` samples, as a micro-batch."""
    examples = None
    if is_stream(fetch.split):
        shards = range(getattr(fetch.split, "num_shards", 1))
        # The first shards may be short, or held out of training as a whole.
        source = itertools.chain.from_iterable(shard_of(fetch.split, each) for each in shards)
        examples = tuple(itertools.islice(source, size))
    indices = np.arange(size, dtype=np.int64) % (size if examples is not None else len(fetch.split))
    return fetch[MicroBatch(0, 0, 0, 0, indices, size, examples=examples)][1]


def a_few_batches(fetch: Fetch, device: torch.device) -> Iterator[Batch]:
    """Of the first sample, of the first two, and so on."""
    for size in range(1, 9):
        yield to_device(first_batch(fetch, size), device)


@contextlib.contextmanager
def limited_memory(limit: int | None = None) -> Iterator[None]:
    """Let the allocator fail before the kernel ends the process: a limit on its data, `limit` bytes
    more than now."""
    free = _kilobytes("/proc/meminfo", "MemAvailable")
    used = _kilobytes("/proc/self/status", "VmData")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    # One that is set already (`ulimit -d`) may be the smallest.
    limits = [used + (limit or int(free * _SHARE)), *before]
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (min(number for number in limits if number != resource.RLIM_INFINITY), before[1]),
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
