"""`make gpu`: what only a GPU can show, in one call of ten minutes, with the torch that is there
and without a network: the tests marked `gpu`, then rows 1, 3, 4, 7 and 2 as far as the time goes.

Ends with 0 if every test passed and every row was measured, 1 if one was not, 2 where there is
nothing to begin with.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result import RESULTS

ROOT = Path(__file__).parent.parent
SECONDS = 585.0
TESTS = 270.0
"""Of these at most for the tests."""
ROWS = {("1",): "", ("3", "4"): "", ("7",): "huggingface_hub starlette uvicorn lz4", ("2",): ""}
"""In this order, and what they need besides."""
NEEDED = (
    "torch accelerate safetensors numpy click pydantic yaml blake3 xxhash tqdm tenacity pytest"
    " pytest_timeout hypothesis"
)
UNSEEN = """\
Unseen on one GPU, whatever this says: NCCL between GPUs (its sums, its timeouts, NVLS off and on),
FSDP and DDP over several GPUs and nodes, EFA and InfiniBand; other drivers and other builds of
torch than these; MIG, several kinds of GPUs in one machine, a cloud's notice on a GPU's machine."""


def missing(names: str) -> str:
    """Those of these modules that this Python has not."""
    return ", ".join(name for name in names.split() if importlib.util.find_spec(name) is None)


def lacking() -> str:
    """Why nothing can be seen here, in one sentence; "" if it can."""
    if names := missing(NEEDED):
        return f"make gpu: {sys.executable} has no {names}."
    import torch

    if torch.cuda.is_available():
        return ""
    from xrun.machine.driver import ask_driver

    return f"make gpu: torch {torch.__version__} sees no GPU here ({ask_driver()})."


def main(given: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu")
    results = parser.parse_args(given).results
    end = time.monotonic() + SECONDS
    if what := lacking():
        print(what, file=sys.stderr)
        return 2
    print(machine(), flush=True)
    failed = [] if timed(tests(), min(TESTS, end - time.monotonic())) == 0 else ["tests"]
    for rows, needs in ROWS.items():
        what = f"row {' and '.join(rows)}"
        if names := missing(needs):
            print(f"Skipped, {what}: {sys.executable} has no {names}.", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks", *rows, "--results", str(results)]
        if timed(command, end - time.monotonic()):
            failed.append(what)
    print(UNSEEN)
    print(f"Failed or out of time: {', '.join(failed)}." if failed else "All of it passed.")
    return 1 if failed else 0


def machine() -> str:
    """Device, driver, torch, and what it was built with."""
    import torch

    from xrun.machine.driver import ask_driver

    cuda = torch.cuda
    build = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN"
    nccl = ".".join(map(str, cuda.nccl.version()))
    number = ".".join(map(str, cuda.get_device_capability()))
    return (
        f"{cuda.device_count()} x {cuda.get_device_name()} (compute capability {number});"
        f" {ask_driver()}; {build} {torch.backends.cudnn.version()}, NCCL {nccl};"
        f" Python {sys.version.split()[0]}"
    )


def tests() -> list[str]:
    """The file of them alone: the others import libraries that this machine may not have."""
    file = "tests/training/test_gpu.py"
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", file, "-p", "no:cacheprovider"]


def timed(command: Sequence[str], seconds: float) -> int:
    """The exit code of a command that has so much time; what it had started ends with it."""
    if seconds < 1:
        return 124
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"Out of time after {seconds:.0f} s: {' '.join(command[1:])}", flush=True)
        os.killpg(process.pid, 9)
        return 124


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
