"""Rows 3, 4 and 10: what a save of 2.4 GB takes from training: seconds of the loop, seconds of all
steps around it, memory.

The state is 201 million parameters with Adam, on batches of 8. Each method saves once in a round:
some steps before, the steps until what was saved is durable, some steps after. xrun hashes, syncs
and commits; of the others only `torch.save + fsync` syncs. xrun trains in a process that has the
environment of a rank, a new one in each round, the others in one with nobody's.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.lab import Enough, Lab, StepClock, fresh, lab, process, run
from benchmarks.result import Row, main, median, spread
from xrun.run.plan import Plan
from xrun.supervisor.ranks import ON_PROCESSORS

STEPS = 4
"""Undisturbed steps before and after a save."""
SAVES = 3
"""Of xrun in a round, after a first one, which makes the snapshot's memory."""
SETTLE, PATIENCE = 60, 400
"""The first save waits until the process has not grown for so many undisturbed steps, or has done
so many: a heap that keeps what is freed grows for its first 120 steps or so, now and then by a
gradient that did not find its old place."""
SLACK = 64e6
"""Bytes that saving may take besides the copy of the state."""


@dataclass(frozen=True)
class Save:
    """`blocked`: seconds in which the loop only waited; `extra`: seconds that all steps until the
    end took beyond undisturbed ones; `took`: seconds until it ended."""

    blocked: float
    extra: float
    took: float


def measure(quick: bool) -> Iterator[Row]:
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    small = (
        ("model.args={width: 512, depth: 4}", "dataset.args={samples: 65536, shape: [512]}")
        if quick
        else ()
    )
    with lab() as own:
        yield from _measure(own, rounds=1 if quick else 3, overrides=small)


@dataclass(frozen=True)
class Ours:
    """What was seen of xrun's saves: bytes, seconds of one copy of the state and of an undisturbed
    step, most bytes of memory."""

    saves: list[Save]
    state_bytes: int
    memcpy: float
    step: float
    memory: int


def _ours(own: Lab, plan: Plan, result: Connection) -> None:
    training = own.training(plan)
    training.fresh = False  # the first save is one that is watched
    watch = Saves(training, SAVES + 1)
    run(training, watch.clock)
    tensors = training.state.tensors()
    size = sum(tensor.nbytes for tensor in tensors.values())
    saves = watch.saves[1:]  # the first one makes the snapshot's memory
    result.send(Ours(saves, size, _memcpy(tensors), watch.step, watch.highest - watch.before))


def _measure(own: Lab, rounds: int, overrides: tuple[str, ...]) -> Iterator[Row]:
    others = Others(own.training(own.plan("saving", "others", *overrides)), own.root / "others")
    theirs: dict[str, list[Save]] = {name: [] for name in others.methods}
    ours = list[Ours]()
    for number in range(rounds + (rounds > 1)):
        for name, method in list(others.methods.items()):
            try:
                save = others.once(method)
            except KeyError as error:  # torch 2.11 cannot stage this state
                print(f"{name} cannot save it here: {error!r}", flush=True)
                del others.methods[name], theirs[name]
                continue
            if number or rounds == 1:
                theirs[name].append(save)
        if number or rounds == 1:
            plan = fresh(own.plan("saving", "saving", *overrides))
            with process(functools.partial(_ours, own, plan), ON_PROCESSORS) as result:
                ours.append(result.recv())
    size, memcpy = ours[0].state_bytes, median(one.memcpy for one in ours)
    saves = [save for one in ours for save in one.saves]
    blocked = [median(save.blocked for save in one.saves) / one.memcpy for one in ours]
    peers = {
        name: {
            "blocked": median(s.blocked for s in saves) / memcpy,
            "extra": median(s.extra for s in saves) / memcpy,
        }
        for name, saves in theirs.items()
    }
    facts = {
        "state_gb": size / 1e9,
        "memcpy_s": memcpy,
        "extra_over_memcpy": median(s.extra for s in saves) / memcpy,
        "seconds_until_committed": median(s.took for s in saves),
        "undisturbed_step_s": median(one.step for one in ours),
    }
    yield Row(
        3,
        "time that a save takes from the loop's steps, over one memcpy of the state",
        median(blocked),
        0.05,
        "lower",
        peers,
        spread(blocked),
        facts,
    )
    base = [save.extra for save in theirs["torch.save + fsync"]]
    beside = [
        median(save.extra for save in one.saves) / peer
        for one, peer in zip(ours, base, strict=True)
    ]
    yield Row(
        4,
        "extra seconds per save, over torch.save's with fsync",
        median(beside),
        0.25,
        "lower",
        {
            name: median(s.extra / peer for s, peer in zip(saves, base, strict=True))
            for name, saves in theirs.items()
        },
        spread(beside),
        {"xrun_s": median(s.extra for s in saves), "torch_save_s": median(base)},
    )
    taken = [one.memory / size for one in ours]
    yield Row(
        10,
        "memory taken by saving, over the state's size",
        median(taken),
        1.0 + SLACK / size,
        "lower",
        {},
        spread(taken),
        {
            "state_gb": size / 1e9,
            "memory_mb_besides_the_copy": [round((one.memory - size) / 1e6, 1) for one in ours],
        },
    )


class Saves:
    """Lets a real training save every now and then, and measures it from its clock.

    A save is due once the schedule's last one is long ago; it then begins, is copied, written and
    committed as every save. After each one come undisturbed steps.
    """

    def __init__(self, training: Any, count: int) -> None:
        self.checkpointer, self.count = training.checkpointer, count
        self.told = list[tuple[float, float]]()
        self.checkpointer.schedule.measured = lambda stall, write: self.told.append((stall, write))
        self.clock = StepClock(None, self._after)
        self.saves: list[Save] = []
        self.calm, self.touched = list[float](), list[float]()
        self.began = -1
        self.before = self.highest = self.grown = 0
        self.step = 0.0

    def _after(self, done: int) -> None:
        times = self.clock.times
        own = times[-1] - times[-2] if done else 0.0
        if done == 2:
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # the most memory from here on is that of undisturbed steps
        if self.began < 0 and done:
            self.calm.append(own)
        elif self.began >= 0:
            self.touched.append(own)
        if self.began >= 0 and len(self.touched) > 1 and not self.checkpointer.busy:
            self._ended()
        elif self.began < 0 and len(self.calm) >= STEPS and (self.saves or self._settled(done)):
            if len(self.saves) == self.count:
                raise Enough
            self._begin(done)

    def _settled(self, done: int) -> bool:
        if (memory := _memory("VmHWM")) > self.before:
            self.before, self.grown = memory, done
        return done - self.grown >= SETTLE or done >= PATIENCE

    def _begin(self, done: int) -> None:
        self.began, self.touched = done, []
        self.calm_before, self.calm = statistics.median(self.calm[-STEPS:]), []
        self.checkpointer.schedule.last_time = -1e9  # as if the interval had passed

    def _ended(self) -> None:
        self.highest = max(self.highest, _memory("VmHWM"))
        self.step = self.calm_before
        # The first step of `touched` only asks; saving begins with the one after it.
        extra = sum(self.touched) - len(self.touched) * self.calm_before
        blocked, took = self.told[-1]
        self.saves.append(Save(blocked, extra, took))
        self.began = -1


def _memory(name: str) -> int:
    """Bytes, of this process."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(name + ":")
    )
    return int(line.split()[1]) * 1024


def _memcpy(tensors: dict[str, Any]) -> float:
    """Seconds of one copy of the state into memory that was written before, with all threads; the
    best of three."""
    import torch

    from benchmarks.peers import synchronize

    copies = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in tensors.items()}
    seconds = []
    for _ in range(4):
        synchronize()
        began = time.perf_counter()
        for name, tensor in tensors.items():
            copies[name].copy_(tensor)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


class Others:
    """The same training steps, saved by others."""

    def __init__(self, training: Any, folder: Path) -> None:
        import torch

        self.folder = folder
        self.model, self.optimizer = training.objective.model, training.state.optimizer
        device = training.accelerator.device
        self.x, self.y = (
            torch.randn(training.train.global_batch, self.model.layers[0].shape[0], device=device),
            torch.zeros(8, device=device),
        )
        self.methods: dict[str, Callable[[], Any]] = {
            "torch.save + fsync": self.synced,
            "accelerate.save_state": self.accelerate(),
            "dcp.async_save": self.dcp(False),
            "dcp.async_save, async staging": self.dcp(True),
        }

    def step(self, before_step: Callable[[], None] | None = None) -> float:
        from benchmarks.peers import synchronize

        began = time.perf_counter()
        self.model(self.x, self.y)["loss"].backward()
        if before_step:
            before_step()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize()
        return time.perf_counter() - began

    def once(self, method: Callable[[], Any]) -> Save:
        """One save, and the steps until it has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        calm = statistics.median(self.step() for _ in range(STEPS))
        began = time.perf_counter()
        wait, staged = method() or (lambda: None, None)
        blocked, waited = time.perf_counter() - began, [0.0]
        thread = threading.Thread(target=wait)
        thread.start()

        def hook() -> None:
            start = time.perf_counter()
            staged()
            waited[0] += time.perf_counter() - start

        steps = 0
        while steps == 0 or thread.is_alive():
            self.step(hook if staged and steps == 0 else None)
            steps += 1
        took = time.perf_counter() - began
        thread.join()
        return Save(blocked + waited[0], took - steps * calm, took)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def torch_save(self) -> None:
        import torch

        torch.save(self.state(), self.folder / "state.pt")

    def synced(self) -> None:
        self.torch_save()
        with (self.folder / "state.pt").open("rb") as file:
            os.fsync(file.fileno())

    def accelerate(self) -> Callable[[], None]:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=self.x.device.type == "cpu")
        accelerator.prepare(self.model, self.optimizer)

        def save() -> None:
            accelerator.save_state(str(self.folder / "accelerate"))

        return save

    def dcp(self, staged: bool) -> Callable[[], Any]:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        stager = DefaultStager(StagingOptions(False, False, staged, False))

        def save() -> Any:
            saving: Any = checkpoint.async_save(
                self.state(), checkpoint_id=self.folder / "dcp", no_dist=True, async_stager=stager
            )
            if staged:
                return saving.upload_completion.result, saving.staging_completion.result
            return getattr(saving, "upload_completion", saving).result, None

        return save


if __name__ == "__main__":
    main(measure)
