"""A task that does not fit what the model and the dataset give is refused before a step is trained,
with the shapes and the task that would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.running import Project
from xrun.errors import ComponentError
from xrun.training.objective import Objective
from xrun.training.tasks import IGNORED


class Given(nn.Module):
    """Returns what the test says, as logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.logits


class TinyForTokenClassification(Given):
    """A model that transformers would call so."""


def refused(task: str, model: nn.Module, batch: Any, *, first: bool = True) -> str:
    """The sentence; empty if it is trained on."""
    objective = Objective(model, task)
    objective.doubtful = first
    try:
        objective(batch, 4)
    except ComponentError as error:
        return str(error)
    assert not objective.doubtful
    return ""


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def whole(*shape: int, below: int) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(1))


IDS = whole(4, 9, below=50)
TAGS = whole(4, 9, below=3).index_fill(1, torch.tensor([0]), IGNORED)
"""Of token classification, where -100 stands for what is no word's first token."""


@pytest.mark.parametrize(
    ("task", "logits", "labels", "fits"),
    [
        ("classification", (4,), whole(4, below=2), "`task: multi_label` or `task: regression`"),
        ("classification", (4, 1), some(4), "`task: regression`"),
        ("classification", (4, 3), some(4), ""),
        ("language_modeling", (4, 3), whole(4, 9, below=3), ""),
        ("token_classification", (4, 3), whole(4, 3, below=2), "`task: multi_label`"),
        ("token_classification", (4, 3, 2, 2), whole(4, 2, 2, below=3), "`task: segmentation`"),
        ("regression", (4, 3), whole(4, below=3), "`task: classification`"),
        ("regression", (4, 9, 3), whole(4, 9, below=3), "`task: token_classification`"),
        ("multi_label", (4, 3), whole(4, below=3), "`task: classification`"),
        ("segmentation", (4, 5, 3), some(4, 5, 3), "`task: regression`"),
    ],
)
def test_shapes_that_fit_another_task(
    task: str, logits: tuple[int, ...], labels: Tensor, fits: str
) -> None:
    """In every batch: what was got, and what it fits."""
    batch = {"input_ids": labels, "labels": labels}
    told = refused(task, Given(some(*logits)), batch, first=False)
    if task in ("language_modeling", "segmentation") and "a batch of" in told:
        return
    assert f"its logits are float32 {logits} for labels" in told
    assert fits in told
    assert ("These fit" in told) == bool(fits)


@pytest.mark.parametrize(
    ("task", "logits", "labels", "what", "fits"),
    [
        ("classification", (4, 1), whole(4, below=2), "one logit", "`task: multi_label`"),
        ("classification", (4, 1), torch.arange(4), "one logit", "`task: regression`"),
        ("classification", (4, 3), torch.ones(4, 3), "sum to 3", "`task: multi_label`"),
        ("classification", (4, 3), some(4, 3), "no probabilities", "`task: regression`"),
        ("classification", (4, 3), torch.arange(4), "a label is 3", "-100"),
        ("segmentation", (4, 3, 2, 2), torch.full((4, 2, 2), 255), "a label is 255", "-100"),
        ("token_classification", (4, 9, 50), IDS, "its inputs", "`task: language_modeling`"),
        ("multi_label", (4, 3), whole(4, 3, below=7), "go from 0 to", "`task: regression`"),
        ("language_modeling", (4, 9, 3), TAGS, "labels that count", "`task: token_classification`"),
        ("language_modeling", (4, 9, 50), IDS.roll(-1, 1), "by one already", "Give the inputs"),
    ],
)
def test_values_that_another_task_means(
    task: str, logits: tuple[int, ...], labels: Tensor, what: str, fits: str
) -> None:
    """In the first batch of a run only: a run that has trained on such goes on."""
    batch = {"input_ids": IDS, "labels": labels}
    told = refused(task, Given(some(*logits)), batch)
    assert f"its logits are float32 {logits} for labels" in told
    assert what in told
    assert fits in told
    if what not in ("one logit", "a label is 3", "a label is 255"):
        assert not refused(task, Given(some(*logits)), batch, first=False)


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        ("classification", (4, 3), whole(4, below=3)),
        ("classification", (4, 3), some(4, 3).softmax(1)),
        ("classification", (4, 3), torch.zeros(4, 3)),
        ("classification", (4, 9, 3), TAGS),
        ("language_modeling", (4, 9, 50), IDS),
        ("language_modeling", (4, 9, 50), IDS.index_fill(1, torch.arange(7), IGNORED)),
        ("language_modeling", (4, 9, 50), torch.full((4, 9), IGNORED)),
        ("token_classification", (4, 9, 3), TAGS),
        ("segmentation", (4, 3, 2, 2), whole(4, 2, 2, below=3).to(torch.uint8)),
        ("multi_label", (4, 3), torch.tensor([[0.0, 1.0, float("nan")]] * 4)),
        ("regression", (4, 3), some(4, 3)),
    ],
)
def test_what_a_task_means_is_trained(task: str, logits: tuple[int, ...], labels: Tensor) -> None:
    """Nothing right is refused, with labels that do not count, or none that do."""
    assert not refused(task, Given(some(*logits)), {"input_ids": IDS, "labels": labels})


def test_a_model_for_tokens_is_no_language_model() -> None:
    """Whatever its labels are: transformers' name says it, also inside of another module."""
    model = nn.Sequential(TinyForTokenClassification(some(4, 9, 50)))
    objective = Objective(Given(some(4, 9, 50)), "language_modeling")
    objective.model.inner = model
    objective.doubtful = True
    with pytest.raises(ComponentError, match=r"TinyForTokenClassification.*token_classification"):
        objective({"input_ids": IDS, "labels": IDS}, 4)


TAGGER = """\
from types import SimpleNamespace

from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(40, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.words(input_ids)))


def build():
    return Tagger()
"""
WORDS = """\
import torch


class Words:
    def __init__(self):
        self.ids = torch.randint(0, 40, (24, 7), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        labels = torch.where(torch.arange(7) > 0, self.ids[i] % 3, -100)
        return {"input_ids": self.ids[i], "labels": labels}


def build():
    return {"train": Words(), "val": Words()}
"""


def test_tokens_under_language_modeling_end_before_step_1(tmp_path: Path) -> None:
    """With exit code 2 and the task that fits, which trains; nothing is logged or committed beyond
    step 0."""
    project = Project(tmp_path)
    project.write("models/tagger.py", TAGGER)
    project.write("datasets/words.py", WORDS)
    own = ("model.name=tagger", "dataset.name=words", "train.steps=2", "train.evaluate.metric=loss")
    done = project.attempt(*own, "task=language_modeling")
    assert done.code == 2, done.err
    assert "models/tagger.py" in done.err
    assert "float32 (2, 7, 3) for labels int64 (2, 7)" in done.err
    assert "`task: token_classification`" in done.err
    assert not [point for point in project.run.points() if "train/loss" in point]
    done = project.attempt(*own, "task=token_classification")
    assert done.code == 0, done.err
    assert {"val/accuracy", "val/loss"} <= set(project.run.report().metrics)
