"""Row 2: samples per second of a small ViT, with a checkpoint every 30 s and tracking on, over a
raw loop's; on a GPU of a ViT-B/16, because that would only wait for the launches of a small one.

This machine computes the same step in 127 ms and a minute later in 148, so everybody trains in a
process of its own and they take turns of a second. xrun's process has the environment of a rank,
its save has to end within its turn, and it saves every 30 seconds of everybody's time: three times
as often as the row asks for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.lab import Lab, fresh, lab, process, progress_shown, run
from benchmarks.peers import DEVICE
from benchmarks.result import Row, main, median, spread
from xrun.run.plan import Plan
from xrun.supervisor.ranks import ON_PROCESSORS

BLOCK = 8
"""Steps of a turn."""
WARM = 2
"""Turns that are not counted."""
SECONDS = 33.0
"""A round, which so has a save by time."""
ON_GPU = (
    "model.args.image_size=224",
    "model.args.patch_size=16",
    "model.args.width=768",
    "model.args.depth=12",
    "model.args.heads=12",
    "dataset.args.shape=[3, 224, 224]",
    "dataset.args.samples=4096",
    "train.global_batch=64",
    "train.micro_batch=64",
)
"""What else the recipe says there."""


def measure(quick: bool) -> Iterator[Row]:
    os.environ["OMP_NUM_THREADS"] = str(
        len(os.sched_getaffinity(0))
    )  # as the entrypoint gives one rank
    with lab() as own:
        yield _measure(own, rounds=1 if quick else 5, seconds=2.0 if quick else SECONDS)


def _measure(own: Lab, rounds: int, seconds: float) -> Row:
    more = ON_GPU if DEVICE == "cuda" else ()
    plan = own.plan("vit", "vit", *more)
    batch = plan.load_recipe().train.global_batch
    seen = [_round(own, fresh(plan), seconds, number) for number in range(rounds)]
    share = {
        name: [taken["raw"] / taken[name] for taken, *_ in seen] for name in ("xrun", "accelerate")
    }
    steps = BLOCK * sum(turns for _, turns, _ in seen)
    return Row(
        2,
        f"{'ViT-B/16' if more else 'small ViT'} with checkpoints every 30 s, samples/s over raw",
        median(share["xrun"]),
        0.99,
        "higher",
        {"accelerate, nothing saved": median(share["accelerate"])},
        spread(share["xrun"]),
        {
            "raw_samples_per_s": batch * steps / sum(taken["raw"] for taken, *_ in seen),
            "steps": steps,
            "commits_per_round": [commits for *_, commits in seen],
        },
    )


def _round(own: Lab, plan: Plan, seconds: float, number: int) -> tuple[dict[str, float], int, int]:
    """Everybody's seconds, the turns in which they were counted, and xrun's commits.

    In new processes: which memory a process has got makes it one or two per cent faster or slower
    for as long as it lives.
    """
    from xrun.store.directory.store import DirectoryStore

    work = {
        name: (functools.partial(_peer, own, plan, name), dict[str, str]())
        for name in ("raw", "accelerate")
    }
    work["xrun"] = functools.partial(_xrun, own, plan), ON_PROCESSORS
    names = list(work)
    taken, turns = dict.fromkeys(names, 0.0), 0
    with contextlib.ExitStack() as stack:
        first = number % len(names)
        trained = {
            name: stack.enter_context(process(*work[name]))
            for name in names[first:] + names[:first]
        }
        show = stack.enter_context(progress_shown(plan))
        for _ in range(WARM):
            _turn(trained, 0, show)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for name, value in _turn(trained, turns, show).items():
                taken[name] += value
            turns += 1
        head = DirectoryStore(plan.folder / "state", plan.run, "reader", plan.owner).head()
    return taken, turns, head.number - 1 if head else 0


def _turn(
    trained: dict[str, Connection], number: int, show: Callable[[bool], None]
) -> dict[str, float]:
    """Everybody makes `BLOCK` steps, the first one changing from turn to turn; seconds of each."""
    names = list(trained)
    first = number % len(names)
    taken = {}
    for name in names[first:] + names[:first]:
        show(name == "xrun")
        trained[name].send("go")
        taken[name] = trained[name].recv()
    return taken


def _peer(own: Lab, plan: Plan, name: str, turns: Connection) -> None:
    from benchmarks import peers
    from xrun.component import load_build

    recipe = plan.load_recipe()
    table = load_build("datasets", "table", own.root)(**recipe.dataset.args)["train"]
    build = load_build("models", "vit", own.root)
    work = peers.Work(
        table, lambda: build(**recipe.model.args), recipe.train.global_batch, 0.001, 0, 0
    )
    steps = {"raw": peers.raw_steps, "accelerate": peers.accelerate_steps}[name](work)
    while turns.recv():
        began = time.perf_counter()
        for _ in range(BLOCK):
            next(steps)
        peers.synchronize()
        turns.send(time.perf_counter() - began)


def _xrun(own: Lab, plan: Plan, turns: Connection) -> None:
    training = own.training(plan)
    run(training, Turns(turns, training.checkpointer))


class Turns:
    """The training's clock: every `BLOCK` steps, once no save is on its way, it tells how long they
    took and waits."""

    def __init__(self, turns: Connection, checkpointer: Any) -> None:
        self.turns, self.checkpointer = turns, checkpointer
        self.calls, self.began = 0, 0.0

    def __call__(self) -> float:
        if self.calls and self.calls % BLOCK == 0:
            while self.checkpointer.busy:
                time.sleep(0.001)
            self.turns.send(time.perf_counter() - self.began)
        if self.calls % BLOCK == 0:
            self.turns.recv()
            self.began = time.perf_counter()
        self.calls += 1
        return time.perf_counter()


if __name__ == "__main__":
    main(measure)
