"""Before a packed batch is trained on: does the model keep its documents apart?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.components import build
from xrun.data.documents import Documents, Rows
from xrun.errors import ComponentError
from xrun.training.apart import check_apart
from xrun.training.objective import Objective


def batch() -> dict[str, Any]:
    """Two packed rows of documents of 9 tokens."""
    tokens = np.arange(36, dtype=np.int32)
    lengths = np.full(4, 9)
    rows = Rows(Documents(tokens, tokens >= 0, lengths, lengths), np.arange(4), 20, True, 0)
    return rows.collate([rows[0], rows[1]])


class Blind(nn.Module):
    """A model that takes positions and looks over borders all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("models", "gpt", vocab=64, context=32, width=16, depth=1, heads=2)
        for p in self.inner.parameters():  # some begin at 0
            nn.init.normal_(p, std=0.02)

    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Tensor:
        return self.inner(input_ids)


def test_a_model_that_looks_over_borders_is_refused() -> None:
    """After its first forward pass and before anything is trained; what to do is said."""
    objective = Objective(Blind(), "language_modeling")
    check_apart(objective)
    with pytest.raises(ComponentError, match="a packed document sees the document before") as error:
        objective(batch(), 2)
    assert "packing: false" in error.value.hint


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_that_keeps_them_apart_is_left_as_it_was(attention: str) -> None:
    """Looked at once, and nothing of it has moved: mode, random numbers, the loss."""
    args = {"vocab": 64, "width": 32, "depth": 2, "heads": 2, "context": 32}
    objective = Objective(
        build("models", "llama", attention=attention, **args), "language_modeling"
    )
    calls: list[int] = []
    objective.model.register_forward_hook(lambda *_: calls.append(1))
    expected = objective(batch(), 2)["loss"].item()
    check_apart(objective)
    before = torch.random.get_rng_state()
    assert objective(batch(), 2)["loss"].item() == expected
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in objective.modules())
    looked = len(calls)
    objective(batch(), 2)
    assert (looked, len(calls)) == (4, 5)


def test_what_is_not_packed_is_not_looked_at() -> None:
    """Neither a batch without positions nor one in which they never begin again."""
    model = build("models", "llama", vocab=64, width=32, depth=1, heads=2)
    objective = Objective(model, "language_modeling")
    check_apart(objective)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = torch.arange(12)[None]
    objective({"input_ids": tokens, "labels": tokens}, 1)
    places = torch.arange(12)[None]
    objective({"input_ids": tokens, "labels": tokens, "position_ids": places}, 1)
    assert len(calls) == 2
