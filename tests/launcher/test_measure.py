"""`xrun evaluate`: the numbers of a finished training, measured again by a process of their own.
Covers `xrun.training.measured`."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from support.running import Project
from xrun.errors import CheckpointError, ComponentError, LaunchError
from xrun.launcher.measure import Target, is_of_other_code, target_of
from xrun.run.checkpoint import Checkpoint
from xrun.run.folder import RunFolder
from xrun.training.measured import chosen, split_named

DATASET = """\
import torch


class Points:
    def __init__(self, n):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.x[i].sum() > 0)


def build():
    print("a component prints")
    return {"train": Points(100), "val": Points(30), "test": Points(25), "none": None}
"""
KEPT = tuple(
    Checkpoint(step, numbers=MappingProxyType({"best": {"step": 5, "value": 1.0}}))
    for step in (5, 15, 20)
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished run with an evaluation at every fifth step and checkpoints at 15 and 20."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.write("datasets/points.py", DATASET)
    for steps in (15, 20):
        done = made.attempt("train.evaluate={every: 5 steps, batch: 7}", f"train.steps={steps}")
        assert done.code == 0, done.err
    return made


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_has_the_numbers_that_training_has_logged(project: Project) -> None:
    """On `val`, to the last bit; and nothing in the run's folder is another one."""
    before = everything(project.run.path)
    done = project.xrun("evaluate", project.run.run, "--split", "val", "--step", "15", "--json")
    assert done.code == 0, done.err
    (logged,) = (
        {name.removeprefix("val/"): value for name, value in point.items() if "val/" in name}
        for point in project.run.points()
        if point["step"] == 15 and "val/loss" in point
    )
    assert json.loads(done.out) == {
        "run": project.run.run,
        "step": 15,
        "of": "checkpoint",
        "split": "val",
        "samples": 30,
        "metrics": logged,
    }
    assert everything(project.run.path) == before


def test_an_exported_model_is_measured_on_any_split(project: Project) -> None:
    """As a plain forward pass with the weights says; a table for people."""
    done = project.xrun("evaluate", str(project.run.model))
    assert done.code == 0, done.err
    model = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 3)
    ).eval()
    model.load_state_dict(load_file(project.run.model / "model.safetensors"))
    x = torch.randn(25, 4, generator=torch.Generator().manual_seed(25))
    labels = (x.sum(1) > 0).long()
    with torch.no_grad():
        logits = model(x)
    right = float((logits.argmax(1) == labels).float().mean())
    loss = float(nn.functional.cross_entropy(logits, labels))
    head, *rows = done.out.splitlines()
    assert head == f"{project.run.run}, model of step 20: 25 samples of test"
    assert [row.split()[0] for row in rows] == ["accuracy", "loss"]
    assert [float(row.split()[1]) for row in rows] == pytest.approx([right, loss], rel=1e-5)


def test_what_there_is_not_is_said_with_what_there_is(project: Project) -> None:
    done = project.xrun("evaluate", project.run.run, "--split", "tset")
    assert done.code == 2
    assert done.out == ""
    said = "there is no split 'tset'; build() gives train, val, test. Name one that is there:"
    assert said in done.err
    assert "Traceback" not in done.err
    assert "note" not in done.err


def test_other_code_is_noticed(project: Project) -> None:
    """Numbers of weights by code that has been edited are not the run's."""
    plan = project.run.plan()
    assert not is_of_other_code(plan)
    project.write("datasets/points.py", DATASET.replace("Points(25)", "Points(26)"))
    assert is_of_other_code(plan)
    project.write("datasets/points.py", DATASET)


def test_a_target_is_a_run_or_its_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    run = project.run.run
    assert target_of(run) == Target(RunFolder(project.home / run))
    assert target_of(f"runs/{run}/model") == Target(RunFolder(project.home / run), of_model=True)
    evaluated = ["train.evaluate={every: 5 steps, batch: 7}"]  # changes no mathematics
    assert target_of("recipes/tiny.yaml", evaluated) == target_of(run)
    with pytest.raises(LaunchError, match=r"tiny\.yaml has no run here: it would be tiny-"):
        target_of("recipes/tiny.yaml", ["train.seed=7"])
    with pytest.raises(LaunchError, match="There is no run tiny-00000000"):
        target_of("tiny-00000000")
    with pytest.raises(LaunchError, match="is not a run's `model` folder"):
        target_of("models")


def test_which_checkpoint_is_meant() -> None:
    """The newest, the best or one by its step; of those that are kept."""
    steps = [chosen(KEPT, step, "r").step for step in (None, "best", 15)]
    assert steps == [20, 5, 15]
    with pytest.raises(CheckpointError, match="keeps no checkpoint of step 7; there are 5, 15, 20"):
        chosen(KEPT, 7, "r")
    with pytest.raises(CheckpointError, match="nothing was evaluated"):
        chosen([Checkpoint(5)], "best", "r")


@pytest.mark.parametrize(("split", "what"), [([], "is empty"), (None, "there is no split 'val'")])
def test_a_split_that_cannot_be_measured(split: list[int] | None, what: str) -> None:
    with pytest.raises(ComponentError, match=what):
        split_named({"train": [1], "val": split}, "val", "points")
