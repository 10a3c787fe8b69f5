"""Row 11: what `train.reduction: exact` costs beside `fast`: recipes/text_gpt.yaml on 2 processes,
8 micro-batches a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Row, interleaved, main, median, spread

RECIPE = Path(__file__).parents[1] / "recipes" / "text_gpt.yaml"
WARM = 5


def measure(quick: bool) -> Iterator[Row]:
    steps = 10 if quick else 40
    seen = interleaved(
        {kind: lambda kind=kind: _seconds(kind, steps) for kind in ("fast", "exact")},
        1 if quick else 3,
        warm=0,
    )
    ratios = [exact / fast for exact, fast in zip(seen["exact"], seen["fast"], strict=True)]
    yield Row(
        11,
        "seconds per step with train.reduction: exact, over fast, on 2 processes (text_gpt, 8"
        " micro-batches)",
        median(ratios),
        1.15,
        "lower",
        {"fast s": median(seen["fast"])},
        spread(ratios),
        {"exact_s": median(seen["exact"])},
    )


def _seconds(reduction: str, steps: int) -> float:
    """Seconds per step of a run of the command, after its first steps, by the times in its log."""
    with tempfile.TemporaryDirectory() as home:
        command = [
            sys.executable,
            "-m",
            "xrun",
            str(RECIPE),
            "--yes",
            "--local",
            "--processes",
            "2",
        ]
        command += [
            "-s",
            f"train.reduction={reduction}",
            "-s",
            f"train.steps={steps}",
            "-s",
            "train.schedule.warmup_steps=0",
        ]
        subprocess.run(
            command,
            env={**os.environ, "XRUN_HOME": home},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (log,) = Path(home).glob("*/metrics.jsonl")
        points = [json.loads(line) for line in log.read_text().splitlines()]
    times = [point["time"] for point in points if "train/loss" in point]
    return (times[-1] - times[WARM]) / (len(times) - 1 - WARM)


if __name__ == "__main__":
    main(measure)
