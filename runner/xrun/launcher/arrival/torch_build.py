"""Print the builds of torch that this machine's GPUs can use, the newest first (`cu130 cu126`);
nothing on a machine without. Exit 75 where GPUs were rented and no build serves them.

Runs on a machine that may have nothing but Python, so it imports the standard library only.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Build(NamedTuple):
    """A build of the pinned torch: the oldest driver that runs it, and by the kind of processor the
    first and the last compute capability that it is used for."""

    name: str
    driver: tuple[int, ...]
    capabilities: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]


LATER = (99, 0)
BUILDS = (
    Build("cu130", (580,), {"x86_64": ((7, 5), LATER), "aarch64": ((8, 0), LATER)}),
    Build("cu126", (525, 60, 13), {"x86_64": ((7, 5), (9, 0)), "aarch64": ((8, 0), (9, 0))}),
)
"""The stable builds of torch 2.13, from docs/decisions/0026-builds-of-torch.md: cu130 has PTX for
what is newer, cu126 has not, and what is older than 7.5 is refused by `xrun check`."""
ASK = ("nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader")
RENTED = ("SKYPILOT_SETUP_NUM_GPUS_PER_NODE", "SKYPILOT_NUM_GPUS_PER_NODE")


def number(text: str) -> tuple[int, ...]:
    """`550.54.15` as numbers."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def builds_for(driver: str, capabilities: Sequence[str], processor: str) -> list[str]:
    """The builds that such a driver runs and that serve each of the GPUs, the newest first."""
    found = []
    for build in BUILDS:
        first, last = build.capabilities.get(processor, (LATER, LATER))
        serves = all(first <= number(each) <= last for each in capabilities)
        if number(driver) >= build.driver and serves:
            found.append(build.name)
    return found


def answer() -> tuple[list[str], str]:
    """The builds of this machine, or why there are none."""
    try:
        done = subprocess.run(
            ASK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi does not run ({error})"
    said = done.stdout.decode(errors="replace").strip().splitlines() or [""]
    rows = [line.split(", ") for line in said if line[:1].isdigit() and ", " in line]
    if done.returncode or not rows:
        return [], f"nvidia-smi ended with {done.returncode} and said: {said[0]}"
    driver, capabilities = rows[0][0], sorted({row[1] for row in rows})
    kind = f"driver {driver}, compute capability {' and '.join(capabilities)}"
    names = builds_for(driver, capabilities, platform.machine())
    return names, f"no build of torch serves them ({kind}, {platform.machine()})"


def main(environ: Mapping[str, str]) -> int:
    """Print the answer; the exit code."""
    names, trouble = answer()
    rented = any(float(environ.get(name) or 0) for name in RENTED)
    if rented and not names:
        what = f"xrun: this machine was rented for its GPUs, and {trouble}."
        print(what, "The job goes to another machine.", file=sys.stderr)
        return 75
    print(*names)
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
