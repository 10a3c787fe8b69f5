"""One run in the hands of the wandb library: opened, written, closed. The only module that imports
it.

The library sends through a process of its own, `wandb-core`. It gives up on rows that the server
refuses and says so to nobody, and it cannot be stopped while it tries; therefore whoever writes
here asks the server what has arrived, and ends that process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .api import RunPath, Unreachable, api_key
from .rows import STEP

_INIT_SECONDS = 30.0
_RETRY_SECONDS = 20.0  # its own minute is long after an outage
_RETRIES = 100_000
_GONE_SECONDS = 15.0
_OTHER_RUNS = ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM")
"""Variables that say which run is written and how, for other programs. The library would refuse
some of them together with our settings, which it applies one by one in an order that changes."""
_HTTP_PROXY = "WANDB_HTTP_PROXY"
"""Left out for the library, whose server is on this machine; the gate between that and W&B takes
the system's proxies."""


def open_run(
    address: RunPath,
    folder: Path,
    config: Mapping[str, Any],
    tags: Sequence[str],
    group: str,
    seconds: float,
    server: str,
) -> Any:
    """Begin or resume the run, in its `group` if it has one; rows are sent to `server` every so
    many seconds, at least one.

    Nothing is collected from this machine: no command line, environment, host name, git remote,
    package list or output.

    Raises:
        Unreachable: it did not work, now.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    for name in (*_OTHER_RUNS, _HTTP_PROXY):
        os.environ.pop(name, None)
    import wandb

    shutil.rmtree(folder / "wandb", ignore_errors=True)  # the logs of the sender before
    settings = wandb.Settings(
        base_url=server,
        api_key=api_key(),
        console="off",
        program="",
        host="",
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_skip_transaction_log=True,
        x_file_stream_transmit_interval=max(1.0, seconds),  # wandb-core takes whole seconds
        x_file_stream_retry_max=_RETRIES,
        x_file_stream_retry_wait_max_seconds=_RETRY_SECONDS,
        init_timeout=_INIT_SECONDS,
    )
    try:
        run = wandb.init(
            id=address.run,
            name=address.run,
            project=address.project,
            entity=address.entity or None,
            resume="allow",
            mode="online",
            config=dict(config),
            tags=list(tags),
            group=group or None,
            dir=folder,
            settings=settings,
        )
    except Exception as error:  # the library has many, not all of one family, and none may end us
        raise Unreachable(str(error).partition("\n")[0]) from error
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def cores() -> list[int]:
    """The processes that send for this one."""
    tasks = Path("/proc/self/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if _is_core(pid)]


def await_cores(pids: Sequence[int]) -> None:
    """Wait until these, of a sender that was killed, have noticed that and are gone: nobody else
    must write to the run."""
    deadline = time.monotonic() + _GONE_SECONDS
    while any(_is_core(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)


def end_cores() -> None:
    """End this process's own at once."""
    pids = cores()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await_cores(pids)


def _is_core(pid: int) -> bool:
    """Whether this is a living wandb-core; one that has ended has no command line."""
    try:
        return b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
