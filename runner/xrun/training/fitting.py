"""Which task fits what a model and a dataset give, where the recipe's does not.

Shapes are looked at in every batch. Values are looked at once, in the first batch of a run that has
trained nothing yet: some batches train without a word on what nobody has meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..data.batch import Batch
from .tasks import IGNORED, counted, laid_out

_NO_CAUSAL = ("ForTokenClassification", "ForMaskedLM")
"""How transformers calls models that do not predict the next token."""
_SURE = 1e-2
"""By so much the probabilities of a sample may sum to more than 1."""


def tasks_for(logits: Tensor, labels: Tensor) -> list[str]:
    """The tasks that these would fit, the likeliest first."""
    if laid_out("regression", logits, labels) is not None:
        return _of_one_shape(labels)
    if labels.is_floating_point():
        return []
    if logits.dim() == 2 and logits.shape[:1] == labels.shape:
        return ["classification"]
    known = ("token_classification", "segmentation")
    return [task for task in known if laid_out(task, logits, labels) is not None]


def _of_one_shape(labels: Tensor) -> list[str]:
    """An output for each label: whether they are probabilities, marks or any numbers."""
    marks = bool(((labels == 0) | (labels == 1))[counted("multi_label", labels)].all())
    several = labels.dim() > 1 and labels.shape[1] > 1
    if labels.is_floating_point() and several and bool((labels.sum(1) - 1).abs().max() < _SURE):
        return ["classification"]
    return ["multi_label", "regression"] if marks else ["regression"]


def would_fit(logits: Tensor, labels: Tensor, task: str) -> str:
    """That as a sentence; empty if no other task fits."""
    others = [f"`task: {each}`" for each in tasks_for(logits, labels) if each != task]
    if not others:
        return ""
    return f"These fit {' or '.join(others)}."


def doubt(
    task: str, model: nn.Module, batch: Batch, logits: Tensor, labels: Tensor
) -> tuple[str, str] | None:
    """What is wrong with values that would be trained on, and the way out."""
    if task == "language_modeling":
        return _no_next_token(model, batch, labels)
    if task == "multi_label":
        return _no_marks(labels)
    if task == "regression":
        return None
    if labels.is_floating_point():
        return _no_probabilities(labels)
    if task == "token_classification" and (told := _own_inputs(batch, labels)):
        return told
    return _no_classes(logits, labels)


def _no_next_token(model: nn.Module, batch: Batch, labels: Tensor) -> tuple[str, str] | None:
    """A language model's labels are its inputs; the next token is found by xrun."""
    kinds = [type(module).__name__ for module in model.modules()]
    if name := next((kind for kind in kinds if kind.endswith(_NO_CAUSAL)), ""):
        what = f"a {name} does not predict the next token"
        return what, "`task: token_classification` compares each token with the label at its place."
    inputs = _inputs(batch)
    if inputs is None or inputs.shape != labels.shape:
        return None
    counts = labels[:, 1:] != IGNORED
    count, same = int(counts.sum()), int((labels == inputs)[:, 1:][counts].sum())
    if same * 4 >= count:
        return None
    if 2 * int((labels[:, :-1] == inputs[:, 1:]).sum()) > count:
        return (
            "its labels are shifted by one already, and this task shifts them",
            "Give the inputs as labels, or use `task: token_classification`, which does not shift.",
        )
    what = (
        f"only {same} of the {count} labels that count equal the input at their place, and this"
        " task trains each position to predict the label after its own"
    )
    return what, "`task: token_classification` compares each position with the label at its place."


def _own_inputs(batch: Batch, labels: Tensor) -> tuple[str, str] | None:
    inputs = _inputs(batch)
    if inputs is None or inputs.numel() != labels.numel():
        return None
    counts = labels != IGNORED
    if not counts.any() or not bool((labels == inputs.flatten())[counts].all()):
        return None
    return (
        "its labels are its inputs, so it would learn to repeat each token",
        "`task: language_modeling` trains it to predict the next one.",
    )


def _inputs(batch: Batch) -> Tensor | None:
    """The tokens that the model is given."""
    found: Any = batch
    if isinstance(batch, tuple | list) and len(batch) == 2:
        found = batch[0]
    if isinstance(found, Mapping):
        found = found.get("input_ids")
    return found if isinstance(found, Tensor) and not found.is_floating_point() else None


def _no_marks(labels: Tensor) -> tuple[str, str] | None:
    known = labels[counted("multi_label", labels)]
    if not known.numel() or (known.min() >= 0 and known.max() <= 1):
        return None
    least, most = known.min().item(), known.max().item()
    return (
        f"its labels go from {least:g} to {most:g}, and each says whether something is there",
        "Numbers are for `task: regression`; one class of several is for `task: classification`.",
    )


def _no_probabilities(labels: Tensor) -> tuple[str, str] | None:
    sums = labels.sum(1) if labels.dim() > 1 else labels
    if labels.min() >= 0 and sums.max() <= 1 + _SURE:
        return None
    fits = _of_one_shape(labels)[0]
    return (
        f"its labels are no probabilities: those of a sample sum to {sums.max().item():g}",
        f"Use `task: {fits}`, or give each sample one class as a whole number.",
    )


def _no_classes(logits: Tensor, labels: Tensor) -> tuple[str, str] | None:
    """`logits` have the classes in the second dimension."""
    classes, labels = logits.shape[1], labels.long()
    if classes == 1:
        return (
            "there is one logit for each label, so the loss is 0 whatever it says",
            f"Use `task: {_of_one_shape(labels)[0]}`.",
        )
    known = labels[labels != IGNORED]
    if not known.numel() or (known.min() >= 0 and known.max() < classes):
        return None
    worst = int(known.max() if known.max() >= classes else known.min())
    return (
        f"a label is {worst}, and there are the classes 0 to {classes - 1}",
        f"Give the model as many classes as there are; what is not to count is {IGNORED}.",
    )
