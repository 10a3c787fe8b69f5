"""Modules that take their shapes from the first samples train like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.running import PER_STEP, Project, curve, weights
from xrun.errors import ComponentError
from xrun.training.lazy import give_shapes, lazy_modules
from xrun.training.objective import Objective

LAZY = """\
from torch import nn


def build():
    return nn.Sequential(
        nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Dropout(0.1), nn.ReLU(), nn.LazyLinear(3)
    )
"""


class Counting(nn.Module):
    """What every forward pass changes, makes and replaces: buffers, a parameter, extra state."""

    seen: Tensor
    mean: Tensor
    late: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.LazyLinear(3), nn.LazyBatchNorm1d()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("row", torch.zeros(2, 3))
        self.register_buffer("part", self.row[1])
        self.calls = 0
        self.slow = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.part += 1
        self.calls += 1
        self.slow.data = self.slow.data * 0.5 + 1
        self.seen += 1
        self.mean = x.mean(0)
        self.late = torch.ones(2)
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(2))
        shaped = self.norm(self.line(x))
        self.norm.eval()
        return shaped

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


def test_only_shapes_come_of_it() -> None:
    """Weights have shapes and values that follow from the seed; all else is as before, and the
    norm's statistics are those of no sample."""
    ends = []
    for _ in range(2):
        model: Any = Counting()
        assert lazy_modules(model) == ["line (LazyLinear)", "norm (LazyBatchNorm1d)"]
        batch = torch.randn(2, 5), torch.tensor([0, 1])
        give_shapes(Objective(model, "classification"), batch, 2, seed=1)
        assert (model.line.weight.shape, model.norm.running_mean.shape) == ((3, 5), (3,))
        assert lazy_modules(model) == []
        assert (int(model.seen), model.mean.shape, model.late) == (0, (1,), None)
        assert (model.norm.running_mean.tolist(), int(model.norm.num_batches_tracked)) == (
            3 * [0],
            0,
        )
        assert (model.slow.tolist(), model.row.tolist()) == (3 * [0], 2 * [3 * [0]])
        assert model.part.data_ptr() == model.row[1].data_ptr()
        assert (hasattr(model, "made"), model.norm.training) == (False, True)
        ends.append(model.line.weight)
    assert torch.equal(*ends)
    assert bool(ends[0].abs().sum() > 0)


def test_a_module_that_is_not_called_is_named() -> None:
    """It has no shape after the forward pass, and never will."""
    model: Any = nn.Sequential(nn.LazyLinear(3))
    model[0].spare = nn.LazyLinear(2)
    batch = torch.randn(2, 5), torch.tensor([0, 1])
    with pytest.raises(ComponentError, match=r"models/m\.py: 0\.spare \(LazyLinear\) has no shape"):
        give_shapes(Objective(model, "classification", named("models/m.py")), batch, 2, seed=1)


def named(model: str) -> Any:
    from xrun.training.contract import Components

    return Components(model)


@pytest.mark.once
def test_a_lazy_model_survives_a_kill(tmp_path: Path) -> None:
    """The same bits as undisturbed, with a moving average and a micro-batch that is found."""
    overrides = ["model.name=lazy", "train.ema=0.9"]
    projects = [Project(tmp_path / name) for name in ("killed", "undisturbed")]
    for project in projects:
        project.write("models/lazy.py", LAZY)
    projects[0].trap("SIGKILL", call=7 * PER_STEP + 2, committed=5, paced=True)
    assert projects[0].attempt(*overrides).code == 75
    assert [project.attempt(*overrides).code for project in projects] == [0, 0]
    assert curve(projects[0].run) == curve(projects[1].run)
    assert weights(projects[0].run) == weights(projects[1].run)
