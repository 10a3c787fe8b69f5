"""Real processes that compute together, where a test's own file is the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .paths import WITH_SUPPORT


def run_ranks(program: str, folder: Path, size: int) -> None:
    """Run `program FOLDER RANK` for each rank below `size`, all at once, until they have ended
    well."""
    environment = os.environ | {"PYTHONPATH": WITH_SUPPORT, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, program, str(folder), str(rank)], env=environment)
        for rank in range(size)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0] * size
