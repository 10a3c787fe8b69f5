"""`Measured`: the metrics of a whole split, by torchmetrics, each sample once.

What is counted (`f1`, `miou`, `top5`, ...) has whole numbers as its state, which are summed over
batches and processes, so no cut of the split changes a bit of it; it takes some numbers for each
class. What ranks or averages (`auroc`, `rmse`, `r2`, ...) is computed once from all predictions in
the order of the samples, by the first process in float64: they take a float and a label for each
element, and for `auroc` of each class, in that process's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ComponentError
from ..recipe.metrics import top
from .tasks import IGNORED
from .world import World

_NUMBERS = ("mae", "mse", "rmse", "r2")
_RANKED = ("auroc", "average_precision")
_AVERAGES = {"f1_micro": "micro", "f1_weighted": "weighted", "accuracy": "micro"}


@dataclass
class Measured:
    """Takes each batch of an evaluation with `add`, and gives the metrics of the whole with
    `values`. `of` names what returned the predictions, for sentences."""

    names: Sequence[str]
    of: str = "the model"
    _tallies: dict[str, Any] = field(default_factory=dict)
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, number: int, counts: bool, predictions: Tensor, targets: Tensor) -> None:
        """The predictions of the batch of this number, logits or numbers, and what they should be;
        one that does not count says only how many classes there are.

        Raises:
            ComponentError: a metric that is asked for is none of such predictions.
        """
        kind = _kind(predictions, targets)
        self._check(kind, predictions, targets)
        logits, targets = _rows(kind, predictions.detach().float(), targets)
        counts = counts and len(targets) > 0
        for name in self.names:
            if name not in (*_NUMBERS, *_RANKED):
                tally = self._tally(name, kind, logits)
                if counts:
                    tally.update(_decided(name, kind, logits), targets)
        if counts and {*_NUMBERS, *_RANKED} & {*self.names}:
            self._kept[number] = logits.cpu(), targets.cpu()

    def values(self, world: World) -> dict[str, float]:
        """The metrics of all batches that any process has added, the same on each of them."""
        found = {name: self._summed(tally, world) for name, tally in self._tallies.items()}
        pieces = world.gathered(self._kept)
        if pieces is not None:
            whole = {number: each for piece in pieces for number, each in piece.items()}
            found |= self._of_the_whole([whole[number] for number in sorted(whole)])
        return {name: float(value) for name, value in world.broadcast(found).items()}

    def _tally(self, name: str, kind: str, logits: Tensor) -> Any:
        if name not in self._tallies:
            self._tallies[name] = _new_tally(name, kind, logits.shape[1]).to(logits.device)
        return self._tallies[name]

    def _summed(self, tally: Any, world: World) -> float:
        for name, state in tally.metric_state.items():
            total = world.all_reduce_sum(state.flatten().tolist())
            whole = torch.tensor(total, dtype=torch.float64).to(state.dtype)
            setattr(tally, name, whole.view(state.shape).to(state.device))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this process itself has counted nothing
            return float(tally.compute())

    def _of_the_whole(self, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        if not batches:
            return {}
        logits, targets = (torch.cat(columns) for columns in zip(*batches, strict=True))
        values = {}
        for name in self.names:
            if name in _NUMBERS:
                values[name] = _of_numbers(name, logits.double(), targets.double())
            elif name in _RANKED:
                values[name] = _of_ranks(name, *_against_the_rest(logits.double(), targets))
        return values

    def _check(self, kind: str, predictions: Tensor, targets: Tensor) -> None:
        for name in self.names:
            wrong = (name in _NUMBERS) != (kind == "numbers") or not predictions.is_floating_point()
            if wrong or (kind == "labels" and (name == "miou" or top(name))):
                got = f"{_told(predictions)} for {_told(targets)}"
                raise ComponentError(
                    f"{self.of}: train.evaluate.metrics: {name} is not measured of such predictions"
                    f" ({got}).",
                    "Metrics of classes take logits (samples, classes, ...) and whole numbers,"
                    " those of numbers two tensors of one shape.",
                )
            if (most := top(name)) and most > predictions.shape[1]:
                raise ComponentError(
                    f"{self.of}: train.evaluate.metrics: {name} of {predictions.shape[1]} classes."
                )


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _kind(predictions: Tensor, targets: Tensor) -> str:
    """`classes` (one of several, in the second dimension), `labels` (any of several) or
    `numbers`."""
    if predictions.shape != targets.shape:
        return "classes"
    return "numbers" if targets.is_floating_point() else "labels"


def _rows(kind: str, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One row for each element that counts: logits (elements, classes) with targets (elements,);
    otherwise (samples, outputs) both, in which -100 and NaN stay where they are."""
    if kind != "classes":
        shape = (targets.shape[0], -1)
        targets = targets if kind == "numbers" else targets.long()
        return predictions.reshape(shape), targets.reshape(shape)
    logits, targets = predictions.movedim(1, -1).flatten(0, -2), targets.flatten().long()
    counts = targets != IGNORED
    return logits[counts], targets[counts]


def _decided(name: str, kind: str, logits: Tensor) -> Tensor:
    """What is counted: the class with the largest logit, or for each label whether it is there.
    torchmetrics would look at a batch's values to tell logits from probabilities."""
    if kind == "labels":
        return (logits > 0).long()
    return logits if top(name) else logits.argmax(1)


def _new_tally(name: str, kind: str, classes: int) -> Any:
    """torchmetrics' own, which counts in whole numbers; it meets the other processes here only."""
    from torchmetrics import classification

    options: dict[str, Any] = {"validate_args": False, "sync_on_compute": False}
    if kind == "labels":
        options |= {"num_labels": classes, "ignore_index": IGNORED}
    else:
        options |= {"num_classes": classes}
    if most := top(name):
        options |= {"top_k": most, "average": "micro"}
        return classification.MulticlassAccuracy(**options)
    what = {"f1": "F1Score", "precision": "Precision", "recall": "Recall", "miou": "JaccardIndex"}
    which = what.get(name.partition("_")[0], "Accuracy")
    options["average"] = _AVERAGES.get(name, "macro")
    many = "Multilabel" if kind == "labels" else "Multiclass"
    return getattr(classification, f"{many}{which}")(**options)


def _of_numbers(name: str, predictions: Tensor, targets: Tensor) -> float:
    """Over all numbers that count; `r2` is the mean over outputs."""
    from torchmetrics.functional import regression

    there = ~torch.isnan(targets)
    if name != "r2":
        what = regression.mean_absolute_error if name == "mae" else regression.mean_squared_error
        options = {"squared": name == "mse"} if name != "mae" else {}
        return float(what(predictions[there], targets[there], **options))
    columns = zip(predictions.T, targets.T, there.T, strict=True)
    scores = [regression.r2_score(p[t], y[t]) for p, y, t in columns if t.sum() > 1]
    return float(torch.stack(scores).mean()) if scores else float("nan")


def _against_the_rest(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (elements, classes), and for each class 1 or 0, or what does not count."""
    if targets.dim() > 1:
        return logits.sigmoid(), targets
    return logits.softmax(1), torch.nn.functional.one_hot(targets, logits.shape[1])


def _of_ranks(name: str, scores: Tensor, targets: Tensor) -> float:
    """The mean over the classes that some elements have and some have not; NaN without any."""
    from torchmetrics.functional import classification

    what = getattr(classification, f"binary_{name}")
    found = []
    for score, target in zip(scores.T, targets.T, strict=True):
        counts = target != IGNORED
        if len(target[counts].unique()) > 1:
            found.append(what(score[counts], target[counts].long(), validate_args=False).double())
    return float(torch.stack(found).mean()) if found else float("nan")
