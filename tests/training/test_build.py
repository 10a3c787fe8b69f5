"""What is refused when the parts are put together, before the first step."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support.running import DATASET, Project

# A tensor that has a size and no memory, of half of what /dev/shm has free: its workers keep three.
HUGE = """
    def collate(self, items):
        status = os.statvfs("/dev/shm")
        free = status.f_bavail * status.f_frsize
        return torch.empty(free // {share}, dtype=torch.uint8, device="meta"), torch.zeros(2)
"""


def project_with(folder: Path, split: str, share: int) -> Project:
    """A project whose batches of this split are huge."""
    project = Project(folder)
    huge = f"class Huge(Points):{HUGE.format(share=share)}"
    built = DATASET.replace("\n\ndef build(", f"\n\n{huge}\n\ndef build(")
    project.write("datasets/points.py", built.replace(f'"{split}": Points(', f'"{split}": Huge('))
    return project


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no shared memory to run out of")
@pytest.mark.parametrize(
    ("split", "share", "processes", "workers"),
    [("val", 2, 1, "1 workers"), ("train", 4, 2, "2 x 1 workers")],
)
def test_workers_that_shared_memory_cannot_hold_are_refused(
    tmp_path: Path, split: str, share: int, processes: int, workers: str
) -> None:
    """Evaluation's batches count beside training's, and so do those of all ranks of the node: three
    quarters of the memory are enough for one of two ranks."""
    done = project_with(tmp_path, split, share).attempt("train.num_workers=1", processes=processes)
    assert done.code == 6, done.err
    said = re.search(
        r"(\S.*workers) need about (\d+) MB of shared memory, \S+ has (\d+) MB", done.err
    )
    assert said, done.err
    assert said[1].endswith(workers)
    assert int(said[2]) / int(said[3]) == pytest.approx(1.5, rel=0.02)
