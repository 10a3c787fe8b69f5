"""The tasks with labels: which labels count, and what the loss is a sum over.

`classification` and `language_modeling` are cross entropies whose logits the objective brings into
torch's layout first; the others take logits and labels in one documented shape each. A label that
does not count is -100, and NaN where labels are numbers: it adds neither loss nor gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .classes import fit

IGNORED = -100
LEAST = {"language_modeling": 2, "token_classification": 2, "segmentation": 3}
"""Dimensions that the labels of a task have at least, where that is more than one."""
_FEW = 256
"""Labels that are counted one by one."""


def count(task: str, labels: Tensor) -> int:
    """How many labels the loss is a mean over. Class probabilities count as one label."""
    if task == "language_modeling":
        labels = labels[:, 1:]
    if task in ("regression", "multi_label"):
        return int(torch.count_nonzero(counted(task, labels)))
    if labels.is_floating_point():
        return labels.numel() // max(1, labels.shape[min(1, labels.dim() - 1)])
    if labels.dim() == 1 and labels.numel() <= _FEW:  # a list takes a third of numpy's time
        return labels.numel() - labels.tolist().count(IGNORED)
    if labels.device.type == "cpu":  # numpy takes a tenth of torch's time
        return int(np.count_nonzero(labels.numpy() != IGNORED))
    return int(torch.count_nonzero(labels != IGNORED))


def counted(task: str, labels: Tensor) -> Tensor:
    """Which elements of the labels of `regression` and `multi_label` count."""
    there = ~torch.isnan(labels)
    return there if task == "regression" else there & (labels != IGNORED)


def laid_out(task: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Logits and labels of a task other than the two with layouts of their own, as its loss takes
    them; None if they do not fit."""
    if task in ("regression", "multi_label"):
        return _of_one_shape(logits, labels)
    if labels.is_floating_point():
        return None
    if task == "token_classification":
        fits = logits.dim() == 3 and logits.shape[:-1] == labels.shape
        return (logits.flatten(0, -2), labels.flatten()) if fits else None
    return (logits, labels) if logits.dim() > 3 and fit(logits, labels) else None


def _of_one_shape(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Each element of the one belongs to one of the other; (batch, 1) is (batch,)."""
    if logits.shape == labels.shape:
        return logits, labels
    if logits.dim() and logits.shape[-1] == 1 and logits.shape[:-1] == labels.shape:
        return logits.squeeze(-1), labels
    if labels.dim() and labels.shape[-1] == 1 and labels.shape[:-1] == logits.shape:
        return logits, labels.squeeze(-1)
    return None


def loss_sum(task: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over the labels that count: squared errors, binary or plain cross entropies, in
    float32 whatever the model computes in."""
    logits = logits.float()
    if task not in ("regression", "multi_label"):
        labels = labels if labels.is_floating_point() else labels.long()
        if logits.is_cuda and logits.dim() > 2 and not labels.is_floating_point():
            # Of maps of classes a GPU has no kernel that adds in one order (nll_loss2d).
            logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
        return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    labels = labels.to(logits.dtype)
    there = counted(task, labels)
    if task == "regression":  # against itself a prediction has neither error nor gradient
        return functional.mse_loss(
            logits, torch.where(there, labels, logits.detach()), reduction="sum"
        )
    return functional.binary_cross_entropy_with_logits(
        logits, torch.where(there, labels, 0.0), weight=there.to(logits.dtype), reduction="sum"
    )


def right(task: str, logits: Tensor, labels: Tensor) -> Tensor | None:
    """How many labels that count are predicted: the class with the largest logit, or whether a
    label's probability is above one half. None where that is no question."""
    if task in ("regression", "language_modeling"):
        return None
    if task == "multi_label":
        return ((logits > 0) == (labels > 0.5))[counted(task, labels)].sum()
    return (logits.argmax(1) == wanted(task, labels)).sum()


def wanted(task: str, labels: Tensor) -> Tensor:
    """What predictions are compared with: classes as whole numbers, of probabilities the largest;
    of each label 0 or 1, or -100 where it does not count."""
    if task == "regression":
        return labels if labels.is_floating_point() else labels.double()
    if task != "multi_label":
        return labels.argmax(1) if labels.is_floating_point() else labels
    return torch.where(counted(task, labels), (labels > 0.5).long(), IGNORED)
