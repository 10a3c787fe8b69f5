"""Real runs of the recipes in `benchmarks/project`, in a temporary folder: put together as the
entrypoint and a rank do it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from xrun.machine.stop import StopFlag, end_with_parent
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan, make_plan
from xrun.run.record import AttemptRecord, RunRecord, new_id
from xrun.run.stores import open_store

PROJECT = Path(__file__).parent / "project"
_Clock = TypeVar("_Clock", bound=Callable[[], float])


class Lab:
    """A project and its runs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        shutil.copytree(PROJECT, self.root)
        (self.root / "pyproject.toml").touch()
        self.home = folder / "runs"

    def plan(self, recipe: str, run: str = "", *overrides: str) -> Plan:
        """The plan of a run of a recipe, written into the run's folder."""
        path = self.root / "recipes" / f"{recipe}.yaml"
        plan = make_plan(
            load_recipe(path, overrides),
            path,
            overrides=overrides,
            run=run,
            environ={**os.environ, "XRUN_HOME": str(self.home)},
        )
        RunFolder(plan.folder).write_plan(plan)
        return plan

    def training(self, plan: Plan, stop: StopFlag | None = None) -> Any:
        """What a rank trains with, under a lease of its own."""
        from xrun.training.build import build_training

        logging.getLogger("xrun").setLevel(logging.WARNING)
        attempt = take_lease(plan)
        training = build_training(plan, attempt, stop or StopFlag())
        gc.collect()
        # As an attempt does before it trains; everybody who is measured in this process has it
        # then.
        gc.freeze()
        return training


def take_lease(plan: Plan) -> str:
    """Commit a new attempt to the run's record, as the entrypoint does before it starts the ranks;
    returns the attempt."""
    attempt = new_id(time.time())
    store = open_store(plan, attempt)
    head = store.head()
    record = RunRecord.of(head).begun(plan, AttemptRecord(attempt, started=time.time()))
    store.commit(record.to_json(), head)
    return attempt


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A lab that is gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="xrun-benchmarks-", ignore_cleanup_errors=True
    ) as folder:
        yield Lab(Path(folder))


@contextlib.contextmanager
def process(
    work: Callable[[Connection], None], environment: Mapping[str, str]
) -> Iterator[Connection]:
    """`work` in a process of its own, started with more in its environment, and the other end of
    the pipe that it is given.

    Memory allocation and threads are set up by the environment that a process begins with; a rank
    has `ON_PROCESSORS` there.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=work, args=(theirs,), daemon=True)
    child.start()
    os.environ.clear()
    os.environ.update(before)
    theirs.close()
    try:
        yield ours
    finally:
        child.terminate()
        child.join()


@contextlib.contextmanager
def progress_shown(plan: Plan) -> Iterator[Callable[[bool], None]]:
    """The entrypoint's line of progress, in a process of its own, as it is shown while the ranks
    train.

    Calling what this yields with False halts the process, with True lets it go on.
    """
    shower = multiprocessing.get_context("spawn").Process(
        target=_show, args=(plan, os.getpid()), daemon=True
    )
    shower.start()
    pid = shower.pid or 0
    try:
        yield lambda shown: os.kill(pid, signal.SIGCONT if shown else signal.SIGSTOP)
    finally:
        os.kill(pid, signal.SIGKILL)
        shower.join()


def _show(plan: Plan, parent: int) -> None:
    from xrun.supervisor.progress import Progress
    from xrun.supervisor.ranks import POLL_SECONDS

    end_with_parent(signal.SIGKILL)
    progress = Progress(RunFolder(plan.folder), "benchmark", plan.global_batch)
    while os.getppid() == parent:
        progress.update()
        time.sleep(POLL_SECONDS)


class Enough(Exception):
    """Raised by a clock to end a loop that was measured long enough."""


class StepClock:
    """A training's clock: it is asked once before the first step and once after each, and notes
    when.

    After `last` steps it ends the loop by raising Enough.
    """

    def __init__(
        self, last: int | None = None, then: Callable[[int], None] = lambda step: None
    ) -> None:
        self.last, self.then, self.times = last, then, list[float]()

    def __call__(self) -> float:
        now = time.perf_counter()
        self.times.append(now)
        done = len(self.times) - 1
        self.then(done)
        if self.last is not None and done >= self.last:
            raise Enough
        return now

    def seconds_per_step(self, warm: int) -> float:
        """The mean over all steps after the first `warm`."""
        return (self.times[-1] - self.times[warm]) / (len(self.times) - 1 - warm)


def run(training: Any, clock: _Clock) -> _Clock:
    """Train until the clock has enough."""
    training.clock = clock
    try:
        with contextlib.suppress(Enough):
            training.run()
    finally:
        training.checkpointer.close()
        training.tracker.finish()
    return clock


def fresh(plan: Plan) -> Plan:
    """The same plan without what its runs have left."""
    shutil.rmtree(plan.folder, ignore_errors=True)
    RunFolder(plan.folder).write_plan(plan)
    return dataclasses.replace(plan)
