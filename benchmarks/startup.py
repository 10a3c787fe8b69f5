"""Row 6: how long `xrun --help` and `xrun check` take, over programs that only import what these
need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.lab import lab
from benchmarks.result import Row, interleaved, main, median, spread

XRUN = "import sys\nfrom xrun.cli import main\nsys.exit(main())\n"
"""What pip installs as `xrun`."""
NAMES = ("run", "check", "plan", "drill", "status", "report", "logs", "schema", "init")
CLICK = f"""import click
@click.group()
def main():
    "A program."
for name in {NAMES!r}:
    main.command(name)(lambda: None)
main()
"""
IMPORTS = "import click, pydantic, yaml\n"
BASEMODEL = IMPORTS + "from pydantic import BaseModel\n"
"""What `recipe/base.py` spares `xrun check`, before a single model is built."""
HELP_TARGET, CHECK_TARGET = 1.3, 1.5


def measure(quick: bool) -> Iterator[Row]:
    with lab() as own:
        yield _measure(own.root, rounds=2 if quick else 21)


def _measure(folder: Path, rounds: int) -> Row:
    recipe = folder / "recipes" / "vit.yaml"

    def program(name: str, text: str, *arguments: str) -> Callable[[], float]:
        path = folder / f"{name}.py"
        path.write_text(text)
        return _timed([sys.executable, str(path), *arguments])

    contestants = {
        "click": program("bare", CLICK, "--help"),
        "xrun --help": program("xrun_command", XRUN, "--help"),
        "imports": program("imports", IMPORTS),
        "BaseModel": program("basemodel", BASEMODEL),
        "xrun check": program("xrun_command", XRUN, "check", str(recipe)),
    }
    for name in ("accelerate", "wandb", "sky"):
        path = shutil.which(
            name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        )
        if path:
            contestants[f"{name} --help"] = _timed([path, "--help"])
    seen = interleaved(contestants, rounds)
    helps = [own / bare for own, bare in zip(seen["xrun --help"], seen["click"], strict=True)]
    checks = [own / bare for own, bare in zip(seen["xrun check"], seen["imports"], strict=True)]
    worst, name = max(
        (median(helps) / HELP_TARGET, "help"), (median(checks) / CHECK_TARGET, "check")
    )
    return Row(
        6,
        "start-up over bare programs: the nearer to its target of --help (1.3) and check (1.5), as"
        " a share of it",
        worst,
        1.0,
        "lower",
        {
            n: median(values)
            for n, values in seen.items()
            if n.split()[0] in ("accelerate", "wandb", "sky")
        },
        spread(
            [value / HELP_TARGET for value in helps]
            if name == "help"
            else [value / CHECK_TARGET for value in checks]
        ),
        {
            "help_over_click": median(helps),
            "check_over_imports": median(checks),
            "basemodel_over_imports": median(
                base / bare for base, bare in zip(seen["BaseModel"], seen["imports"], strict=True)
            ),
            **{
                f"{n}, s": median(seen[n])
                for n in ("click", "xrun --help", "imports", "xrun check")
            },
        },
    )


def _timed(command: list[str]) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - began

    return once


if __name__ == "__main__":
    main(measure)
