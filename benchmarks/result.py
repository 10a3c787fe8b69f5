"""A measured row: as a line of JSON, as a line of the table, and in the results' files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xrun.machine.driver import ask_driver

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One number with its target, its peers beside it and how far the rounds lay apart.

    `better` is `lower` or `higher`; `spread` is the smallest and the largest of the rounds; `also`
    is what else was seen; `rest_met` says whether the row's other targets are met, where it has
    some.
    """

    row: int
    name: str
    value: float
    target: float
    better: str
    peers: Mapping[str, Any]
    spread: Sequence[float]
    also: Mapping[str, Any] = field(default_factory=dict)
    rest_met: bool = True

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the target, and so is whatever else the row
        asks for."""
        return self.rest_met and (
            self.value <= self.target if self.better == "lower" else self.value >= self.target
        )

    def to_json(self) -> dict[str, Any]:
        """With the command that measures it again, and every number short enough to read."""
        return rounded(
            {**asdict(self), "met": self.met, "command": f"python -m benchmarks {self.row}"}
        )

    def text(self) -> str:
        """A line of the table."""
        sign = "<=" if self.better == "lower" else ">="
        low, high = self.spread
        peers = ", ".join(f"{name} {_short(value)}" for name, value in self.peers.items())
        verdict = "met" if self.met else "MISSED"
        own = f"{self.value:.4g} ({low:.4g} to {high:.4g})"
        return (
            f"| {self.row} | {self.name} | {own} | {sign} {self.target:g} | {verdict} | {peers} |"
        )


HEADER = "| # | what | xrun (spread) | target | | peers |\n|---|---|---|---|---|---|"


def rounded(value: Any) -> Any:
    """The same JSON with five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_short(inner)}" for name, inner in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1
) -> dict[str, list[Any]]:
    """Measure each contestant `rounds` times, one after the other, each round beginning with the
    next one.

    `warm` rounds come first and are thrown away. What `contestants[name]()` returns at one place of
    the lists was measured within one round, so that differences between them are paired.
    """
    names = list(contestants)
    seen: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(warm + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            value = contestants[name]()
            if number >= warm:
                seen[name].append(value)
    return seen


def median(values: Iterable[float]) -> float:
    """The middle one."""
    return float(statistics.median(values))


def spread(values: Iterable[float]) -> tuple[float, float]:
    """The smallest and the largest."""
    known = list(values)
    return min(known), max(known)


def machine() -> dict[str, Any]:
    """Where this was measured."""
    from importlib.metadata import PackageNotFoundError, version

    libraries = {}
    for name in (
        "torch",
        "accelerate",
        "lightning",
        "transformers",
        "peft",
        "trl",
        "torchdata",
        "numpy",
        "xxhash",
    ):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    model = next(
        (
            line.partition(":")[2].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        "",
    )
    memory = next(
        (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0
    )
    driver = ask_driver()
    return {
        **({"gpu": str(driver)} if driver.gpus else {}),
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e6, 1),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        **libraries,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def keep(rows: Iterable[dict[str, Any]], folder: Path = RESULTS) -> None:
    """Put rows in the place of their last measurement in `latest.jsonl`, and at the end of the
    day's file with the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    latest = folder / "latest.jsonl"
    known = (
        {row["row"]: row for row in map(json.loads, latest.read_text().splitlines())}
        if latest.exists()
        else {}
    )
    new = {row["row"]: row for row in rows}
    merged = {**known, **new}
    latest.write_text("".join(json.dumps(merged[number]) + "\n" for number in sorted(merged)))
    now = datetime.now(UTC)
    facts = {"time": now.isoformat(timespec="seconds"), "machine": machine()}
    with (folder / f"{now:%Y-%m-%d}.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, **facts}) + "\n" for row in new.values())


def main(measure: Callable[[bool], Iterable[Row]]) -> None:
    """What each file of rows does when it is run: measure, and print one line of JSON per row on
    standard output."""
    out = os.dup(1)
    os.dup2(2, 1)  # libraries that print do not disturb
    for row in measure("--quick" in sys.argv[1:]):
        os.write(out, json.dumps(row.to_json()).encode() + b"\n")
