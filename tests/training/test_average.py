"""The moving average of a model: torch's own numbers, and what is no measure as it is.

Covers `xrun.training.twin`.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xrun.errors import ComponentError
from xrun.training.average import Average
from xrun.training.twin import twin


class Kinds(nn.Module):
    """Weights and buffers of every kind."""

    late: Tensor | None
    seen: Tensor
    flags: Tensor
    grown: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.roots = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.brief = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("order", torch.arange(64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int32))
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("late", None)
        self.register_buffer("grown", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.flags[int(self.seen) // len(x) % 3] = True
        self.late = torch.zeros(2) if self.late is None else self.late + 1
        self.grown = x.detach().mean(0) + self.grown
        return self.body(x)


def trained(model: nn.Module, *averages: Any, steps: int = 4) -> None:
    """Steps that move every weight."""
    for _ in range(steps):
        model(torch.randn(8, 4))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        for average in averages:
            average()


def test_numbers_are_averaged_as_torch_does_it() -> None:
    """The same bits: weights of every type, and running statistics."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(Kinds().body, nn.Linear(4, 2).double(), nn.BatchNorm1d(2).double())
    model[1].register_parameter("roots", nn.Parameter(torch.randn(3, dtype=torch.complex64)))
    model[1].register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    own = Average(model, 0.9)
    known = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    trained(model, own.update, lambda: known.update_parameters(model))
    assert own.state_dict().keys() == known.state_dict().keys()
    for name, tensor in known.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(own.state_dict()[name], tensor), name


def test_what_is_no_measure_is_taken_over() -> None:
    """Whole numbers, truth values, infinities, what grows and what comes later are the model's."""
    model = Kinds()
    average = Average(model, 0.9999)
    trained(model, average.update)
    copy: Any = average.module
    assert copy.order.tolist() == list(range(64))
    assert (int(copy.seen), int(copy.body[1].num_batches_tracked)) == (32, 4)
    assert copy.flags.all()
    assert copy.mask.tolist() == [[0.0, -torch.inf], [0.0, 0.0]]
    assert 0 < copy.late[0] < 3
    assert copy.grown.shape == (4,)
    assert average.state_dict().keys() == {"n_averaged"} | {
        f"module.{n}" for n in model.state_dict()
    }


def test_an_average_that_goes_on_is_the_same() -> None:
    """Restored between two steps, it has the bits of one that was never interrupted."""
    ends = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        model = Kinds()
        average = Average(model, 0.9)
        trained(model, average.update)
        if interrupted:
            again = Average(model, 0.9)
            again.load_state_dict(average.state_dict())
            average = again
        trained(model, average.update)
        ends.append(average.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_shared_buffer_moves_once() -> None:
    """Two modules with one running mean."""
    model = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2)])
    model[1].running_mean = model[0].running_mean
    average = Average(model, 0.5)
    for value in (2.0, 4.0, 8.0):
        model[0].running_mean.fill_(value)
        average.update()
    shared: Any = average.module
    assert shared[1].running_mean.tolist() == [5.5, 5.5]


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_twin_computes_the_same_and_shares_nothing(norm: Any) -> None:
    """Also where the model keeps what it has computed, as `weight_norm` does."""
    model = nn.Sequential(norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    model.kept = [{"last": model(x)}]
    copy = twin(model, "because", "do")
    assert torch.equal(copy(x), model(x))
    with torch.no_grad():
        for p in copy.parameters():
            p.fill_(0.5)
    assert not torch.equal(copy(x), model(x))


def test_what_cannot_be_copied_is_named() -> None:
    """One sentence: why it is to be copied, what cannot be, and the way out."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].lock = threading.Lock()
    with pytest.raises(ComponentError, match=r"train\.ema averages .*, and 1\.lock cannot be") as e:
        Average(model, 0.9)
    assert "Leave train.ema out" in e.value.hint


def test_parametrized_blocks_that_are_computed_again_are_averaged() -> None:
    """torch's copy of such a block has lost its wrapper; the average is that of the block."""
    norm = parametrizations.weight_norm
    plain, wrapped = (nn.Sequential(norm(nn.Linear(4, 3)), nn.BatchNorm1d(3)) for _ in range(2))
    wrapped.load_state_dict(plain.state_dict())
    wrapped[0] = checkpoint_wrapper(wrapped[0])
    averages = [Average(model, 0.9) for model in (plain, wrapped)]
    for model, average in zip((plain, wrapped), averages, strict=True):
        torch.manual_seed(0)
        trained(model, average.update)
    one, other = (average.module.state_dict() for average in averages)
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
