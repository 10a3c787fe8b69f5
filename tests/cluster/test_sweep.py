"""`make soak`: a sweep whose trials are managed jobs of a real SkyPilot, under kills of everything
that takes part in it.

Covers `xrun.launcher.sky.cloud`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import arguments, descendants
from cluster.site import Site
from cluster.waiting import until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

FILES = {
    "pyproject.toml": '[project]\nname = "slow"\nversion = "1"\n',
    "models/line.py": """\
from torch import nn


def build():
    return nn.Linear(8, 2)
""",
    "datasets/slow.py": '''\
import time

import torch


class Slow:
    """Samples that take their time to be read, so that a step takes as long on a busy machine."""

    def __init__(self, first, count, seconds):
        self.x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
        self.first, self.count, self.seconds = first, count, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        time.sleep(self.seconds)
        x = self.x[self.first + i]
        return x, int(x.sum() > 0)


def build():
    return {"train": Slow(0, 3072, 0.008), "val": Slow(3072, 1024, 0.0)}
''',
    "recipes/swept.yaml": """\
name: swept
model: {name: line}
dataset: {name: slow}
task: classification
train:
  steps: 300
  global_batch: 16
  micro_batch: 16
  precision: fp32
  optimizer: {name: adamw, lr: 0.01}
  evaluate: {every: 50 steps, metric: loss, mode: min}
checkpoint: {every: 20 steps, keep: 3}
sweep:
  parameters:
    train.optimizer.lr: {min: 1e-5, max: 1.0, log: true, points: 6}
  parallel: 2
  stop: {method: halving, rungs: 1, reduction: 3}
""",
}
"""A step takes an eighth of a second, and two trials of six come to their end."""
LETHAL = ("rank", "machine", "machine with notice")
"""Kills after which a trial needs another attempt."""
RUNG, END, LEFT = 100, 300, 30
"""Steps, and so many that a trial must have before it when it is hit."""
HERE = ("-s", "checkpoint.store=local")
THERE = ("-s", "checkpoint.store=hub", "-s", "hardware={any_of: [{clouds: [slurm], spot: false}]}")


class Sweep:
    """A sweep as a person types it. `runs` are those of its trials."""

    def __init__(self, site: Site, home: Path, *where: str) -> None:
        self.site, self.home = site, home
        self.project = site.cluster.root / "swept"
        for name, text in FILES.items():
            path = self.project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.typed = ("recipes/swept.yaml", *where)
        self.environment = site.environment | {"XRUN_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.log = site.cluster.root / "logs" / f"{home.name}.log"

    def start(self) -> subprocess.Popen[str]:
        """The command that runs all trials; what it says is in the log."""
        command = (sys.executable, "-m", "xrun", *self.typed, "--yes", "--no-rehearsal")
        options = {"env": self.environment, "cwd": self.project}
        with self.log.open("a") as log:
            return self.site.cluster.start(*command, stdout=log, stderr=log, **options)

    def table(self) -> list[dict[str, Any]]:
        """The rows of `xrun sweep table`, without what it has cost."""
        command = (sys.executable, "-m", "xrun", "sweep", "table", *self.typed, "--json")
        options = {"env": self.environment, "cwd": self.project, "stderr": subprocess.DEVNULL}
        told = ("trial", "run", "state", "rung", "step", "value")
        rows = json.loads(self.site.cluster.run(*command, **options))
        return [{name: row[name] for name in told} for row in rows]


class Kills:
    """Kills of what a sweep on the cluster consists of. Each hits a trial in an attempt that was
    not hit before, in the middle of its steps."""

    def __init__(self, sweep: Sweep, runs: list[str], chance: random.Random) -> None:
        self.sweep, self.cluster, self.site = sweep, sweep.site.cluster, sweep.site
        self.runs, self.chance = runs, chance
        self.hit: set[str] = set()
        self.command = sweep.start()

    def __call__(self, kind: str) -> str:
        """Wait for a trial that trains, and kill; which run was hit."""
        run = until(self._trains, "a trial that trains", 3600, every=0.3, alive=self._goes_on)
        {
            "rank": self._rank,
            "machine": lambda run: self.cluster.preempt(run, notice=False),
            "machine with notice": lambda run: self.cluster.preempt(run, notice=True),
            "command of a trial": self._command_of_a_trial,
            "launcher": self._launcher,
        }[kind](run)
        return run

    def _trains(self) -> str | None:
        there = {name: self._attempt(name) for name in self.runs}
        free = [name for name, attempt in there.items() if attempt and attempt not in self.hit]
        if not free:
            return None
        run = self.chance.choice(free)
        self.hit.add(there[run] or "")
        return run

    def _attempt(self, run: str) -> str | None:
        """The attempt that is in the middle of a run's steps now."""
        record = self.site.record(run)
        attempts, checkpoints = record.get("attempts"), record.get("checkpoints")
        if not attempts or not checkpoints or attempts[-1].get("ended"):
            return None
        step, attempt = checkpoints[-1]["step"], str(checkpoints[-1]["attempt"])
        trains = 0 <= step <= RUNG - LEFT or RUNG < step <= END - LEFT
        return attempt if trains and attempt == attempts[-1]["id"] else None

    def _goes_on(self) -> None:
        code = self.command.poll()
        assert code is None, f"the sweep ended with {code}: {self.sweep.log.read_text()}"

    def _rank(self, run: str) -> None:
        """The process that trains, on the trial's machine, and one that is started ahead of the
        next attempt."""
        there = self.cluster.processes_of(self.cluster.machine(run))
        ranks = [pid for pid in there if "xrun.training.rank" in arguments(pid)]
        assert ranks
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)

    def _command_of_a_trial(self, run: str) -> None:
        """One that the launcher has started, and that follows a job."""
        following = until(self._following, "a trial's command", 600, alive=self._goes_on)
        os.kill(self.chance.choice(following), signal.SIGKILL)

    def _following(self) -> list[int]:
        below = descendants(self.command.pid)
        return [pid for pid in below if "--trial" in arguments(pid)]

    def _launcher(self, run: str) -> None:
        """The sweep's own command, which is typed again."""
        self.command.kill()
        self.command.communicate()
        self.command = self.sweep.start()


def test_a_sweep_of_jobs_under_kills_keeps_the_trials_and_bits_of_a_quiet_one(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six trials by halving: results, survivors and weights are those of the same sweep on this
    machine, though a rank, machines, a trial's command and the launcher are killed. In which order,
    and which of the trials that train then, is drawn anew each day."""
    here = Sweep(site, site.cluster.root / "here", *HERE)
    there = Sweep(site, site.cluster.root / "there", *THERE)
    quiet = here.start()
    runs = [row["run"] for row in there.table()]
    began, seed = time.monotonic(), datetime.now(UTC).toordinal()
    chance = random.Random(seed)
    kills = Kills(there, runs, chance)
    kinds = [*LETHAL, "command of a trial", "launcher"]
    chance.shuffle(kinds)
    hit = [(kind, kills(kind)) for kind in kinds]
    assert kills.command.wait(timeout=3600) == 0, there.log.read_text()
    took = time.monotonic() - began
    assert quiet.wait(timeout=3600) == 0, here.log.read_text()
    found = there.table()
    assert found == here.table()
    survivors = [row["run"] for row in found if row["state"] == "finished"]
    assert len(survivors) == 2
    for run in survivors:
        model = here.home / run / "model" / "model.safetensors"
        assert sha256(site.weights(run)) == sha256(model.read_bytes())
    lives = {run: len(site.record(run)["attempts"]) for run in runs}
    ended = Counter(run for kind, run in hit if kind in LETHAL)
    for run in runs:
        assert lives[run] >= 1 + ended[run] + (run in survivors), (hit, lives)
    jobs = [job for job in site.cluster.jobs() if job.job_name in runs]
    assert len(jobs) >= len(runs) + len(survivors)
    assert sum(job.recovery_count for job in jobs) >= len(LETHAL)
    with capsys.disabled():
        print(f"\nseed {seed}: {took:.0f} s; hit, in this order:")
        print(*(f"  {kind} of {run}" for kind, run in hit), sep="\n")


def sha256(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
