"""Random tokens, as language models take them."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 64


class Tokens:
    """`samples` rows of `context` tokens, which are their own labels."""

    def __init__(self, samples: int, context: int, vocab: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = samples
        self.rows = torch.randint(vocab, (ROWS, context), generator=generator)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index % ROWS]
        return {"input_ids": row, "labels": row}


def build(samples: int, context: int, vocab: int) -> dict[str, Tokens]:
    """Only `train`."""
    return {"train": Tokens(samples, context, vocab)}
