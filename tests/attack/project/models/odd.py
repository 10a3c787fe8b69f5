"""A model of odd blocks, for any of the batches of `datasets/odd.py`, with any of torch's ways to
return something. A user's code: nothing here knows of xrun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from oddities import BLOCKS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

FEATURES, CLASSES, WORDS = 6, 3, 11


@dataclass
class Output:
    logits: Tensor | None = None
    loss: Tensor | None = None
    nothing: None = None


class Named(NamedTuple):
    loss: Tensor
    logits: Tensor


class Logits(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Odd(nn.Module):
    def __init__(self, blocks: list[str], gives: str, takes: str, width: int) -> None:
        super().__init__()
        self.gives = gives
        self.line = nn.Linear(FEATURES, width)
        if takes == "tokens":
            self.words = nn.Embedding(WORDS, FEATURES)
        if takes == "offsets":
            self.bag = nn.EmbeddingBag(WORDS, FEATURES, mode="mean")
        self.blocks = nn.ModuleList(BLOCKS[name](width) for name in blocks)
        self.head = nn.Linear(width, WORDS if takes == "tokens" else CLASSES)

    def forward(self, x: Any = None, y: Any = None, *more: Any, **named: Any) -> Any:
        named = {"x": x, "y": y, "labels": None, **named}
        hidden = self._trunk(self._features(named))
        logits = self.head(hidden)
        if self.gives in LOGITS:
            return LOGITS[self.gives](logits, hidden)
        given = (named["labels"], named["y"], getattr(x, "labels", None))
        labels = next(each for each in given if each is not None)
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)
        return LOSSES[self.gives](loss, logits)

    def _features(self, named: dict[str, Any]) -> Tensor:
        if named.get("input_ids") is not None:
            return self.words(named["input_ids"])
        if named.get("tokens") is not None:
            return self.bag(named["tokens"], named["offsets"])
        x = named["inputs"]["x"] * named["inputs"]["more"][0] if "inputs" in named else named["x"]
        x = getattr(x, "x", x)  # a batch that is a dataclass
        if isinstance(x, PackedSequence):
            return pad_packed_sequence(x, batch_first=True)[0].mean(1)
        return torch.stack([each.mean(0) for each in x]) if isinstance(x, list) else x

    def _trunk(self, x: Tensor) -> Tensor:
        hidden = self.line(x)
        shape = hidden.shape
        hidden = hidden.flatten(0, -2)
        for each in self.blocks:
            hidden = 0.5 * hidden + torch.tanh(each(hidden))
        return hidden.reshape(shape)


class Object:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


LOGITS: dict[str, Any] = {
    "logits": lambda logits, hidden: logits,
    "tuple": lambda logits, hidden: (logits, hidden),
    "list": lambda logits, hidden: [logits, {"hidden": hidden}],
    "dict": lambda logits, hidden: {"hidden": hidden, "logits": logits},
    "dataclass": lambda logits, hidden: Output(logits=logits),
    "named": Logits,
    "object": lambda logits, hidden: Object(logits),
    "short": lambda logits, hidden: logits.bfloat16(),
}
LOSSES: dict[str, Any] = {
    "loss": lambda loss, logits: loss,
    "one": lambda loss, logits: loss.reshape(1),
    "loss dict": lambda loss, logits: {"loss": loss, "size": logits.detach().abs().mean()},
    "one in dict": lambda loss, logits: {"logits": logits, "loss": loss.reshape(1, 1)},
    "loss tuple": lambda loss, logits: (loss, logits),
    "tuple of one": lambda loss, logits: (loss.reshape(1), logits),
    "logits first": lambda loss, logits: (logits, None, loss),
    "loss dataclass": lambda loss, logits: Output(logits=logits, loss=loss),
    "loss named": Named,
    "nested": lambda loss, logits: {"loss": loss, "more": {"logits": [logits, None]}},
    "double": lambda loss, logits: loss.double(),
}


def build(blocks: list[str], gives: str, takes: str, width: int = 8) -> nn.Module:
    return Odd(blocks, gives, takes, width)
