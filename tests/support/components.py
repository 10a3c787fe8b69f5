"""The shipped components, built as a rank builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.paths import ROOT
from xrun.component import load_build

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NEEDS_THE_HUB = {"hub", "hub_images", "hub_text"}
WORDS = "spot machines come and go, the run stays"


def build(kind: Any, component: str, /, **args: Any) -> Any:
    return load_build(kind, component, ROOT)(**args)


def seeded(seed: int, function: Callable[[], Any]) -> Any:
    torch.manual_seed(seed)
    return function()


def same(a: Any, b: Any) -> bool:
    """Whether two items are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def real_bytes(items: list[dict[str, Tensor]]) -> bytes:
    """The bytes that have a label, in order."""
    return b"".join(bytes(item["input_ids"][item["labels"] != -100].tolist()) for item in items)


def finish(iterator: Any) -> list[Any]:
    return list(iterator)


def picture(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """40 x 50 pixels of noise that depend on the number."""
    return np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def documents(shard: int) -> list[str]:
    """From empty to much longer than a block, some beyond ASCII."""
    return [f"{shard}.{i} " + (WORDS + " é ") * (i * 5 % 7) if i != 3 else "" for i in range(20)]
