"""A run's attempts in this process: no rank is started, so libraries are imported once.

For tests of what a run computes and saves, not of how processes end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate.state import AcceleratorState

from xrun.machine.stop import StopFlag
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.run.record import AttemptRecord, RunRecord
from xrun.store.directory.store import DirectoryStore
from xrun.training.build import build_training
from xrun.training.loop import Training


def take_over(plan: Plan, attempt: str) -> DirectoryStore:
    """The run's store with this attempt's lease on it, as the entrypoint takes it."""
    folder = RunFolder(plan.folder)
    folder.write_plan(plan)
    store = DirectoryStore(folder.state, plan.run, attempt, "me")
    head = store.head()
    record = RunRecord.of(head) if head else RunRecord(digest=plan.digest)
    attempts = (*record.attempts, AttemptRecord(attempt))
    record = RunRecord(**{**vars(record), "attempts": attempts})
    store.commit(record.to_json(), head)
    return store


@contextlib.contextmanager
def attempt(plan: Plan, name: str) -> Iterator[Training]:
    """Everything of an attempt, before its first step; torch is as it was afterwards."""
    threads = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    generator = torch.get_rng_state()
    os.environ["OMP_NUM_THREADS"] = "1"
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have left one
    try:
        training = build_training(plan, name, StopFlag(), take_over(plan, name))
        with contextlib.closing(training.checkpointer):
            yield training
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        torch.set_rng_state(generator)


def train(plan: Plan, name: str = "a1") -> Training:
    """An attempt to its end."""
    with attempt(plan, name) as training:
        training.run()
    return training
