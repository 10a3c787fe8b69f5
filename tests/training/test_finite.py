"""Which gradients are finite, of every kind that torch makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xrun.training.finite import FiniteGradients, named, read

BAD = [float("nan"), float("inf"), float("-inf")]


def parameter(gradient: Tensor | None, like: Tensor | None = None) -> nn.Parameter:
    """A parameter with this gradient."""
    values = like if like is not None else gradient
    assert values is not None
    made = nn.Parameter(torch.zeros(values.shape, dtype=values.dtype))
    made.grad = gradient
    return made


def sparse(*values: float) -> Tensor:
    """A gradient of one row of an embedding, which several samples have added to."""
    rows = torch.tensor([[1] * len(values)])
    return torch.sparse_coo_tensor(
        rows, torch.tensor(values)[:, None], (4, 1), check_invariants=True
    )


KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_one_number_that_is_not_finite_is_found(kind: torch.dtype, bad: float) -> None:
    """Beside finite gradients of other kinds, one missing and one empty, in the second parameter of
    its kind, and only that one is named."""
    wrong = torch.ones(3, 2, dtype=kind)
    wrong[2, 1] = bad
    parameters = [
        parameter(torch.ones(2, dtype=torch.float32)),
        parameter(torch.ones(2, dtype=kind)),
        parameter(None, torch.ones(2)),
        parameter(torch.ones(0, dtype=kind)),
        parameter(wrong),
    ]
    finite = FiniteGradients(parameters)
    assert read([torch.tensor(2.5), finite.found()]) == [2.5, 1.0]
    assert finite.flags() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_finite_gradients_keep_their_bits(kind: torch.dtype) -> None:
    """The largest and the smallest numbers, and a negative zero, are finite, and stay what they
    were."""
    limits = torch.finfo(
        torch.view_as_real(torch.ones(1, dtype=kind)).dtype if kind.is_complex else kind
    )
    values = [limits.max, limits.min, limits.smallest_normal / 4, -0.0]
    gradient = torch.tensor(values, dtype=kind)
    before = gradient.clone().view(torch.uint8)
    finite = FiniteGradients([parameter(gradient)])
    assert float(finite.found()) == 0
    assert finite.flags() == [0]
    assert torch.equal(gradient.view(torch.uint8), before)


def test_a_sparse_gradient_is_judged_by_its_sums() -> None:
    """Numbers for one row count together: two halves of what is too large are not finite, and an
    infinity is not either."""
    largest = torch.finfo(torch.float32).max
    for gradient, found in (
        (sparse(1.0, 2.0), 0.0),
        (sparse(largest, largest), 1.0),
        (sparse(float("nan")), 1.0),
    ):
        finite = FiniteGradients([parameter(gradient, torch.zeros(4, 1))])
        assert float(finite.found()) == found
        assert finite.flags() == [found]


def test_names_of_one_and_of_many() -> None:
    """The first one is named, the others are counted."""
    assert named(["a"]) == "a"
    assert named(["a", "b", "c"]) == "a and of 2 more"
