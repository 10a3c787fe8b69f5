"""A sharded run that goes on builds no first weights: real attempts, compared to the last bit with
attempts that build them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.running import Project, curve, record, weights

MODEL = """\
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.own = nn.Parameter(torch.randn(3, 4).t(), requires_grad=False)
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.norm, self.one, self.other = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.register_buffer("first", self.own[0] * 2)
        self.register_buffer("places", torch.arange(3.0), persistent=False)
        with (HERE / "built").open("a") as told:
            told.write("empty " if self.own.is_meta else "whole ")
        if (HERE / "asking").exists():
            self.own.max().item()

    def forward(self, x):
        picture = x.reshape(-1, 2, 2, 1).expand(-1, -1, -1, 2)
        for block in self.blocks:
            x = x + block(x)
        x = self.other(self.one(self.norm(x)).tanh())
        return x @ self.own + self.conv(picture).flatten(1) + self.first + self.places


def build():
    return Whole()
"""
DRAWN = {
    "attribute": "self.noise = torch.randn(3)",
    "buffer": 'self.register_buffer("noise", torch.randn(3), persistent=False)',
    "generator": "self.generator = torch.Generator()"
    "; nn.init.normal_(self.line.weight, generator=self.generator)"
    "; self.noise = torch.ones(3)",
}
"""What a module may keep of its random numbers, besides parameters."""
DRAWING = """\
import torch
from torch import nn


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        KEPT

    def forward(self, x):
        return self.line(x) + self.noise


def build():
    return Drawn()
"""
SHARDED = ("train.sharding=fsdp", "checkpoint.every=3 steps")
FULL = "its first weights are built, to be replaced by the checkpoint's"


def built(project: Project) -> list[str]:
    """How the model was built since somebody asked last, by each process and then for the
    export."""
    path = project.root / "models" / "built"
    told = path.read_text().split()
    path.unlink()
    return told


def test_restored_without_first_weights_it_has_the_same_bits(tmp_path: Path) -> None:
    """On 4, 2 and 1 processes, with buffers, tied, transposed and frozen weights and a moving
    average: every process builds the model without values, and all that follows is as where it was
    built with them."""
    sizes = {3: 4, 6: 4, 9: 2, 12: 1, 15: 4}
    projects = {}
    for kind in ("empty", "whole"):
        project = projects[kind] = Project(tmp_path / kind)
        project.write("models/whole.py", MODEL)
        if kind == "whole":
            project.write("models/asking", "")
        for steps, size in sizes.items():
            more = ("model.name=whole", "train.ema=0.5", f"train.steps={steps}")
            done = project.attempt(*SHARDED, *more, processes=size)
            assert done.code == 0, done.err
            restored, told = steps > 3, built(project)
            if kind == "whole":  # by each process, which has tried it without
                assert (told.count("whole"), done.err.count(FULL)) == (size + 1, restored)
            else:  # and for the export
                assert told.count("whole") == (1 if restored else 2)
                assert told.count("empty") == (size if restored else size - 1)
                assert FULL not in done.err
    runs = [project.run for project in projects.values()]
    assert curve(runs[0]) == curve(runs[1])
    assert weights(runs[0]) == weights(runs[1])
    seen = {attempt["built"] for run in runs for attempt in record(run)["attempts"]}
    assert len(seen) == 1, "the digest is that of a model with its values"


@pytest.mark.parametrize("kept", list(DRAWN))
@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_drawn_besides_parameters_is_drawn_again(
    tmp_path: Path, kept: str, processes: int
) -> None:
    """A module that keeps random numbers, or a generator of them, is built with its first weights
    in each life, which is said once; a run in three lives has the bits of one that nothing has
    stopped."""
    whole, parts = (Project(tmp_path / name) for name in ("whole", "parts"))
    for project, lives in ((whole, (9,)), (parts, (3, 6, 9))):
        project.write("models/drawn.py", DRAWING.replace("KEPT", DRAWN[kept]))
        for steps in lives:
            more = ("model.name=drawn", f"train.steps={steps}")
            done = project.attempt(*SHARDED, *more, processes=processes)
            assert done.code == 0, done.err
            assert done.err.count(FULL) == (steps > lives[0])
    assert curve(whole.run) == curve(parts.run)
    assert weights(whole.run) == weights(parts.run)


def test_what_a_run_does_not_know_of_its_model_it_builds_once(tmp_path: Path) -> None:
    """A record that does not say what the model was, of an older xrun or of a run that was not
    sharded: the attempt builds it with values, and says so to the next one."""
    project = Project(tmp_path)
    project.write("models/whole.py", MODEL)
    for steps, more, expected in ((3, SHARDED[1:], 1), (6, SHARDED, 2), (9, SHARDED, 1)):
        done = project.attempt(*more, "model.name=whole", f"train.steps={steps}")
        assert done.code == 0, done.err
        assert built(project).count("whole") == expected
    assert len(record(project.run)["attempts"]) == 3
