"""One rank's life: plan -> parts -> restore -> train -> exit code.

Started by the entrypoint as `python -m xrun.training.rank PLAN ATTEMPT`, or with `--wait` before
the attempt has its lease: then torch is imported and the newest checkpoint is on its way by the
time there is a line on standard input that says how to go on.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from .. import environment
from ..errors import (
    EX_TEMPFAIL,
    AttemptEnd,
    ComponentError,
    OutOfMemory,
    Stopped,
    TrainError,
    XrunError,
)
from ..machine.stop import StopFlag, end_with_parent
from ..run import logs
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..run.record import Failure
from ..run.stores import open_store, restore_soon
from ..store.protocol import Store

log = logging.getLogger("xrun")

_PEER_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",  # gloo
    "ncclRemoteError",
    "remote process exited",
    "Connection closed by remote peer",  # NCCL
)


def main(plan_path: str, attempt: str, wait: str = "") -> int:
    """Run this rank; returns its exit code and leaves what went wrong in the attempt's log
    folder."""
    end_with_parent(signal.SIGKILL)
    # Until training begins: looking for garbage among all that torch imports takes a second of the
    # start.
    gc.disable()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the entrypoint asks a rank that hangs where it is
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the entrypoint says what it means
    plan = Plan.from_json(Path(plan_path).read_text())
    store = _ready(plan, attempt) if wait else None
    if wait and not _told_to_go():
        return 0
    told = environment.STOP.of()
    stop = StopFlag(told=Path(told) if told else None)
    stop.on_signals(signal.SIGTERM)
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO if first else logging.WARNING)
    try:
        train(plan, attempt, stop, store)
    except Stopped:
        return EX_TEMPFAIL
    except Exception as error:
        failure = _failure_of(error)
        if failure.traceback:
            print(logs.aside(traceback.format_exc()), file=sys.stderr)
        return _leave(plan, attempt, error, failure)
    return 0


def _ready(plan: Plan, attempt: str) -> Store | None:
    """Import, and begin to fetch, which changes nothing anywhere. The store, if it can be the
    attempt's as well."""
    store = open_store(plan, attempt, create=False)
    restoring = threading.Thread(
        target=restore_soon, args=[store], name="xrun-restore", daemon=True
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        restoring.start()
    import torch._dynamo
    import torch.distributed.tensor  # noqa: F401  torch's optimizers and accelerate import both sooner or later

    from . import build  # noqa: F401

    if plan.address.durable:
        # It may still wait for the network, and one that is to commit is opened in another way.
        return None
    if restoring.ident:
        restoring.join()
    return store


def _told_to_go() -> bool:
    """Wait for what else is to stand in the environment. False if the attempt does not train after
    all."""
    line = sys.stdin.readline()
    os.environ.update(json.loads(line or "{}"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return bool(line)


def _leave(plan: Plan, attempt: str, error: Exception, failure: Failure) -> int:
    """Write down what ended this rank, for the entrypoint to tell and to keep; its exit code."""
    if _is_peer_loss(error):
        failure = replace(failure, end=AttemptEnd.OUTSIDE)
    path = RunFolder(plan.folder).logs(attempt) / f"failure-{os.environ.get('RANK', '0')}.json"
    try:
        path.write_text(json.dumps(failure.to_json()))
    except OSError as problem:  # a full disk: then the exit code and the log have to do
        log.error("%s %s (%s)", failure.message, failure.hint, problem.strerror)
    return failure.code or 1


def _failure_of(error: Exception) -> Failure:
    """What an error says of the attempt that it ends."""
    now = time.time()
    if isinstance(error, XrunError):
        parts = error.parts if isinstance(error, OutOfMemory) else 0
        end, code, message = error.end, error.exit_code, error.message
        told = code == 1 or (isinstance(error, ComponentError) and error.__cause__ is not None)
        return Failure(message, end, code, error.hint, now, traceback=told, parts=parts)
    if "does not have a deterministic implementation" in str(error):
        what, hint = str(error).partition(".")[0] + ".", "Set train.deterministic: false."
        return Failure(what, AttemptEnd.OWN, TrainError.exit_code, hint, now)
    return Failure(f"{type(error).__name__}: {error}", code=1, time=now, traceback=True)


def _is_peer_loss(error: Exception) -> bool:
    """Whether another rank went away, which is then the cause."""
    return any(words in str(error) for words in _PEER_LOSS)


def train(plan: Plan, attempt: str, stop: StopFlag, store: Store | None = None) -> None:
    """Build the parts, restore the newest checkpoint, train to the end. A given `store` has begun
    to fetch already."""
    if store is None:
        store = open_store(plan, attempt)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            restore_soon(store)
    from .build import build_training
    from .micro_batch import give_memory_back

    training = build_training(plan, attempt, stop, store)
    gc.freeze()  # what is there now stays, and need not be looked at again and again
    gc.enable()
    # What building has left; from here on a step's memory is kept for the next one.
    give_memory_back()
    try:
        training.run()
    finally:
        training.checkpointer.close()


def main_and_exit(*arguments: str) -> NoReturn:
    """Run this rank and end at once: threads of libraries (gloo, NCCL) must not hold back an
    attempt that has ended."""
    code = main(*arguments)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main_and_exit(*sys.argv[1:])
