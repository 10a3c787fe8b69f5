"""`Classes`: which dimension of a model's logits holds the classes, where labels have several.

torch's cross entropy wants them in the second, (batch, classes, ...), and transformers' models have
them in the last, (batch, ..., classes). The shapes of labels and logits tell, unless a text happens
to be as long as there are classes. Then other samples tell, and only where all of them are like
that it is a convention: the last for what a model names `logits`, else torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

Shapes = tuple[Tensor, Tensor]
"""Logits and labels of a batch."""


class Classes:
    """What is known of one model; `others` computes batches of other samples."""

    def __init__(self, others: Callable[[], Iterable[Shapes]] = tuple) -> None:
        self.others = others
        self._last: bool | None = None

    def are_last(self, logits: Tensor, labels: Tensor, named: bool) -> bool:
        """Whether the last dimension of these logits holds the classes; `named`: the model calls
        them `logits`."""
        told = _told_by(logits, labels)
        if told is not None:
            self._last = told
        elif self._last is None:
            known = (_told_by(*other) for other in self.others())
            self._last = next((each for each in known if each is not None), named)
        return bool(self._last)


def fit(logits: Tensor, labels: Tensor) -> bool:
    """Whether torch's cross entropy takes both: classes in the second dimension, labels as one
    class or as a probability of each."""
    if labels.is_floating_point():
        return logits.dim() > 1 and logits.shape == labels.shape
    shape = logits.shape
    return len(shape) > 1 and shape[:1] + shape[2:] == labels.shape


def _told_by(logits: Tensor, labels: Tensor) -> bool | None:
    """What the shapes say; None if they fit both ways or neither."""
    last, second = logits.shape[:-1] == labels.shape, fit(logits, labels)
    return last if last != second else None
