"""Batches of every kind: real attempts end in the weights of a plain torch loop over the same
samples, or are refused before the first step.

Beside test_contract.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from support.running import Project, curve, record
from xrun import component
from xrun.data.sampler import Sampler

STEPS, GLOBAL, MICRO, SAMPLES, VAL = 3, 10, 4, 25, 7
LR = 0.5

RECIPE = f"""\
name: kinds
model: {{name: flexible, args: {{kind: KIND}}}}
dataset: {{name: kinds, args: {{kind: KIND}}}}
task: TASK
train:
  steps: {STEPS}
  global_batch: {GLOBAL}
  micro_batch: {MICRO // 2}
  precision: fp32
  optimizer: {{name: sgd, lr: {LR}, weight_decay: 0.0}}
  schedule: {{name: constant, warmup_steps: 0}}
checkpoint: {{every: 1 steps}}
"""

DATASET = '''
from collections import namedtuple
from dataclasses import dataclass

import torch

Pair = namedtuple("Pair", "x y")


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


class Rows:
    """Sample i: some rows of 4 numbers (how many depends on i) and a class for each row."""

    def __init__(self, first, count, kind):
        self.first, self.count, self.kind = first, count, kind

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(self.first + i)
        rows = torch.randn(2 + (self.first + i) % 4, 4, generator=g)
        return rows, torch.randint(3, (len(rows),), generator=g)

    def collate(self, items):
        return BATCHES[self.kind](items)


def plain(items):
    x, y = torch.stack([x[0] for x, _ in items]), torch.stack([y[0] for _, y in items])
    return x, y


def flat(items):
    lengths = torch.tensor([len(x) for x, _ in items])
    return {
        "x": torch.cat([x for x, _ in items]),
        "offsets": lengths.cumsum(0) - lengths,
        "labels": torch.stack([y[0] for _, y in items]),
    }


def nodes(items):
    return {"x": torch.cat([x for x, _ in items]), "labels": torch.cat([y for _, y in items])}


def padded(items):
    longest = max(len(x) for x, _ in items)
    x, y = torch.zeros(len(items), longest, 4), torch.full((len(items), longest), -100)
    for row, (a, b) in enumerate(items):
        x[row, : len(a)], y[row, : len(b)] = a, b
    return {"x": x, "labels": y}


def ignored(items):
    x, y = plain(items)
    return x, torch.where(x[:, 0] > 0, y, -100)


def soft(items):
    x, y = plain(items)
    return x, torch.nn.functional.one_hot(y, 3) * 0.7 + 0.1


def own(change):
    return lambda items: change(*plain(items), [f"row {n}" for n in range(len(items))])


BATCHES = {
    "pair": plain, "flat": flat, "nodes": nodes, "padded": padded, "image": padded,
    "ignored": ignored, "soft": soft,
    "three": own(lambda x, y, names: (x, y, names)),
    "named tuple": own(lambda x, y, names: Pair(x, y)),
    "names first": own(lambda x, y, names: {"names": names, "x": x, "y": y}),
    "None inside": own(lambda x, y, names: {"mask": None, "x": x, "y": y}),
    "scalar first": own(lambda x, y, names: {"t": torch.tensor(0.5), "x": x, "y": y}),
    "one per batch first": own(lambda x, y, names: {"epoch": torch.ones(1), "x": x, "y": y}),
    "nested": own(lambda x, y, names: {"inputs": {"x": x}, "target": {"y": y}}),
    "list of tensors": own(lambda x, y, names: {"x": list(x), "y": y}),
    "numpy": own(lambda x, y, names: {"x": x.numpy(), "y": y.numpy()}),
    "tensor": own(lambda x, y, names: torch.cat([x, y[:, None].float()], 1)),
    "dataclass": own(lambda x, y, names: Batch(x, y)),
    "packed first": lambda items: {"text": torch.zeros(99), **nodes(items)},
}


def build(kind: str):
    return {"train": Rows(0, 25, kind), "val": Rows(1000, 7, kind)}
'''

MODEL = '''
import os
from pathlib import Path

import torch
from torch import nn


class Flexible(nn.Module):
    """Says that memory is lacking where a file tells for how many samples it is enough."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Linear(4, 3), kind

    def forward(self, x, y=None, names=None, offsets=None, **more):
        if hasattr(x, "y"):
            x, y = x.x, x.y
        if self.kind == "tensor":
            x, y = x[:, :4], x[:, 4].long()
        if self.kind in ("list of tensors",):
            x = torch.stack(x)
        limit = Path(__file__).parent.parent / "memory"
        size = len(x) if offsets is None else len(offsets)
        if self.training and limit.exists() and size > int(limit.read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if offsets is not None:
            sizes = torch.diff(offsets, append=torch.tensor([len(x)]))
            group = torch.repeat_interleave(torch.arange(len(offsets)), sizes)
            x = torch.zeros(len(offsets), 4).index_add(0, group, x)
        logits = self.net(x)
        if self.kind == "image":
            return logits.movedim(-1, 1)
        if y is None:
            return logits
        loss = nn.functional.cross_entropy(logits, y)
        return {"loss": loss, "right": (logits.argmax(-1) == y).float().mean()}


class Nested(Flexible):
    def forward(self, inputs, target):
        return super().forward(inputs["x"], target["y"])


class Packed(Flexible):
    def forward(self, text, x, labels):
        return super().forward(x, labels)


def build(kind: str):
    torch.manual_seed(7)
    return {"nested": Nested, "packed first": Packed}.get(kind, Flexible)(kind)
'''
OWN = [
    "three", "named tuple", "names first", "None inside", "scalar first", "one per batch first",
    "nested", "list of tensors", "numpy", "tensor", "dataclass",
]  # fmt: skip
LABELLED = ["pair", "flat", "nodes", "padded", "image", "ignored", "soft"]


def made(root: Path, kind: str, task: str, micro: int = MICRO // 2) -> Project:
    text = RECIPE.replace("KIND", kind).replace("TASK", task)
    project = Project(root, text.replace(f"micro_batch: {MICRO // 2}", f"micro_batch: {micro}"))
    project.write("models/flexible.py", MODEL)
    project.write("datasets/kinds.py", DATASET)
    project.recipe = project.write("recipes/tiny.yaml", project.recipe.read_text())
    return project


def built(project: Project, kind: str) -> tuple[nn.Module, Any]:
    """The project's own model and its splits, as its components make them."""
    found: dict[str, Any] = {}
    for name in ("models/flexible.py", "datasets/kinds.py"):
        scope: dict[str, Any] = {"__file__": str(project.root / name), "__name__": "component"}
        exec(compile((project.root / name).read_text(), name, "exec"), scope)  # noqa: S102  the test's own
        found[name] = scope["build"](kind)
    return found["models/flexible.py"], found["datasets/kinds.py"]


def plain_loss(model: nn.Module, items: list[Any], kind: str, scope: Any) -> Tensor:
    """The loss of these samples in one batch, as a person would write it in torch."""
    batch = scope.collate(items)
    if kind in LABELLED:
        if isinstance(batch, dict):
            logits = model(**{name: value for name, value in batch.items() if name != "labels"})
            labels = batch["labels"]
        else:
            logits, labels = model(batch[0]), batch[1]
        if kind == "padded":
            logits, labels = logits.flatten(0, 1), labels.flatten()
        return functional.cross_entropy(logits, labels)
    if kind == "numpy":
        batch = {name: torch.from_numpy(value) for name, value in batch.items()}
    if isinstance(batch, dict):
        return model(**batch)["loss"]
    return (model(*batch) if isinstance(batch, tuple) else model(batch))["loss"]


def trained(project: Project, kind: str) -> tuple[dict[str, Tensor], list[float], float]:
    """A plain torch loop over whole batches of the same samples: its weights, the loss of each
    step, and the loss on val."""
    model, splits = built(project, kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sampler, losses = Sampler(SAMPLES, GLOBAL, MICRO // 2, seed=0), []
    for step in range(STEPS):
        pieces = sampler.step(step, 0, 1)
        items = [splits["train"][int(i)] for piece in pieces for i in piece.indices]
        loss = plain_loss(model, items, kind, splits["train"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        items = [splits["val"][i] for i in range(VAL)]
        return (
            model.state_dict(),
            losses,
            float(plain_loss(model.eval(), items, kind, splits["val"])),
        )


def check(project: Project, kind: str) -> None:
    """The run's weights, losses and evaluation are those of the plain loop."""
    weights, losses, val = trained(project, kind)
    own = load_file(project.run.model / "model.safetensors")
    for name, tensor in weights.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-4, atol=1e-6)
    points = curve(project.run)
    assert [points[step + 1]["train/loss"] for step in range(STEPS)] == pytest.approx(losses)
    assert project.run.metrics_now()["val/loss"] == pytest.approx(val, rel=1e-5)


@pytest.mark.parametrize("kind", OWN)
def test_a_model_with_a_loss_of_its_own_trains_as_in_a_plain_loop(
    tmp_path: Path, kind: str
) -> None:
    """Whatever its batch is: the same gradients, to rounding, from micro-batches of 2 as from the
    whole batch of 10, the epoch's short last one included."""
    project = made(tmp_path, kind, "model")
    done = project.attempt()
    assert done.code == 0, done.err
    check(project, kind)


@pytest.mark.parametrize("kind", LABELLED)
def test_classification_is_a_mean_over_labels(tmp_path: Path, kind: str) -> None:
    """Flat texts, nodes of graphs, tokens, pixels, ignored labels, probabilities: torch's cross
    entropy over the global batch."""
    project = made(tmp_path, kind, "classification")
    done = project.attempt()
    assert done.code == 0, done.err
    check(project, kind)


@pytest.mark.parametrize("kind", ["flat", "padded"])
def test_two_processes_count_together(tmp_path: Path, kind: str) -> None:
    """What each of them counts is not half of all: the weights are the plain loop's."""
    project = made(tmp_path, kind, "classification", micro=1)
    done = project.attempt(processes=2)
    assert done.code == 0, done.err
    check(project, kind)


@pytest.mark.parametrize(
    ("kind", "task"), [("flat", "classification"), ("list of tensors", "model")]
)
def test_what_cannot_be_cut_is_collated_in_parts(tmp_path: Path, kind: str, task: str) -> None:
    """Where only two samples fit into memory, a flat batch's parts are made by its collate, and the
    weights are the same to rounding."""
    project = made(tmp_path, kind, task, micro=5)
    project.write("memory", "2")
    done = project.attempt()
    assert done.code == 0, done.err
    assert record(project.run)["attempts"][-1]["parts"] == 4
    (project.root / "memory").unlink()
    check(project, kind)


def test_accuracy_is_over_the_labels_that_count(tmp_path: Path) -> None:
    """Padding is neither right nor wrong."""
    project = made(tmp_path, "padded", "classification")
    assert project.attempt().code == 0
    model, splits = built(project, "padded")
    model.load_state_dict(load_file(project.run.model / "model.safetensors"))
    right = total = 0
    for index in range(VAL):
        rows, labels = splits["val"][index]
        right += int((model.eval()(rows).argmax(-1) == labels).sum())
        total += len(labels)
    assert project.run.metrics_now()["val/accuracy"] == pytest.approx(right / total)


def test_a_first_tensor_of_any_length_weighs_nothing(tmp_path: Path) -> None:
    """A batch whose first tensor has 99 entries for 2 samples: the loss is the mean of the
    micro-batches' means, weighted by their samples."""
    project = made(tmp_path, "packed first", "model")
    done = project.attempt("train.steps=1")
    assert done.code == 0, done.err
    model, splits = built(project, "packed first")
    pieces = Sampler(SAMPLES, GLOBAL, MICRO // 2, seed=0).step(0, 0, 1)
    losses = []
    for piece in pieces:
        items = [splits["train"][int(i)] for i in piece.indices]
        losses.append(float(model(**splits["train"].collate(items))["loss"].detach()))
    assert curve(project.run)[1]["train/loss"] == pytest.approx(sum(losses) / len(losses))


def test_components_are_found(tmp_path: Path) -> None:
    """The oracle runs the files that the attempt runs."""
    project = made(tmp_path, "pair", "model")
    assert component.find("models", "flexible", project.root).read_text() == MODEL
