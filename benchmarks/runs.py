"""How long `xrun status` of 500 runs takes, and `xrun report` of one with 10^6 points: real
commands, from the start of Python on.

    python benchmarks/runs.py [--runs 500] [--points 1000000] [--times 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "servers")]

from support.kept_runs import keep  # noqa: E402
from support.running import Project  # noqa: E402
from xrun.run.folder import RunFolder  # noqa: E402


def main() -> None:
    """One line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        for number in range(asked.runs):
            plan = project.plan(run=f"tiny-{number}")
            RunFolder(plan.folder).write_plan(plan)
            keep(plan, plan.folder)
        _tell(f"xrun status, {asked.runs} runs", project, asked.times, "status")
        lengthen(project.home / "tiny-0" / "metrics.jsonl", asked.points)
        _tell(f"xrun report, {asked.points} points", project, asked.times, "report", "tiny-0")


def lengthen(path: Path, points: int) -> None:
    """Make a log of points as a run's that evaluates every 100,000 steps."""
    with path.open("w") as file:
        for step in range(1, points + 1):
            values = {"train/loss": 1 / step, "train/lr": 0.001, "train/samples": f"{step:014x}"}
            told = {"step": step, "time": 1.8e9 + step, "attempt": "a1", **values}
            file.write(json.dumps(told) + "\n")
            if step % 100_000 == 1:
                file.write(json.dumps({"step": step, "attempt": "a1", "val/loss": 0.5}) + "\n")


def _tell(what: str, project: Project, times: int, *arguments: str) -> None:
    command = [sys.executable, "-P", "-m", "xrun", *arguments]
    environ = {"PATH": os.environ["PATH"], "HOME": str(project.root / "home")}
    environ["PYTHONPATH"] = str(ROOT / "runner")
    taken = []
    for _ in range(times):
        before = time.monotonic()
        subprocess.run(
            command, cwd=project.root, env=environ, check=True, stdout=subprocess.DEVNULL
        )
        taken.append(time.monotonic() - before)
    print(f"{what}: {statistics.median(taken):.2f} s (of {times}, the slowest {max(taken):.2f} s)")


if __name__ == "__main__":
    main()
