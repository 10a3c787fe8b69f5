"""One rank's life: plan -> parts -> restore -> train -> exit code.

Started by the entrypoint as `python -m xrun.training.rank PLAN ATTEMPT`, or with `--wait` before
the attempt has its lease: then torch is imported and the newest checkpoint is on its way by the
time there is a line on standard input that says how to go on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .. import environment, signals, streams
from ..checkpoint.share import Share, fetch_soon, share_of
from ..errors import EX_TEMPFAIL, Stopped
from ..files import write_in_place
from ..machine.stop import StopFlag, end_with_parent
from ..run import logs
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..run.record import Outcome
from ..run.stores import open_store
from ..store.protocol import Store

if TYPE_CHECKING:
    from .loop import Training

log = logging.getLogger("xrun")


def main(plan_path: str, attempt: str, wait: str = "") -> int:
    """Run this rank; returns its exit code, and leaves how it ended in the attempt's log folder:
    a code alone could be that of a component."""
    end_with_parent(signal.SIGKILL)
    # Until training begins: looking for garbage among all that torch imports takes a second of the
    # start.
    gc.disable()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the entrypoint asks a rank that hangs where it is
    # Ctrl-C and a lost terminal reach every process; the entrypoint says what they mean.
    signals.ignore(signals.OF_TERMINALS)
    plan = Plan.read(Path(plan_path))
    store = _ready(plan, attempt) if wait else None
    if wait and not _told_to_go():
        return 0
    told = environment.STOP.of()
    stop = StopFlag(told=Path(told) if told else None)
    stop.on_signals(signal.SIGTERM)
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO if first else logging.WARNING)
    outcome = live(plan, attempt, stop, store)
    _leave(plan, attempt, outcome)
    return outcome.code


def live(plan: Plan, attempt: str, stop: StopFlag, store: Store | None) -> Outcome:
    """Train, and say how it ended; a component that leaves (`sys.exit`) has not finished the
    run."""
    step: int | None = None
    try:
        with built(plan, attempt, stop, store) as training:
            try:
                training.run()
            finally:
                step = training.state.step
    except Stopped:
        return Outcome(EX_TEMPFAIL)
    except BaseException as error:  # a component may raise anything
        # torch's handler raises wherever the news of another loader's worker that has gone comes.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        from .failure import failure_of  # imports torch, which is to come after the store's files

        failure = failure_of(error, step)
        if failure.traceback:
            print(logs.aside(traceback.format_exc()), file=sys.stderr)
        return Outcome(failure.code or 1, failure)
    return Outcome(0)


def _ready(plan: Plan, attempt: str) -> Store | None:
    """Import, and begin to fetch, which changes nothing anywhere. The store, if it can be the
    attempt's as well."""
    store = open_store(plan, attempt, create=False)
    restoring = threading.Thread(
        target=_restore_soon, args=[plan, store], name="xrun-restore", daemon=True
    )
    restoring.start()
    import torch._dynamo
    import torch.distributed.tensor  # noqa: F401  torch's optimizers and accelerate import both sooner or later

    from . import build  # noqa: F401

    if plan.address.durable:
        # It may still wait for the network, and one that is to commit is opened in another way.
        return None
    restoring.join()
    return store


def _restore_soon(plan: Plan, store: Store) -> None:
    """Begin to fetch what this rank will probably read."""
    own, first = _share(plan)
    fetch_soon(store, own, first=first)


def _share(plan: Plan) -> tuple[Share, bool]:
    """What of a checkpoint this rank reads, and whether it is the first one of its machine."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return share_of(plan, rank, size), os.environ.get("LOCAL_RANK", "0") == "0"


def _told_to_go() -> bool:
    """Wait for what else is to stand in the environment. False if the attempt does not train after
    all."""
    line = sys.stdin.readline()
    os.environ.update(json.loads(line or "{}"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return bool(line)


def _leave(plan: Plan, attempt: str, outcome: Outcome) -> None:
    """Write down how this rank ends, for the entrypoint to believe, to tell and to keep. There is
    room for it, whatever has filled the disk since."""
    path = logs.end_file(RunFolder(plan.folder).logs(attempt), int(os.environ.get("RANK", "0")))
    try:
        write_in_place(path, json.dumps(outcome.to_json()).encode())
    except OSError as problem:
        log.error("%s cannot be written: %s.", path, problem.strerror)


@contextlib.contextmanager
def built(
    plan: Plan, attempt: str, stop: StopFlag, store: Store | None = None
) -> Iterator[Training]:
    """The parts with the newest checkpoint's state in them; a given `store` has begun to fetch
    already. Afterwards a save on its way is finished."""
    if store is None:
        store = open_store(plan, attempt)
        own, first = _share(plan)
        if own.size == 1:
            fetch_soon(store, own, first=first)
    from .build import build_training
    from .micro_batch import give_memory_back

    training = build_training(plan, attempt, stop, store)
    gc.freeze()  # what is there now stays, and need not be looked at again and again
    gc.enable()
    # What building has left; from here on a step's memory is kept for the next one.
    give_memory_back()
    try:
        yield training
    finally:
        training.checkpointer.close()


def train(plan: Plan, attempt: str, stop: StopFlag, store: Store | None = None) -> None:
    """Train as one attempt that holds the run's lease, in this process: build the model and the
    data, restore the newest checkpoint, train to the end. `store` is one that is open already.

    Raises:
        XrunError: training cannot go on; the class says why.
        Stopped: `stop` was set, and the state is committed.
    """
    with built(plan, attempt, stop, store) as training:
        training.run()


def main_and_exit(*arguments: str) -> NoReturn:
    """Run this rank and end at once: threads of libraries (gloo, NCCL) must not hold back an
    attempt that has ended."""
    streams.deaf()
    code = main(*arguments)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main_and_exit(*sys.argv[1:])
