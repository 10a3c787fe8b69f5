"""A model and its task as one module: a batch goes in, sums come out.

Sums, not means, because a step's loss is the sum over all of its micro-batches on all processes
divided by the global batch's samples (tokens for language models); so an incomplete last batch is
right, and so is any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.batch import Batch, batch_size
from ..errors import TrainError
from .compiled import Compiled

Sums = dict[str, Tensor]
"""`loss` and metrics summed over `count` samples or tokens."""
IGNORED = -100


class Objective(nn.Module):
    """Wraps a user's model; `forward(batch)` gives the micro-batch's sums, metrics only in
    evaluation mode."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.compiled: Compiled | None = None
        self.whole = True
        """Whether the batch that comes is a whole one; a short one is not compiled."""

    def forward(self, batch: Batch | None) -> Sums:
        """The sums of one micro-batch; without a batch, a zero that depends on every trainable
        parameter."""
        if batch is None:
            return {
                "loss": sum(
                    (p.sum() * 0 for p in self.parameters() if p.requires_grad), torch.zeros(())
                )
            }
        if self.task == "model":
            return self._own_loss(batch)
        logits, labels = self._logits(batch)
        return self._cross_entropy(logits, labels)

    def _call(self, *arguments: Any, **named: Any) -> Any:
        if self.compiled is None or not self.whole:
            return self.model(*arguments, **named)
        return self.compiled(self.model, *arguments, **named)

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Mapping):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            output, labels = self._call(**inputs), batch["labels"]
        else:
            output, labels = self._call(batch[0]), batch[1]
        logits = output if isinstance(output, Tensor) else output.logits
        if self.task == "language_modeling":
            return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return logits, labels

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Sums:
        sums = {
            "loss": functional.cross_entropy(
                logits.float(), labels, ignore_index=IGNORED, reduction="sum"
            )
        }
        if not self.training and self.task == "classification":
            sums["accuracy"] = (logits.argmax(-1) == labels).sum()
        return sums

    def _own_loss(self, batch: Batch) -> Sums:
        output = self._call(**batch) if isinstance(batch, Mapping) else self._call(*batch)
        if isinstance(output, Mapping):
            values = dict(output.items())
        else:
            values = {"loss": getattr(output, "loss", output)}
        if "count" in values:
            raise TrainError(
                "task: model: the model returns `count`, but its loss must be a mean over the"
                " micro-batch's samples.",
                "Return the mean over samples and no `count`.",
            )
        samples = batch_size(batch)
        return {
            name: value * samples
            for name, value in values.items()
            if isinstance(value, Tensor) and value.dim() == 0
        }

    def count(self, batch: Batch) -> int:
        """What the loss of a batch is a mean over: its samples, or its predicted tokens for
        language models."""
        if self.task == "language_modeling":
            return int((batch["labels"][:, 1:] != IGNORED).sum())
        return batch_size(batch)

    @property
    def counts_samples(self) -> bool:
        """Whether `count` is the number of samples, so that every process knows the global batch's
        without asking."""
        return self.task != "language_modeling"


def means(sums: Mapping[str, float], count: float, task: str) -> dict[str, float]:
    """Turn sums over `count` into the values that are logged."""
    values = {name: value / count for name, value in sums.items()} if count else {}
    if task == "language_modeling" and "loss" in values:
        values["perplexity"] = float(torch.exp(torch.tensor(values["loss"], dtype=torch.float64)))
    return values
