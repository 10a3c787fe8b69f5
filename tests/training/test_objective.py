"""The objective: sums and counts of the three tasks, against plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from xrun.errors import ComponentError
from xrun.training.objective import Objective, means
from xrun.training.tasks import IGNORED


class Logits(nn.Module):
    """Gives back its input as logits, wrapped as transformers do."""

    def __init__(self, wrap: bool = False) -> None:
        super().__init__()
        self.wrap = wrap
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor) -> Any:
        logits = input_ids * self.weight
        return SimpleNamespace(logits=logits) if self.wrap else logits


class OwnLoss(nn.Module):
    """A model of the task `model`: means over the batch, and something that is no scalar."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.output(x)


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_classification_sums_over_samples() -> None:
    """The loss is the sum of the samples' cross entropies and the count is their number."""
    x, labels = logits(5, 3), torch.tensor([0, 1, 2, 1, 0])
    objective = Objective(Logits(), "classification")
    alone = sum(float(-x[i].log_softmax(-1)[labels[i]]) for i in range(5))
    assert objective((x, labels))["loss"].item() == pytest.approx(alone, rel=1e-6)
    assert objective.count((x, labels), 5) == 5


@pytest.mark.parametrize("wrap", [False, True])
def test_a_dict_and_a_pair_are_the_same_batch(wrap: bool) -> None:
    """A pair (inputs, labels) and a dict with `labels` give the same loss, from a tensor and from
    `.logits`."""
    x, labels = logits(5, 3), torch.tensor([0, 1, 2, 1, 0])
    objective = Objective(Logits(wrap), "classification")
    pair, named = (x, labels), {"input_ids": x, "labels": labels}
    assert torch.equal(objective(pair)["loss"], objective(named)["loss"])
    assert objective.count(pair, 5) == objective.count(named, 5) == 5


def test_accuracy_is_counted_in_evaluation_only() -> None:
    """In evaluation the right answers are counted; in training nothing but the loss is computed."""
    x, labels = torch.eye(4), torch.tensor([0, 1, 3, 3])
    objective = Objective(Logits(), "classification")
    assert set(objective((x, labels))) == {"loss"}
    assert int(objective.eval()((x, labels))["accuracy"]) == 3


def test_an_ignored_label_adds_nothing() -> None:
    """A sample with the label -100 adds neither loss nor gradient, and does not count."""
    x, labels = logits(3, 4).requires_grad_(), torch.tensor([1, IGNORED, 2])
    objective = Objective(Logits(), "classification")
    loss = objective((x, labels))["loss"]
    loss.backward()
    assert objective.count((x, labels), 3) == 2
    assert loss.item() == pytest.approx(
        functional.cross_entropy(x[[0, 2]], torch.tensor([1, 2]), reduction="sum").item()
    )
    assert x.grad is not None
    assert not x.grad[1].any()


def test_a_language_model_predicts_the_next_token() -> None:
    """The logits at t are compared with the label at t + 1; ignored labels and the first one count
    nothing."""
    x = logits(2, 4, 7)
    labels = torch.tensor([[3, 1, IGNORED, 2], [IGNORED, 5, 6, IGNORED]])
    objective = Objective(Logits(), "language_modeling")
    batch = {"input_ids": x, "labels": labels}
    predicted = [(0, 0, 1), (0, 2, 2), (1, 0, 5), (1, 1, 6)]
    expected = sum(float(-x[row, at].log_softmax(-1)[token]) for row, at, token in predicted)
    assert objective(batch)["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert objective.count(batch, 2) == len(predicted)
    assert not objective.counts_samples


def test_a_text_without_a_predicted_token_is_no_division_by_zero() -> None:
    """A batch in which everything is ignored has the loss 0 over 0 tokens, and no metrics."""
    batch = {"input_ids": logits(1, 3, 5), "labels": torch.full((1, 3), IGNORED)}
    objective = Objective(Logits(), "language_modeling")
    assert objective(batch)["loss"].item() == 0
    assert objective.count(batch, 1) == 0
    assert means({"loss": 0.0}, 0, "language_modeling") == {}


def test_half_precision_logits_are_summed_in_single() -> None:
    """Cross entropy over bf16 logits is a float32 sum."""
    assert (
        Objective(Logits(), "classification")((logits(4, 3).bfloat16(), torch.zeros(4).long()))[
            "loss"
        ].dtype
        == torch.float32
    )


@pytest.mark.parametrize("batch", [{"x": torch.ones(6, 2)}, (torch.ones(6, 2), torch.ones(6))])
def test_a_model_s_own_mean_becomes_a_sum(batch: Any) -> None:
    """The task `model` multiplies the model's means with the samples; what is no scalar tensor is
    left out."""
    model = OwnLoss(
        lambda x: {"loss": x.mean() * 2, "error": x.mean(), "states": x, "note": "text"}
    )
    objective = Objective(model, "model").eval()
    sums = objective(batch, 6)
    assert (objective.count(batch, 6), objective.counts_samples) == (6, True)
    assert {name: float(value) for name, value in sums.items()} == {"loss": 12.0, "error": 6.0}


def test_a_model_may_give_its_loss_alone_or_in_an_object() -> None:
    """A bare scalar, a mapping and an object with `loss` are the same to the task `model`."""
    batch = {"x": torch.ones(4, 2)}
    for output in (
        lambda x: x.mean(),
        lambda x: {"loss": x.mean()},
        lambda x: SimpleNamespace(loss=x.mean(), extra=x),
    ):
        assert float(Objective(OwnLoss(output), "model").eval()(batch, 4)["loss"]) == 4.0


def test_a_mean_over_something_else_is_refused() -> None:
    """A model that says `count` would be averaged wrongly, so it is refused with what to return."""
    model = OwnLoss(lambda x: {"loss": x.mean(), "count": torch.tensor(3)})
    with pytest.raises(ComponentError, match=r"returns `count`.*mean over samples"):
        Objective(model, "model")({"x": torch.ones(4, 2)}, 4)


def test_without_a_batch_every_trainable_parameter_takes_part() -> None:
    """The zero that a process without work computes reaches every trainable parameter with a zero
    gradient, and no other one."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    loss = Objective(model, "classification")(None)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert [p.grad is not None for p in model.parameters()] == [True, False, True, True]
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


OUTPUTS: list[tuple[str, Any]] = [
    ("the mean", lambda x: x.mean()),
    ("one element", lambda x: x.mean().reshape(1, 1)),
    ("loss first", lambda x: (x.mean(), x)),
    ("loss last", lambda x: (x, x.mean())),
    ("a named tuple", lambda x: Named(x, x.mean())),
    ("a dataclass", lambda x: Returned(x.mean(), x)),
    ("one element in a tuple", lambda x: (x, x.mean().reshape(1))),
    ("one element and scalar", lambda x: (x.mean(), x[:1, :1])),
]


class Named(NamedTuple):
    """What some models return."""

    logits: Tensor
    loss: Tensor


@dataclass
class Returned:
    """What others do."""

    loss: Tensor
    states: Tensor


@pytest.mark.parametrize("output", [out for _, out in OUTPUTS], ids=[name for name, _ in OUTPUTS])
def test_a_loss_is_found_where_there_is_one(output: Any) -> None:
    """In all of these the mean of 6 samples, with its gradient."""
    weight = nn.Parameter(torch.tensor(2.0))
    model = OwnLoss(lambda x: output(x * weight))
    sums = Objective(model, "model")({"x": torch.ones(6, 2)}, 6)
    sums["loss"].backward()
    assert sums["loss"].shape == ()
    assert (float(sums["loss"].detach()), float(weight.grad)) == (12.0, 6.0)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: x.mean(1), r"it returned float32 \(6,\)"),
        (lambda x: 0.5, "it returned float"),
        (lambda x: None, "it returned None"),
        (lambda x: {"logits": x}, r"it returned \{logits: float32 \(6, 2\)\}"),
        (lambda x: (x.mean(), x.sum()), r"it returned \(float32 \(\), float32 \(\)\)"),
        (lambda x: x.mean().detach(), "its loss has no gradient"),
        (lambda x: x.argmax(), r"it returned int64 \(\)"),
    ],
)
def test_what_is_no_loss_is_said(output: Any, got: str) -> None:
    """One sentence with what is wanted and what was got; no guess."""
    objective = Objective(OwnLoss(output), "model")
    with pytest.raises(ComponentError, match=f"a mean over the micro-batch's samples; {got}"):
        objective({"x": torch.ones(6, 2, requires_grad=True)}, 6)


@pytest.mark.parametrize(
    ("shape", "labels", "got"),
    [
        ((4, 3), torch.zeros(5).long(), r"float32 \(4, 3\) for labels int64 \(5,\)"),
        ((4, 3), torch.zeros(4, 1).long(), r"for labels int64 \(4, 1\)"),
        ((4,), torch.zeros(4).long(), r"float32 \(4,\) for labels"),
        ((4, 3), torch.zeros(4), r"for labels float32 \(4,\)"),
        ((4, 5, 3), torch.zeros(4, 6).long(), r"for labels int64 \(4, 6\)"),
    ],
)
def test_labels_that_do_not_fit_are_said(shape: Any, labels: Tensor, got: str) -> None:
    """By both shapes."""
    with pytest.raises(ComponentError, match=got):
        Objective(Logits(), "classification")((torch.zeros(shape), labels))


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.zeros(2)},
        (torch.zeros(2, 3), torch.zeros(2), torch.zeros(2)),
        {"input_ids": torch.zeros(2, 3), "labels": [torch.zeros(2)] * 9},
        torch.zeros(2, 3),
    ],
)
def test_a_batch_without_labels_is_said(batch: Any) -> None:
    """No tensor is taken for labels that was not called so."""
    with pytest.raises(ComponentError, match="a dict with `labels`, or a pair"):
        Objective(Logits(), "classification").count(batch, 2)


def test_perplexity_is_the_loss_s_exponential() -> None:
    """Means are sums over the count, and a language model's perplexity is exp(loss)."""
    assert means({"loss": 6.0, "accuracy": 2.0}, 4, "classification") == {
        "loss": 1.5,
        "accuracy": 0.5,
    }
    assert means({"loss": 6.0}, 3, "language_modeling") == {
        "loss": 2.0,
        "perplexity": pytest.approx(7.38905609893),
    }
