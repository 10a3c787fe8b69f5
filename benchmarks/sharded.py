"""Row 20: the memory of a sharded model's process, over its part of the state and one layer.

A GPT of 0.3 billion parameters with AdamW, sharded over 1, 2 and 4 processes of this machine: a run
is built, trained, saved beside a step, and restored by as many processes and trained on. The state
is weights, gradients and two moments; memory is anonymous (RssAnon), looked at every 2 ms from
before torch is imported, and counted whole.

Then tokens per second of a step over those of a plain loop around `fully_shard` with the same
units, in turns in one process, of half as many parameters.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab, take_lease
from benchmarks.result import Row, main, median, spread
from xrun.supervisor.ranks import ON_PROCESSORS_SHARDED

SIZES = (1, 2, 4)
TARGET, SPEED = 1.25, 0.98
TURN = 2
"""So many steps of one, then as many of the other."""


def measure(quick: bool) -> Iterator[Row]:
    small = ("model.args.depth=4",) if quick else ()
    also: dict[str, Any] = {}
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        for size in SIZES:
            lives = (lived(lab, f"s{size}", size, steps, *small) for steps in (2, 3))
            for life, ranks in zip(("begun", "restored"), lives, strict=True):
                for phase in ranks[0]["peaks"]:
                    most = max(ranks, key=lambda rank: rank["peaks"][phase] / rank["allowed"])
                    ratios.append(most["peaks"][phase] / most["allowed"])
                    also[f"{size} {life}, {phase}"] = ratios[-1]
                own = max(rank["libraries"] / rank["allowed"] for rank in ranks)
                also[f"{size} {life}, of that libraries"] = own
                read = max(rank["read"] / rank["saved"] for rank in ranks)
                also[f"{size} {life}, bytes read while it is built over its part"] = read
        speeds = []
        for number in range(1 if quick else 3):
            half = ("model.args.depth=4",) if quick else ("model.args.depth=12",)
            steps = 8 if quick else 24
            more = ("checkpoint.every=100000 steps", *half)
            ranks = lived(lab, f"speed{number}", 2, steps, *more, raw=True)
            speeds.append(median(rank["speed"] for rank in ranks))
    also["tokens per second over plain fully_shard's, 2 processes"] = median(speeds)
    also["of the rounds"] = list(spread(speeds))
    yield Row(
        20,
        "anonymous memory of a process over (state / processes + largest layer)",
        max(ratios),
        TARGET,
        "lower",
        {},
        spread(ratios),
        also,
        median(speeds) >= SPEED,
    )


def lived(
    lab: Lab, run: str, size: int, steps: int, *overrides: str, raw: bool = False
) -> list[dict[str, Any]]:
    """What each of so many processes tells of an attempt of the run to this step."""
    plan = lab.plan("sharded", run, f"train.steps={steps}", *overrides)
    attempt = take_lease(plan)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        **ON_PROCESSORS_SHARDED,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.sharded", "--rank", plan.folder, attempt]
    ranks = [
        subprocess.Popen(
            [*command, *(["raw"] if raw else [])],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    told = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size
    return [json.loads(each) for each in told]


class Meter:
    """The most anonymous memory of this process in each phase."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.libraries = 0
        self.phase = "start"
        threading.Thread(target=self._look_on, daemon=True).start()

    def enter(self, phase: str) -> None:
        """Another phase begins, and has been looked at however short it is."""
        self.phase = phase
        self._look()

    def _look_on(self) -> None:
        while True:
            self._look()
            time.sleep(0.002)

    def _look(self) -> None:
        phase, now = self.phase, _anonymous()
        self.peaks[phase] = max(self.peaks.get(phase, 0), now)


def rank(folder: Path, attempt: str, raw: bool) -> None:
    """One process of an attempt; what it has seen, as JSON on standard output."""
    meter = Meter()
    from xrun.checkpoint.state import local
    from xrun.machine.stop import StopFlag
    from xrun.run.plan import Plan
    from xrun.training.build import build_training
    from xrun.training.micro_batch import give_memory_back

    meter.libraries = _anonymous()
    plan = Plan.read(folder / "plan.json")
    args = plan.recipe["model"]["args"]
    allowed = allowance(args, int(os.environ["WORLD_SIZE"]))
    before = _bytes_read()
    training = build_training(plan, attempt, StopFlag())
    give_memory_back()
    read = _bytes_read() - before
    begin = training.checkpointer.begin
    turns = Turns(training, args) if raw else None
    meter.enter("training")

    def saved(alone: bool = False) -> None:
        meter.enter("saving")
        begin(alone)

    training.checkpointer.begin = saved  # type: ignore[method-assign]  # to know when
    training.export = lambda *_: None
    training.run()
    told = {
        "peaks": meter.peaks,
        "libraries": meter.libraries,
        "allowed": allowed,
        "saved": sum(local(tensor).nbytes for tensor in training.state.tensors().values()),
        "read": read,
        "speed": turns.speed() if turns else None,
    }
    os.write(1, json.dumps(told).encode())
    os._exit(0)


def allowance(args: dict[str, Any], size: int) -> int:
    """Bytes of a process's part of weights, gradients and two moments, and of the largest layer:
    what is gathered at once."""
    import torch

    from xrun.component import load_build
    from xrun.training.sharding import repeated_blocks

    with torch.device("meta"):
        model = load_build("models", "gpt", Path.cwd())(**args)
    layers = [sum(p.nbytes for p in block.parameters()) for block in repeated_blocks(model)]
    whole = sum(p.nbytes for p in model.parameters())
    return 4 * whole // size + max(*layers, whole - sum(layers))


class Turns:
    """Between two steps of a training as many of a plain loop around `fully_shard`, with the same
    model, batches and optimizer."""

    def __init__(self, training: Any, args: dict[str, Any]) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        from xrun.component import load_build

        self.model = load_build("models", "gpt", Path.cwd())(**args)
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        split = training.loader.split
        batch = training.state.micro_batch
        self.rows = torch.stack([split[n]["input_ids"] for n in range(batch)])
        self.micro_batches = training.train.global_batch // batch // training.world.size
        self.seconds: dict[str, list[float]] = {"xrun": [], "plain": []}
        self.steps, self.began = 0, time.perf_counter()
        training.state.optimizer.register_step_post_hook(self._turn)

    def _turn(self, *_: Any) -> None:
        self.steps += 1
        if self.steps % TURN:
            return
        self.seconds["xrun"].append(time.perf_counter() - self.began)
        began = time.perf_counter()
        for _ in range(TURN):
            self._step()
        self.seconds["plain"].append(time.perf_counter() - began)
        self.began = time.perf_counter()

    def _step(self) -> None:
        from torch.nn.functional import cross_entropy

        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.micro_batches):
            logits = self.model(self.rows)[:, :-1].flatten(0, 1)
            cross_entropy(logits, self.rows[:, 1:].flatten()).backward()
        self.optimizer.step()

    def speed(self) -> float:
        """Tokens per second of the training over the plain loop's; the first turn warms up."""
        return median(self.seconds["plain"][1:]) / median(self.seconds["xrun"][1:])


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(Path(sys.argv[2]), sys.argv[3], "raw" in sys.argv[4:])
    else:
        main(measure)
