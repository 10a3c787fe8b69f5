"""What is refused when the parts are put together, before the first step."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support.running import DATASET, Project, curve, weights

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


COPYING = """
from torch import nn


class Copying(nn.Linear):
    def _save_to_state_dict(self, state, prefix, keep_vars):
        super()._save_to_state_dict(state, prefix, keep_vars)
        {what}


def build(width: int = 8):
    return Copying(4, 3)
"""


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("state[prefix + 'weight'] = self.weight.detach().clone()", "weight"),
        ("del state[prefix + 'bias']", "bias"),
        ("state[prefix + 'norm'] = self.weight.norm().detach()", "norm"),
    ],
)
def test_a_state_dict_that_is_not_the_model_s_own_is_refused(
    tmp_path: Path, what: str, name: str
) -> None:
    """A state_dict with copies, or without a trainable parameter, cannot be restored: said before
    the first step, with the tensor's name."""
    project = Project(tmp_path)
    project.write("models/line.py", COPYING.format(what=what))
    done = project.attempt()
    assert done.code == 2, done.err
    assert f"models/line.py: the model's state_dict leaves out {name}, or holds a copy" in done.err
    assert "Traceback" not in done.err


SPARSE = """
from torch import nn


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(4, 3, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) + self.table(x.argmax(1))


def build(width: int = 8):
    return Words()
"""
SGD = ["train.optimizer={name: sgd, lr: 0.1}", "train.steps=6"]


def test_sparse_gradients_on_several_processes(tmp_path: Path) -> None:
    """Summed in a tree they are right to the last bit on any number of processes; where torch would
    sum them wrongly they are refused by the module's name."""
    ends = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        project = Project(tmp_path / str(processes))
        project.write("models/line.py", SPARSE)
        done = project.attempt(*SGD, "train.reduction=exact", processes=processes)
        assert done.code == 0, done.err
        ends.append((weights(project.run), curve(project.run)))
    assert ends[0] == ends[1]
    done = project.attempt(SGD[0], "train.steps=7", processes=2)
    assert done.code == 6, done.err
    assert "table: the gradients of Embedding(sparse=True) cannot be summed" in done.err
