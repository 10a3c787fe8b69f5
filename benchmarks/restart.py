"""Row 7: from the start of a container's process to the first new step, with 1 GB of state in the store.

What it is held against is a program that imports torch and accelerate, reads and hashes the files and copies them once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lab import Lab, StepClock, lab, run
from benchmarks.result import Row, interleaved, main, median, spread

BARE = """import os, sys, time
import torch, accelerate
from blake3 import blake3
kept = []
for path in sys.argv[2:]:
    hasher, size = blake3(), os.path.getsize(path)
    target = torch.empty(size, dtype=torch.uint8)
    view, at = memoryview(target.numpy()), 0
    buffer = memoryview(bytearray(8 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            view[at : at + count] = buffer[:count]
            at += count
    hasher.hexdigest()
    kept.append(target)
open(sys.argv[1], "w").write(repr(time.time()))
os._exit(0)
"""


def measure(quick: bool) -> Iterator[Row]:
    with lab() as own:
        yield _measure(own, rounds=1 if quick else 7, small=quick)


def _measure(own: Lab, rounds: int, small: bool) -> Row:
    from xrun.checkpoint import checkpoints_of
    from xrun.store.directory import DirectoryStore

    overrides = ["model.args.width=256", "dataset.args.shape=[256]"] if small else []
    first = own.training(own.plan("restart", "restart", *overrides, "train.steps=2"))
    run(first, StepClock())
    del first
    plan = own.plan("restart", "restart", *overrides)  # the same run, which now goes on
    head = DirectoryStore(plan.folder / "state", plan.run, "reader", plan.owner).head()
    assert head is not None
    newest = checkpoints_of(head)[-1]
    assert newest.step == 2
    files = [str(plan.folder / "state" / file.copies[0]) for file in newest.files.values()]
    size = sum(os.path.getsize(path) for path in files)
    note = own.root / "note"
    environment = {**os.environ, "BENCHMARK_FIRST_STEP": str(note)}
    bare = own.root / "bare.py"
    bare.write_text(BARE)

    def timed(command: list[str]) -> float:
        note.unlink(missing_ok=True)
        began = time.time()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        while not (text := _text(note)):
            if process.poll() is not None and not _text(note):
                raise RuntimeError(f"{command} ended with {process.returncode} before its first step")
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return float(text) - began

    seen = interleaved(
        {
            "bare": lambda: timed([sys.executable, str(bare), str(note), *files]),
            "xrun": lambda: timed([sys.executable, "-m", "xrun.entrypoint", str(plan.folder / "plan.json")]),
        },
        rounds,
    )  # fmt: skip
    ratios = [own / bare for own, bare in zip(seen["xrun"], seen["bare"], strict=True)]
    return Row(
        7, "restart: process start to the first new step, over import + read + hash + copy", median(ratios), 1.3, "lower",
        {"bare s": median(seen["bare"])}, spread(ratios), {"xrun_s": median(seen["xrun"]), "state_gb": size / 1e9},
    )  # fmt: skip


def _text(path: Path) -> str:
    """What was written; a part of it counts as nothing."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    return text if "." in text and len(text) > 12 else ""


if __name__ == "__main__":
    main(measure)
