"""Each task with labels trains what a plain torch loop trains, with labels that do not count, an
incomplete last batch, on one process and on two, and through a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from support.running import Project, curve, weights
from xrun.component import load_build
from xrun.data.loader import Fetch
from xrun.data.randomness import INIT, LOOP, seed_generators
from xrun.data.sampler import Sampler

STEPS, GLOBAL, MICRO, SAMPLES = 7, 8, 2, 29
MODEL = """\
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        return self.head(self.words(input_ids))


def build(task: str):
    if task == "token_classification":
        return Tagger()
    if task == "segmentation":
        return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1))
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
"""
DATASET = """\
import torch
from torch.utils.data import default_collate

from xrun.components.datasets.points import spring


class Samples:
    def __init__(self, name, n, task):
        self.name, self.task, self.calls = name, task, 0
        random = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 4, generator=random)
        self.images = torch.randn(n, 2, 5, 4, generator=random)
        self.ids = torch.randint(0, 20, (n, 6), generator=random)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x, image, ids = self.x[i], self.images[i], self.ids[i]
        if self.task == "regression":
            labels = x[:3].double() * 2 + i / 10
            labels[i % 3] = float("nan") if i % 4 else 0.5
            return x, labels
        if self.task == "multi_label":
            labels = (x[1:] > 0.2).long()
            labels[i % 3] = -100 if i % 4 else 1
            return x, labels
        if self.task == "segmentation":
            labels = (image[0] > 0.3).long() + (image[1] > 0.5).long()
            labels[i % 5] = -100
            return image, labels
        labels = ids % 3
        labels[: i % 6] = -100
        return {"input_ids": ids, "labels": labels}

    def collate(self, items):
        self.calls += 1
        spring(self.name, self.calls)
        return default_collate(items)


def build(task: str):
    return {"train": Samples("train", 29, task), "val": Samples("val", 13, task)}
"""
MIOU = "train.evaluate.metrics=[miou]"
TASKS = ("regression", "multi_label", "token_classification", "segmentation")


def loss_and_count(task: str, logits: Any, labels: Any) -> tuple[Any, int]:
    """As somebody would write it: the sum over what is there."""
    if task == "regression":
        there = ~labels.isnan()
        error = (logits - labels.float())[there]
        return (error**2).sum(), int(there.sum())
    there = labels != -100
    if task == "multi_label":
        return functional.binary_cross_entropy_with_logits(
            logits[there], labels[there].float(), reduction="sum"
        ), int(there.sum())
    if task == "token_classification":
        logits = logits.transpose(1, 2)
    return functional.cross_entropy(logits, labels, reduction="sum"), int(there.sum())


def plain(project: Project, task: str) -> tuple[list[float], dict[str, Any]]:
    """A plain torch loop's losses, and the weights after it."""
    split = load_build("datasets", "samples", project.root)(task=task)["train"]
    seed_generators(0, INIT, 0)
    model = load_build("models", "several", project.root)(task=task)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fetch, sampler = Fetch(split, 0), Sampler(SAMPLES, GLOBAL, MICRO, 0)
    losses = []
    for step in range(STEPS):
        pieces = [(piece, fetch[piece][1]) for piece in sampler.step(step, 0, 1)]
        parts = []
        for piece, batch in pieces:
            x, labels = batch.values() if isinstance(batch, dict) else batch
            seed_generators(0, LOOP, step, piece.slot)
            parts.append(loss_and_count(task, model(x), labels))
        optimizer.zero_grad()
        total, count = sum(loss for loss, _ in parts), sum(count for _, count in parts)
        (total / count).backward()
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return losses, model.state_dict()


def overrides(task: str) -> list[str]:
    return [
        f"task={task}",
        f"model={{name: several, args: {{task: {task}}}}}",
        f"dataset={{name: samples, args: {{task: {task}}}}}",
        f"train.steps={STEPS}",
        f"train.global_batch={GLOBAL}",
        f"train.micro_batch={MICRO}",
        "train.optimizer={name: sgd, lr: 0.1}",
        "train.evaluate={every: 3 steps, batch: 4}",
        "checkpoint.every=3 steps",
    ]


def project_in(folder: Path) -> Project:
    project = Project(folder)
    project.write("models/several.py", MODEL)
    project.write("datasets/samples.py", DATASET)
    return project


@pytest.mark.parametrize("task", TASKS)
def test_it_trains_what_a_plain_loop_trains(tmp_path: Path, task: str) -> None:
    """The losses step by step, and the final weights; two processes by an exact reduction have the
    same bits, what is evaluated included."""
    project = project_in(tmp_path)
    losses, state = plain(project, task)
    runs = []
    for processes in (1, 2):
        own = (*overrides(task), "train.reduction=exact")
        done = project.attempt(*own, processes=processes, run=f"tiny-0000000{processes}")
        assert done.code == 0, done.err
        runs.append(project.run)
        assert [point["train/loss"] for point in curve(project.run).values()] == pytest.approx(
            losses, rel=1e-5
        )
        for name, tensor in load_file(project.run.model / "model.safetensors").items():
            assert torch.allclose(tensor, state[name], rtol=1e-5, atol=1e-6), name
    assert curve(runs[0]) == curve(runs[1])
    assert weights(runs[0]) == weights(runs[1])
    evaluated = [
        {name: value for name, value in run.metrics_now().items() if name.startswith("val/")}
        for run in runs
    ]
    assert evaluated[0]
    assert evaluated[0] == evaluated[1]


def test_a_kill_changes_nothing(tmp_path: Path) -> None:
    """Neither weights, nor what was evaluated before and after it."""
    ends = []
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        project = project_in(tmp_path / folder)
        if folder == "killed":
            project.trap("SIGKILL", call=4 * 5, committed=3)
        codes = [project.attempt(*overrides("segmentation"), MIOU).code for _ in range(2)]
        assert codes == ([75, 0] if folder == "killed" else [0, 0])
        evaluated = [
            {name: value for name, value in point.items() if name.startswith(("val/", "step"))}
            for point in project.run.points()
            if "val/miou" in point
        ]
        ends.append((weights(project.run), curve(project.run), evaluated))
    assert ends[0] == ends[1]
    assert [point["step"] for point in ends[0][2]] == [3, 6, 7]
