"""Where the classes are in logits: told by shapes, then by other samples, then by convention."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from xrun.training.classes import Classes, Shapes, fit
from xrun.training.objective import Objective


def shapes(logits: tuple[int, ...], labels: tuple[int, ...]) -> Shapes:
    return torch.zeros(logits), torch.zeros(labels, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "labels", "last"),
    [
        ((2, 7, 3), (2, 7), True),
        ((2, 3, 7), (2, 7), False),
        ((2, 3, 8, 8), (2, 8, 8), False),
        ((2, 8, 8, 3), (2, 8, 8), True),
    ],
)
def test_shapes_tell(logits: tuple[int, ...], labels: tuple[int, ...], last: bool) -> None:
    """Tokens in the way of transformers, and pixels in that of torch, without asking anybody."""

    def nobody() -> Iterator[Shapes]:
        raise AssertionError

    assert Classes(nobody).are_last(*shapes(logits, labels), named=not last) is last


@pytest.mark.parametrize("last", [True, False])
def test_other_samples_tell_once(last: bool) -> None:
    """A text as long as there are classes is what the others are, and they are asked once."""
    asked = []
    other = shapes((1, 5, 3), (1, 5)) if last else shapes((1, 3, 5), (1, 5))

    def others() -> Iterator[Shapes]:
        asked.append(1)
        yield shapes((1, 3, 3), (1, 3))
        yield other

    classes = Classes(others)
    same = shapes((2, 3, 3), (2, 3))
    assert [classes.are_last(*same, named=not last) for _ in range(3)] == [last] * 3
    assert asked == [1]


def test_what_was_seen_before_tells() -> None:
    """So the same model is always read in the same way."""
    classes = Classes()
    assert classes.are_last(*shapes((2, 7, 3), (2, 7)), named=False)
    assert classes.are_last(*shapes((2, 3, 3), (2, 3)), named=False)


@pytest.mark.parametrize("named", [True, False])
def test_where_nothing_tells_it_is_a_convention(named: bool) -> None:
    """The last dimension for `logits` by name, torch's own for a tensor."""
    assert Classes().are_last(*shapes((2, 3, 3), (2, 3)), named=named) is named


def test_probabilities_have_the_shape_of_logits() -> None:
    """Labels that are numbers of a kind are a probability of each class."""
    assert fit(torch.zeros(4, 3), torch.zeros(4, 3))
    assert not fit(torch.zeros(4, 3), torch.zeros(4))


class Tagger(nn.Module):
    """A class for each token, last; it counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


def test_a_text_as_long_as_there_are_classes_is_no_other_way_round() -> None:
    """The first batch fits both ways; the loss is that over tokens, and asking has changed nothing
    of the model."""
    torch.manual_seed(0)
    model, x, labels = Tagger(), torch.randn(2, 3, 4), torch.randint(3, (2, 3))
    objective = Objective(model, "classification")
    objective.others = lambda: [(torch.randn(1, 5, 4), torch.zeros(1, 5).long())]
    loss = objective((x, labels), 2)["loss"]
    assert float(model.calls) == 1.0
    expected = functional.cross_entropy(model(x).flatten(0, 1), labels.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item())
