"""Whether a model keeps the documents of a packed row apart, tried once before a step is trained.

A model that ignores where positions begin again trains on contaminated documents and says nothing.
So a document is computed twice behind two different ones: nothing of it may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..errors import ComponentError
from .modes import Modes
from .objective import Objective

_TOKENS = 8
"""So many of each document."""
_NOTHING = 1e-5
"""What of the largest logit may be rounding. A token that is masked changes nothing at all, one
that is seen what the weights say: little where they are new."""


def check_apart(objective: Objective) -> None:
    """Look after the first packed batch, before its backward pass; the model stays as it is.

    Raises (then):
        ComponentError: what the model makes of a document depends on the one before it.
    """

    def look(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        batch = inputs[0]
        if batch is None:
            return
        handle.remove()
        if _is_packed(batch) and not _are_apart(objective.model, batch):
            raise ComponentError(
                f"{objective.components.model}: it ignores `position_ids`, so a packed document"
                " sees the document before it in the row.",
                "Set `packing: false` for the dataset, or take a model, or an attention, of"
                " transformers that keeps them apart.",
            )

    handle = objective.register_forward_hook(look)


def _is_packed(batch: Batch) -> bool:
    """Whether positions begin again in a row, as in what `data.documents` packs."""
    places = batch.get("position_ids") if isinstance(batch, Mapping) else None
    if not isinstance(places, Tensor) or places.dim() != 2 or "input_ids" not in batch:
        return False
    again = bool((places[:, 1:] == 0).any())
    return again and batch["input_ids"].shape == places.shape and places.shape[1] >= 2 * _TOKENS


def _are_apart(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    tokens = batch["input_ids"][:1, : 2 * _TOKENS]
    before, own = tokens.split(_TOKENS, 1)
    other = own if (own != before).any() else own[:, :1].expand_as(own)
    places = torch.arange(_TOKENS, device=tokens.device).repeat(2)[None]
    more = {name: value for name, value in batch.items() if isinstance(value, bool)}
    modes = Modes.of(model)
    model.eval()
    try:
        with torch.no_grad():
            seen = [
                model(input_ids=torch.cat([each, own], 1), position_ids=places, **more)
                for each in (before, other)
            ]
    finally:
        modes.restore()
    a, b = (getattr(output, "logits", output)[:, _TOKENS:].float() for output in seen)
    return bool((a - b).abs().max() <= _NOTHING * a.abs().max())
