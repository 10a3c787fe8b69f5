"""A backbone of square matrices and a linear head over it; the backbone may be frozen."""

from __future__ import annotations

from torch import Tensor, nn


class Headed(nn.Module):
    """(N, width) -> (N, classes)."""

    def __init__(self, width: int, depth: int, classes: int, frozen: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.backbone.requires_grad_(not frozen)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def build(width: int, depth: int, classes: int, frozen: bool = False) -> nn.Module:
    return Headed(width, depth, classes, frozen)
