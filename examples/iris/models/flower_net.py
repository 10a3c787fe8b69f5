"""Which species a flower is of: one small network per organ, and one over both."""

from __future__ import annotations

import torch
from flowers import Standardised, by_organ
from torch import Tensor, nn


class FlowerNet(nn.Module):
    """Measures (N, 4) in cm -> logits (N, classes)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.standardised = Standardised()
        self.organs = nn.ModuleList(nn.Linear(2, width) for _ in range(2))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, measures: Tensor) -> Tensor:
        organs = by_organ(self.standardised(measures)).unbind(1)
        seen = [torch.tanh(layer(organ)) for layer, organ in zip(self.organs, organs, strict=True)]
        return self.head(torch.cat(seen, dim=1))


def build(width: int = 8, classes: int = 3) -> nn.Module:
    return FlowerNet(width, classes)
