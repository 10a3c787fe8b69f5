"""What the driver of this machine's GPUs says of them: nvidia-smi, which every NVIDIA driver brings
along."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

_ASK = ("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader")
_SECONDS = 60.0
"""A driver that keeps no state starts all its GPUs for the first question."""


@dataclass(frozen=True)
class Driver:
    """The driver's version and the GPUs that it knows, by name; `trouble` is what was said
    instead."""

    version: str = ""
    gpus: tuple[str, ...] = ()
    trouble: str = ""

    def __str__(self) -> str:
        if not self.gpus:
            return self.trouble
        kinds = ", ".join(f"{self.gpus.count(name)} x {name}" for name in dict.fromkeys(self.gpus))
        return f"driver {self.version} with {kinds}"


def read_driver(code: int, output: str) -> Driver:
    """What nvidia-smi has answered, with this exit code: a line per GPU, or a sentence."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    rows = [line.split(", ", 1) for line in lines if line[0].isdigit()]
    if code or not rows:
        said = lines[0] if lines else "nothing"
        return Driver(trouble=f"nvidia-smi ended with {code} and said: {said}")
    return Driver(rows[0][0], tuple(name for _, *names in rows for name in names))


def ask_driver() -> Driver:
    """What nvidia-smi says now; it is asked only where something is wrong already."""
    try:
        done = subprocess.run(
            _ASK,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        return Driver(trouble="no driver: this machine has no nvidia-smi")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(trouble=f"no driver: nvidia-smi does not answer ({error})")
    return read_driver(done.returncode, done.stdout)
