"""What a model with a loss of its own returns beside it is in the points of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.running import Project, curve, weights
from xrun.training.scalars import Scalars
from xrun.training.world import World

MODEL = """\
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 2)

    def forward(self, x, y):
        logits = self.line(x)
        told = {"loss": nn.functional.cross_entropy(logits, y), "logits": logits}
        told |= {"first": x[:, 0].mean(), "ones": y.float().mean(), "kind": torch.tensor(3)}
        return told | ({"positive": x[x > 0].sum() / len(x)} if y[0] else {})


def build():
    return Own()
"""
OWN = ("task=model", "model.name=own", "train.steps=6", "train.evaluate.metric=loss")


def trained(folder: Path, *overrides: str, **options: Any) -> Project:
    project = Project(folder)
    project.write("models/own.py", MODEL)
    done = project.attempt(*OWN, *overrides, **options)
    assert done.code == 0, done.err
    return project


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return trained(tmp_path_factory.mktemp("one"))


def test_its_scalars_are_logged_as_means_over_the_global_batch(one: Project) -> None:
    """Each by its name, as the samples say that the step was trained on; what only some
    micro-batches have is the mean over those."""
    points = curve(one.run)
    assert all({"train/first", "train/ones", "train/kind"} <= set(p) for p in points.values())
    assert all(point["train/kind"] == 3 for point in points.values())
    eighths = [point["train/ones"] * 8 for point in points.values()]
    assert all(each == int(each) for each in eighths)
    assert any("train/positive" in point for point in points.values())
    assert not any("train/logits" in point for point in points.values())


def test_any_number_of_processes_logs_the_same(one: Project, tmp_path: Path) -> None:
    """Also where one of them has a scalar that the other one has not."""
    two, own = trained(tmp_path, processes=2), ("first", "ones", "kind", "positive")
    for step, point in curve(two.run).items():
        for name in own:
            assert point.get(f"train/{name}") == curve(one.run)[step].get(f"train/{name}")


def test_only_logged_steps_have_them(one: Project, tmp_path: Path) -> None:
    """And nothing of the training changes by that."""
    seldom = trained(tmp_path, "train.log_every=4")
    assert weights(seldom.run) == weights(one.run)
    assert curve(seldom.run) == {step: curve(one.run)[step] for step in (4, 6)}


def test_a_mean_over_samples_of_unequal_batches() -> None:
    """Sums by the objective, so that a short batch weighs less; what is infinite stays so."""
    scalars, loss = Scalars(), torch.zeros(())
    scalars.add(4, {"loss": loss, "a": torch.tensor(8.0), "b": torch.tensor(float("inf"))})
    scalars.add(1, {"loss": loss, "a": torch.tensor(7, dtype=torch.int64)})
    taken = scalars.take()
    assert {tensor.dtype for tensor in taken} == {torch.float32}
    means = scalars.means([float(each) for each in taken], World())
    assert means == {"a": 3.0, "b": float("inf")}
    assert scalars.take() == []
