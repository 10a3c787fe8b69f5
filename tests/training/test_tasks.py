"""The tasks with labels: their losses against torch's over the elements that count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from xrun.errors import ComponentError
from xrun.training.objective import Objective
from xrun.training.tasks import IGNORED

NAN = float("nan")


class Given(nn.Module):
    """Returns its input, which has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def loss_of(task: str, x: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The sum, and over how many it goes."""
    objective = Objective(Given(), task)
    assert not objective.counts_samples
    return objective((x, labels), len(x))["loss"], objective.count((x, labels), len(x))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
@pytest.mark.parametrize("flat", [False, True])
def test_regression_is_the_squared_error(shape: tuple[int, ...], flat: bool) -> None:
    """Bit for bit torch's, (batch, 1) and (batch,) in any combination, whole numbers as well."""
    x, labels = some(*shape), torch.arange(6)[:, None].expand(6, *shape[1:] or (1,)).float() / 3
    labels = labels.flatten() if flat and shape[1:] != (3,) else labels.reshape(shape)
    loss, count = loss_of("regression", x, labels)
    alone = functional.mse_loss(x.reshape(labels.shape), labels, reduction="sum")
    assert torch.equal(loss, alone)
    assert count == labels.numel()
    assert torch.equal(*(torch.autograd.grad(each, x)[0] for each in (loss, alone)))
    whole = loss_of("regression", x.detach(), labels.long())[0]
    assert torch.equal(whole, loss_of("regression", x.detach(), labels.long().float())[0])


def test_a_number_that_is_not_there_adds_nothing() -> None:
    """NaN has neither loss nor gradient, and does not count."""
    x, labels = some(3, 2), torch.tensor([[1.0, NAN], [NAN, NAN], [0.5, 2.0]])
    loss, count = loss_of("regression", x, labels)
    there = ~labels.isnan()
    assert count == 3
    assert loss.item() == pytest.approx(((x - labels)[there] ** 2).sum().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, x)
    assert not gradient[~there].any()
    assert gradient[there].all()


@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool, torch.float64])
def test_multi_label_is_binary_cross_entropy(kind: torch.dtype) -> None:
    """Bit for bit torch's, of labels of any type."""
    x, labels = some(5, 4), (some(5, 4) > 0).to(kind)
    loss, count = loss_of("multi_label", x, labels)
    alone = functional.binary_cross_entropy_with_logits(x, labels.float(), reduction="sum")
    assert torch.equal(loss, alone)
    assert count == 20
    assert torch.equal(*(torch.autograd.grad(each, x)[0] for each in (loss, alone)))


def test_a_label_that_is_not_known_adds_nothing() -> None:
    """-100 and NaN have neither loss nor gradient, and do not count."""
    x, labels = some(2, 3), torch.tensor([[1.0, NAN, IGNORED], [0.0, 1.0, NAN]])
    loss, count = loss_of("multi_label", x, labels)
    there = (labels == 0) | (labels == 1)
    alone = functional.binary_cross_entropy_with_logits(x[there], labels[there], reduction="sum")
    assert count == 3
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, x)
    assert not gradient[~there].any()


def test_token_classification_does_not_shift() -> None:
    """The logits at t are compared with the label at t, also where a text is as long as there are
    classes; -100 does not count."""
    x, labels = some(2, 3, 3), torch.tensor([[0, IGNORED, 2], [1, 1, IGNORED]])
    loss, count = loss_of("token_classification", x, labels)
    rows, wanted = x.flatten(0, 1), labels.flatten()
    assert torch.equal(loss, functional.cross_entropy(rows, wanted, reduction="sum"))
    assert count == 4


def test_segmentation_has_the_classes_in_the_second_dimension() -> None:
    """Also where an image is as high as there are classes; -100 does not count."""
    x, labels = some(2, 4, 4, 5), torch.arange(40).reshape(2, 4, 5) % 4
    labels[:, 0] = IGNORED
    loss, count = loss_of("segmentation", x, labels)
    assert torch.equal(loss, functional.cross_entropy(x, labels, reduction="sum"))
    assert count == 30


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        ("regression", (4, 3), torch.zeros(4)),
        ("regression", (4,), torch.zeros(4, 4)),
        ("multi_label", (4, 3), torch.zeros(4)),
        ("token_classification", (4, 3), torch.zeros(4, 3)),
        ("token_classification", (4, 5, 3), torch.zeros(4, 5)),
        ("segmentation", (4, 3, 2, 2), torch.zeros(4, 8, 8, dtype=torch.int64)),
        ("segmentation", (4, 3, 2), torch.zeros(4, 2, 2, dtype=torch.int64)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    task: str, logits: tuple[int, ...], labels: Tensor
) -> None:
    """With both shapes, and never broadcast."""
    with pytest.raises(ComponentError, match=r"its logits are float32 \(4.*for labels .*\(4"):
        loss_of(task, some(*logits), labels)


def test_accuracy_is_counted_over_what_counts() -> None:
    """Tokens, pixels, and each label of several, in evaluation only."""
    tokens = torch.tensor([[0, 1, IGNORED]])
    pixels = torch.tensor([[[0, 1], [1, IGNORED]]])
    several = torch.tensor([[1.0, 0.0, NAN], [IGNORED, 1.0, 0.0]])
    cases = [
        ("token_classification", torch.tensor([[[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]]), tokens, 1),
        ("segmentation", torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])[None], pixels, 2),
        ("multi_label", torch.tensor([[0.1, 0.2, 5.0], [1.0, 0.3, -1.0]]), several, 3),
    ]
    for task, x, labels, right in cases:
        objective = Objective(Given(), task).eval()
        assert int(objective((x, labels), 1)["accuracy"]) == right
        assert set(objective.train()((x, labels), 1)) == {"loss"}
