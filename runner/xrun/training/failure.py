"""What an exception that ends a rank says of its attempt: whose fault it is, the exit code, and
whether the same machine may try again."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from .. import clock, environment
from ..errors import (
    EX_TEMPFAIL,
    AttemptEnd,
    ComponentError,
    ExportError,
    LaunchError,
    OutOfMemory,
    TrainError,
    XrunError,
)
from ..libraries import how_to_install
from ..run.record import Failure

_PEER_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",  # gloo
    "ncclRemoteError",
    "remote process exited",
    "Connection closed by remote peer",  # NCCL
)
_DEVICE = ("CUDA error", "CUDA driver", "CUDNN", "cuDNN", "CUBLAS", "HIP error", "ECC error")
_INDEX = "device-side assert triggered"
"""How a GPU says that an index of the model's own is out of range. Every error of CUDA's speaks of
device-side assertions, which can be switched on."""
_MACHINE = (
    "NCCL",
    "nccl",
    "gloo",
    "Connection ",
    "DataLoader worker (pid",
    "shared memory",
    "Too many open files",
    "out of memory",
    "allocate memory",
    "std::bad_alloc",
)
"""Words of RuntimeErrors that come of a peer, or of what a machine has too little of."""
_NO_KERNEL = "does not have a deterministic implementation"
"""The recipe's choice, which has an answer of its own."""
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_NETWORK = {
    *("aiohttp", "botocore", "requests", "urllib3"),
    *("httpcore", "httpx"),
    *("httpcore2", "httpx2"),  # as the Hub's library has them in its newer versions
}
"""Libraries whose errors are the network's, whether they say OSError or not."""
_OFFLINE = "LocalEntryNotFoundError"
"""What huggingface_hub makes of a Hub that does not answer: a FileNotFoundError."""
_FORBIDDEN = "OfflineModeIsEnabled"
"""What it and its like say where they may not ask."""
_ASK = (
    "Unset it; then it is fetched once, and later runs find it without the network. Or let the"
    " recipe name a folder that has it."
)
_CLOSED = "the client has been closed"
"""What its second try at a connection comes to: it closes its client after the first one."""
_NO_NAME = "HFValidationError"
"""What it makes of a name that no repository can have, such as the path of a folder that is not
there."""
_BUSY = (408, 425, 429)
"""Statuses of HTTP below 500 that may be others the next time."""


def failure_of(error: BaseException, step: int | None) -> Failure:
    """What an exception after so many steps (None: before the first was begun) says."""
    if isinstance(error, XrunError):
        return _ours(error, step)
    what = f"{type(error).__name__}: {error}{in_project(error)}"
    own = Failure(what, time=clock.now(), step=step, traceback=True)
    if _NO_KERNEL in str(error):
        what, hint = str(error).partition(".")[0] + ".", "Set train.deterministic: false."
        return replace(own, message=what, code=TrainError.exit_code, hint=hint, traceback=False)
    if is_peer_loss(error):
        return replace(own, end=AttemptEnd.OUTSIDE, code=EX_TEMPFAIL, again=True)
    if _is_devices(error):
        return replace(own, end=AttemptEnd.OUTSIDE, code=EX_TEMPFAIL)
    if is_forbidden(error):
        told = " ".join(str(error).split()).rstrip(".")
        what = f"HF_HUB_OFFLINE forbids to ask the Hub for what is not on this machine: {told}."
        return replace(own, message=what, code=LaunchError.exit_code, hint=_ASK, traceback=False)
    if is_of_the_machine(error):
        return replace(own, code=EX_TEMPFAIL, again=True)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return replace(own, code=ComponentError.exit_code, hint=how_to_install(error.name))
    return replace(own, message=_exit(error) or own.message, code=1)


def _ours(error: XrunError, step: int | None) -> Failure:
    of_component = isinstance(error, ComponentError | ExportError) and error.__cause__ is not None
    return Failure(
        error.message,
        AttemptEnd.OUTSIDE if is_peer_loss(error) else error.end,
        error.exit_code,
        error.hint,
        clock.now(),
        traceback=error.exit_code == 1 or of_component,
        parts=error.parts if isinstance(error, OutOfMemory) else 0,
        step=step,
        again=error.again,
    )


def _exit(error: BaseException) -> str:
    """A component or a library that leaves has not finished the run."""
    if not isinstance(error, SystemExit):
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1]
    code = "" if error.code is None else repr(error.code)
    return f"sys.exit({code}) at {last.filename}:{last.lineno}, and the run is not finished."


def in_project(error: BaseException) -> str:
    """Where in the project's own files it came up, ` (models/mine.py:23)`; "" if nowhere there."""
    frames = traceback.extract_tb(error.__traceback__)
    project = Path(environment.PROJECT.of() or os.getcwd()).resolve()
    own = [
        f" ({path.relative_to(project)}:{frame.lineno})"
        for frame in frames
        if (path := Path(frame.filename)).is_relative_to(project)
        and "site-packages" not in path.parts
    ]
    return own[-1] if own else ""


def is_peer_loss(error: BaseException) -> bool:
    """Whether another rank went away, which is then the cause."""
    return any(words in str(error) for words in _PEER_LOSS)


def is_forbidden(error: BaseException) -> bool:
    """Whether somebody has forbidden to ask the Hub, which no second try changes."""
    return any(_FORBIDDEN in f"{type(each).__name__}: {each}" for each in _chain(error))


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error may not come again elsewhere or later: the machine's, a peer's, the
    network's; or has an answer of its own."""
    if isinstance(error, XrunError | MemoryError | dist.DistError) or _is_devices(error):
        return True
    words = any(words in str(error) for words in (*_MACHINE, _NO_KERNEL))
    return (isinstance(error, RuntimeError) and words) or is_of_the_network(error)


def _is_devices(error: BaseException) -> bool:
    """Whether a device or a driver fails, which another machine's may not."""
    return any(words in str(error) for words in _DEVICE) and _INDEX not in str(error)


def is_of_the_network(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is the network's or the disk's of now; a file
    that is not there is not."""
    return not _is_refused(error) and any(_is_transient(each) for each in _chain(error))


def _is_refused(error: BaseException | None) -> bool:
    """Whether a server has answered that something is not there, or a library knew before: it may
    be told as an OSError that comes of it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = isinstance(status, int) and 400 <= status < 500 and status not in _BUSY
        if refused or type(error).__name__ == _NO_NAME:
            return True
        error = error.__cause__
    return False


def _is_transient(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in _BUSY
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if libraries & _NETWORK or type(error).__name__ == _OFFLINE or _CLOSED in str(error):
        return True
    return isinstance(error, OSError) and not isinstance(error, _FINAL)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and what it came from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
