"""Samples in any of the batches that people make. A user's code, but for `spring`, by which a test
ends the process in the middle of a step."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

PROJECT = Path(__file__).parent.parent
FEATURES, CLASSES, WORDS = 6, 3, 11


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    labels: Tensor


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


def ragged(items: list[Any]) -> list[Tensor]:
    """Each sample in 1 to 3 rows."""
    return [x.expand(1 + int(y) % CLASSES, -1) for x, y in items]


def labels(items: list[Any]) -> Tensor:
    return torch.tensor([int(y) for _, y in items])


def padded(items: list[Any]) -> dict[str, Any]:
    """A row of four for each sample, of which some do not count."""
    x, y = default_collate(items)
    rows = torch.stack([y, torch.full_like(y, -100), (y + 1) % CLASSES, y], 1)
    rows[y == 0, 2] = -100
    return {"x": torch.stack([x, -x, 2 * x, x + 1], 1), "labels": rows}


def ignored(items: list[Any]) -> dict[str, Any]:
    """All labels of most samples do not count."""
    x, y = default_collate(items)
    return {"x": x, "labels": torch.where(y == 0, y, -100)}


def spoken(items: list[Any]) -> dict[str, Any]:
    ids = torch.stack([(x.abs() * 7).long() % WORDS for x, _ in items])
    return {"input_ids": ids, "labels": torch.where(ids == 3, -100, ids)}


def offsets(items: list[Any]) -> dict[str, Any]:
    rows = [(x.abs() * 5).long()[: 2 + int(y)] % WORDS for x, y in items]
    starts = torch.tensor([0, *[len(row) for row in rows[:-1]]]).cumsum(0)
    return {"tokens": torch.cat(rows), "offsets": starts, "labels": labels(items)}


def arrays(items: list[Any]) -> dict[str, Any]:
    x = np.stack([x.numpy() for x, _ in items])
    return {"x": np.asfortranarray(x), "labels": np.array([int(y) for _, y in items], np.int32)}


def nested(items: list[Any]) -> dict[str, Any]:
    x, y = default_collate(items)
    return {"inputs": {"x": x, "more": [torch.ones(()), None, "text"]}, "labels": y}


COLLATES: dict[str, Any] = {
    "pair": default_collate,
    "tuple": lambda items: tuple(default_collate(items)),
    "named": lambda items: Pair(*default_collate(items)),
    "dict": lambda items: dict(zip(("x", "labels"), default_collate(items), strict=True)),
    "small": lambda items: {
        "x": default_collate(items)[0].double().float(),
        "labels": labels(items).to(torch.uint8),
    },
    "nested": nested,
    "dataclass": lambda items: Frozen(*default_collate(items)),
    "packed": lambda items: {
        "x": pack_sequence(ragged(items), enforce_sorted=False),
        "labels": labels(items),
    },
    "ragged": lambda items: {"x": ragged(items), "labels": labels(items)},
    "offsets": offsets,
    "numpy": arrays,
    "texts": lambda items: {
        "x": default_collate(items)[0],
        "names": ["a"] * len(items),
        "none": None,
        "labels": labels(items),
    },
    "soft": lambda items: (
        default_collate(items)[0],
        torch.eye(CLASSES)[labels(items)] * 0.8 + 0.2 / CLASSES,
    ),
    "padded": padded,
    "ignored": ignored,
    "tokens": spoken,
    "apart": lambda items: [*default_collate(items), torch.ones(len(items))],
}


class Odd:
    def __init__(self, name: str, takes: str, n: int, weighted: bool) -> None:
        generator = torch.Generator().manual_seed(n)
        self.name, self.takes, self.calls = name, takes, 0
        self.x = torch.randn(n, FEATURES, generator=generator)
        self.y = (self.x.sum(1) * 2).long() % CLASSES
        if weighted:
            self.weights = [1.0 + i % 3 for i in range(n)]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + 0.01 * torch.randn(FEATURES), self.y[i]

    def collate(self, items: list[Any]) -> Any:
        self.calls += 1
        spring(self.name, self.calls)
        return COLLATES[self.takes](items)


def spring(name: str, calls: int) -> None:
    """End this process with a real SIGKILL at the call that `trap.json` says: one for each life."""
    try:
        trap = json.loads((PROJECT / "trap.json").read_text())
    except FileNotFoundError:
        return
    here = os.environ.get("RANK", "0") == str(trap["rank"])
    if name == "train" and here and trap["calls"] and calls >= trap["calls"][0]:
        left = {"calls": trap["calls"][1:], "rank": 1 - trap["rank"] if trap["both"] else 0}
        (PROJECT / "trap.json").write_text(json.dumps(trap | left))
        os.kill(os.getpid(), signal.SIGKILL)


def build(takes: str, n: int = 50, val: int = 13, weighted: bool = False) -> dict[str, Any]:
    splits = {"train": Odd("train", takes, n, weighted)}
    return splits | ({"val": Odd("val", takes, val, False)} if val else {})
