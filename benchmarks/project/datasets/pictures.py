"""scikit-learn's digits as pictures of 32 x 32 pixels in three colours."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F


class Pictures(torch.utils.data.Dataset[dict[str, Tensor]]):
    """`pixel_values` (3, 32, 32), float32 in [-1, 1], and `labels`, 0 to 9."""

    def __init__(self) -> None:
        found = load_digits()
        grey = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
        self.images = F.interpolate(grey, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
        self.labels = torch.tensor(found.target)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def build() -> dict[str, Pictures]:
    return {"train": Pictures()}
