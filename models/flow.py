"""Pictures out of noise by flow matching (Lipman et al. 2022), for each class, with a loss of its own: `task: model`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from xrun.errors import ComponentError

FREQUENCIES = 32


class Block(nn.Module):
    """Two convolutions beside the picture, told of the time and the class by a scale and a shift of each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.told = nn.GroupNorm(8, width), nn.Linear(width, 2 * width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told)[:, :, None, None].chunk(2, 1)
        inner = functional.silu(self.norm(x) * (1 + scale) + shift)
        out: Tensor = x + self.second(functional.silu(self.first(inner)))
        return out


class Flow(nn.Module):
    """`forward(images, labels)` gives the loss: the squared error of the velocity from noise (time 0) to a picture (time 1).

    Noise and times are drawn from torch's generator. `sample(labels)` draws pictures.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.shape = shape
        self.classes, self.times = nn.Embedding(classes, width), nn.Linear(2 * FREQUENCIES, width)
        self.enter, self.leave = nn.Conv2d(shape[0], width, 3, padding=1), nn.Conv2d(width, shape[0], 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean over the samples, as {"loss": ...}."""
        count = len(images)
        # Evenly over [0, 1): the loss varies less than with times of their own (Kingma et al. 2021).
        times = (torch.rand((), device=images.device) + torch.arange(count, device=images.device) / count) % 1
        noise, t = torch.randn_like(images), times.view(-1, 1, 1, 1)
        velocity = self.velocity((1 - t) * noise + t * images, times, labels)
        return {"loss": functional.mse_loss(velocity.float(), (images - noise).float())}

    def velocity(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Where pictures in between (N, channels, height, width) move to at their times (N,)."""
        angles = times[:, None] * torch.logspace(0, 2, FREQUENCIES, device=times.device)
        waves = torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype)
        told = functional.silu(self.times(waves) + self.classes(labels))
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, told)
        out: Tensor = self.leave(functional.silu(x))
        return out

    @torch.no_grad()
    def sample(self, labels: Tensor, steps: int = 50) -> Tensor:
        """One picture for each label (N,), by so many steps of Euler's from noise of torch's generator."""
        x = torch.randn(len(labels), *self.shape, device=labels.device)
        for step in range(steps):
            x = x + self.velocity(x, torch.full((len(labels),), step / steps, device=labels.device), labels) / steps
        return x


def build(image_size: int, channels: int = 3, classes: int = 10, width: int = 64, depth: int = 4) -> Flow:
    """(images (N, channels, image_size, image_size), labels (N,)) -> {"loss": ...}; `width` is a multiple of 8."""
    if width % 8:
        raise ComponentError(f"models/flow: width is a multiple of 8 (got {width}).")
    return Flow((channels, image_size, image_size), classes, width, depth)
