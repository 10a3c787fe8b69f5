"""What an exception that ends a rank says of its attempt: whose fault it is, the exit code, and
whether the same machine may try again."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

from ..errors import EX_TEMPFAIL, AttemptEnd, OutOfMemory, TrainError, XrunError
from ..run.record import Failure

_PEER_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",  # gloo
    "ncclRemoteError",
    "remote process exited",
    "Connection closed by remote peer",  # NCCL
)
_MACHINE = (
    "CUDA error",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "CUDA driver",
    "ncclSystemError",
    "ncclInternalError",
    "ncclUnhandledCudaError",
    "uncorrectable ECC",
)
_INDEX = "device-side assert"
"""How a GPU says that an index of the model's own is out of range."""
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_NETWORK = {"aiohttp", "httpcore", "httpx", "requests", "urllib3"}
"""Libraries whose errors are not all OSErrors."""
_OFFLINE = "LocalEntryNotFoundError"
"""What huggingface_hub makes of a Hub that does not answer: a FileNotFoundError."""
_BUSY = (408, 425, 429)
"""Statuses of HTTP below 500 that may be others the next time."""


def failure_of(error: BaseException, step: int | None) -> Failure:
    """What an exception after so many steps (None: before the first was begun) says."""
    if isinstance(error, XrunError):
        return _ours(error, step)
    own = Failure(f"{type(error).__name__}: {error}", time=time.time(), step=step, traceback=True)
    if "does not have a deterministic implementation" in str(error):
        what, hint = str(error).partition(".")[0] + ".", "Set train.deterministic: false."
        return replace(own, message=what, code=TrainError.exit_code, hint=hint, traceback=False)
    if is_peer_loss(error):
        return replace(own, end=AttemptEnd.OUTSIDE, code=EX_TEMPFAIL, again=True)
    if is_machines(error):
        return replace(own, end=AttemptEnd.OUTSIDE, code=EX_TEMPFAIL)
    if may_pass(error):
        return replace(own, code=EX_TEMPFAIL, again=True)
    return replace(own, message=_exit(error) or own.message, code=1)


def _ours(error: XrunError, step: int | None) -> Failure:
    return Failure(
        error.message,
        AttemptEnd.OUTSIDE if is_peer_loss(error) else error.end,
        error.exit_code,
        error.hint,
        time.time(),
        traceback=error.exit_code == 1,
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


def is_peer_loss(error: BaseException) -> bool:
    """Whether another rank went away, which is then the cause."""
    return any(words in str(error) for words in _PEER_LOSS)


def is_machines(error: BaseException) -> bool:
    """Whether a device or a driver fails, which another machine may not."""
    return any(words in str(error) for words in _MACHINE) and _INDEX not in str(error)


def may_pass(error: BaseException) -> bool:
    """Whether it comes of a network or a disk, which may answer the next time."""
    return any(_is_transient(each) for each in _chain(error))


def _is_transient(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in _BUSY
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if libraries & _NETWORK or type(error).__name__ == _OFFLINE:
        return True
    return isinstance(error, OSError) and not isinstance(error, _FINAL)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
