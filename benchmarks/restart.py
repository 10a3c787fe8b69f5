"""Row 7: from the start of a container's process to the first new step, with 1 GB of state in the
store.

What it is held against is a program that imports torch and accelerate, reads and hashes the files
and copies them once. Then the same on a machine that has nothing, with the state on a loopback Hub:
there the program downloads the files first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, StepClock, lab, run
from benchmarks.result import Row, interleaved, main, median, spread
from xrun.run.record import RunRecord
from xrun.run.stores import open_store

BARE = """import os, sys, time
import torch, accelerate
from xxhash import xxh3_128
kept, paths = [], sys.argv[2:]
if paths[0].startswith("hub://"):
    from concurrent.futures import ThreadPoolExecutor
    from huggingface_hub import hf_hub_download
    _, name, folder, *files = paths
    with ThreadPoolExecutor(4) as threads:
        get = lambda file: hf_hub_download(name, file, revision="state", local_dir=folder)
        paths = list(threads.map(get, files))
for path in paths:
    hasher, size = xxh3_128(), os.path.getsize(path)
    target = torch.empty(size, dtype=torch.uint8)
    view, at = memoryview(target.numpy()), 0
    buffer = memoryview(bytearray(8 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            view[at : at + count] = buffer[:count]
            at += count
    hasher.hexdigest()
    kept.append(target.cuda() if torch.cuda.is_available() else target)
BY_HAND
open(sys.argv[1], "w").write(repr(time.time()))
os._exit(0)
"""
BY_HAND = """model = torch.nn.ParameterList(torch.zeros(4096, 4096) for _ in range(5))
cpu = not torch.cuda.is_available()
accelerate.Accelerator(cpu=cpu).prepare(model, torch.optim.AdamW(model.parameters(), fused=True))
"""
"""What whoever trains does besides, and what makes torch and accelerate import more of
themselves."""


def measure(quick: bool) -> Iterator[Row]:
    rounds = 1 if quick else 7
    with lab() as own:
        ratios, seen, size = _measure(own, rounds, quick, "")
    with _hub() as address, lab() as own:
        far, seen_far, _ = _measure(own, 1 if quick else 3, quick, address)
    also = {
        "xrun_s": median(seen["xrun"]),
        "state_gb": size / 1e9,
        "hub": median(far),
        "hub_spread": spread(far),
        "over_by_hand": median(
            [one / other for one, other in zip(seen["xrun"], seen["by hand"], strict=True)]
        ),
        "hub_over_by_hand": median(
            [one / other for one, other in zip(seen_far["xrun"], seen_far["by hand"], strict=True)]
        ),
        "hub_xrun_s": median(seen_far["xrun"]),
        "hub_bare_s": median(seen_far["bare"]),
        "hub_target": 1.3,
    }
    what = "restart: process start to the first new step, over import + read + hash + copy"
    yield Row(
        7,
        f"{what} (state on a Hub: {median(far):.3g})",
        median(ratios),
        1.3,
        "lower",
        {"bare s": median(seen["bare"]), "accelerate by hand s": median(seen["by hand"])},
        spread(ratios),
        also,
        rest_met=median(far) <= 1.3,
    )


@contextmanager
def _hub() -> Iterator[str]:
    """A loopback Hub in a process of its own, as the service is somewhere else; the address of a
    store there."""
    code = (
        "import sys, tempfile; from pathlib import Path; from loopback.hub import Hub\n"
        "with tempfile.TemporaryDirectory() as folder, Hub(Path(folder)) as hub:\n"
        "    print(hub.url, hub.token('alice'), flush=True); sys.stdin.read()"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        url, token = process.stdout.readline().split()  # type: ignore[union-attr]  # it is a pipe
        os.environ.update(
            {
                "HF_ENDPOINT": url,
                "HF_TOKEN": token,
                "XRUN_HUB_SPACING": "0",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
        )
        yield "hub://alice/restart"
        process.communicate("")


def _measure(
    own: Lab, rounds: int, small: bool, address: str
) -> tuple[list[float], dict[str, list[float]], int]:
    """The ratios of the rounds, the seconds of both, and the size of the state in bytes."""
    overrides = ["model.args.width=256", "dataset.args.shape=[256]"] if small else []
    overrides += [f"checkpoint.store={address}"] if address else []
    first = own.training(own.plan("restart", "restart", *overrides, "train.steps=2"))
    run(first, StepClock())
    del first
    plan = own.plan("restart", "restart", *overrides)  # the same run, which now goes on
    head = open_store(plan, "reader").head()
    assert head is not None
    newest = RunRecord.of(head).checkpoints[-1]
    assert newest.step == 2
    places = [file.copies[0] for file in newest.files.values()]
    size = sum(file.size for file in newest.files.values())
    note, said = own.root / "note", own.root / "said"
    environment = {**os.environ, "BENCHMARK_FIRST_STEP": str(note)}
    bare, by_hand = own.root / "bare.py", own.root / "by_hand.py"
    bare.write_text(BARE.replace("BY_HAND\n", ""))
    by_hand.write_text(BARE.replace("BY_HAND\n", BY_HAND))

    def timed(command: list[str]) -> float:
        note.unlink(missing_ok=True)
        if address:  # a machine that has nothing
            for folder in (plan.folder / "cache", own.root / "downloads"):
                shutil.rmtree(folder, ignore_errors=True)
        with said.open("wb") as errors:
            began = time.time()
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        while not (text := _text(note)):
            if process.poll() is not None and not _text(note):
                raise RuntimeError(
                    f"{command} ended with {process.returncode}:\n{said.read_text()[-2000:]}"
                )
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return float(text) - began

    own_files = [str(plan.folder / "state" / place) for place in places]
    files = (
        ["hub://", address.removeprefix("hub://"), str(own.root / "downloads"), *places]
        if address
        else own_files
    )
    seen = interleaved(
        {
            "bare": lambda: timed([sys.executable, str(bare), str(note), *files]),
            "by hand": lambda: timed([sys.executable, str(by_hand), str(note), *files]),
            "xrun": lambda: timed(
                [sys.executable, "-m", "xrun.supervisor.entrypoint", str(plan.folder / "plan.json")]
            ),
        },
        rounds,
    )
    return [own / bare for own, bare in zip(seen["xrun"], seen["bare"], strict=True)], seen, size


def _text(path: Path) -> str:
    """What was written; a part of it counts as nothing."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    return text if "." in text and len(text) > 12 else ""


if __name__ == "__main__":
    main(measure)
