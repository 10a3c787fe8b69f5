"""A sweep that is typed twice: on this machine, and with jobs on the cluster. Its steps take their
time, so that both take as long."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.site import Site

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

    def said(self) -> str:
        """What the command has said, and the commands of the trials."""
        logs = [self.log, *sorted(self.home.glob("*/trial-*.log"))]
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in logs)

    def status(self) -> str:
        """What `xrun sweep status` says."""
        command = (sys.executable, "-m", "xrun", "sweep", "status", *self.typed)
        options = {"env": self.environment, "cwd": self.project, "stderr": subprocess.DEVNULL}
        return self.site.cluster.run(*command, **options)

    def table(self) -> list[dict[str, Any]]:
        """The rows of `xrun sweep table`, without what it has cost."""
        command = (sys.executable, "-m", "xrun", "sweep", "table", *self.typed, "--json")
        options = {"env": self.environment, "cwd": self.project, "stderr": subprocess.DEVNULL}
        told = ("trial", "run", "state", "rung", "step", "value")
        rows = json.loads(self.site.cluster.run(*command, **options))
        return [{name: row[name] for name in told} for row in rows]


def sha256(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
