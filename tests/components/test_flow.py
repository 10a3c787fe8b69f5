"""What models/flow.py promises: its loss and its samples follow the velocity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.components import build, seeded
from xrun.errors import ComponentError

PICTURE = torch.linspace(-1, 1, 64).view(1, 8, 8)


def flow() -> torch.nn.Module:
    return seeded(0, lambda: build("models", "flow", image_size=8, channels=1, width=16, depth=1))


def exact(x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """The velocity where every picture is PICTURE: from x = (1 - t) noise + t PICTURE."""
    return (PICTURE - x) / (1 - times.view(-1, 1, 1, 1))


def test_the_true_velocity_has_no_loss() -> None:
    """And another one has that of its error."""
    model = flow()
    model.velocity = exact
    images, labels = PICTURE.expand(16, -1, -1, -1), torch.zeros(16, dtype=torch.int64)
    assert float(model(images, labels)["loss"]) < 1e-6
    model.velocity = lambda *args: exact(*args) + 2
    assert float(model(images, labels)["loss"]) == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 7])
def test_samples_follow_the_velocity(steps: int) -> None:
    """Along the true one, noise becomes the picture in any number of steps."""
    model = flow()
    model.velocity = exact
    made = model.sample(torch.zeros(3, dtype=torch.int64), steps)
    assert torch.allclose(made, PICTURE.expand(3, -1, -1, -1), atol=1e-4)


def test_the_loss_follows_from_torchs_generator() -> None:
    """The same seed draws the same noise and times; time and class reach the velocity."""
    model = flow()
    for block in model.blocks:
        torch.nn.init.normal_(block.second.weight, std=0.1)
    images, labels = PICTURE.expand(4, -1, -1, -1), torch.arange(4)
    losses = [seeded(n, lambda: model(images, labels)["loss"]).item() for n in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    same = torch.full((4,), 0.5)
    by_class = model.velocity(images, same, labels)
    assert not torch.allclose(by_class[0], by_class[1])
    by_time = model.velocity(images, torch.tensor([0.1, 0.1, 0.6, 0.6]), labels * 0)
    assert torch.allclose(by_time[0], by_time[1])
    assert not torch.allclose(by_time[1], by_time[2])


def test_a_width_that_norms_cannot_group_is_refused() -> None:
    with pytest.raises(ComponentError, match="width is a multiple of 8"):
        build("models", "flow", image_size=8, width=12)
