"""`Components`: what a recipe's model and dataset must do, and what is said where one does not.

A mistake in them shows in the first step: what they raise there becomes a ComponentError that names
the file, what was wanted and what was got, with the traceback in the rank's log. The machine's own
troubles (memory, devices, the network) stay what they are, and so does whatever comes later.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from ..data.batch import Batch, described
from ..errors import ComponentError, Stopped, TrainError, XrunError
from .failure import in_project, is_of_the_machine

_BATCHES = {
    "classification": "a dict with `labels`, or a pair (inputs, labels); labels are a tensor",
    "language_modeling": "a dict with `input_ids` and `labels`, tensors of one shape (batch, time)",
    "regression": "a dict with `labels`, or a pair (inputs, labels); labels are numbers",
    "multi_label": (
        "a dict with `labels`, or a pair (inputs, labels); labels are 0 or 1 for each class"
    ),
    "token_classification": "a dict with `labels`, one class per token: (batch, time)",
    "segmentation": "a dict with `labels`, or a pair; labels are classes (batch, height, width)",
    "model": "what the model takes: a dict by name, a tuple one by one, anything else as it is",
}
_OUTPUTS = {
    "classification": (
        "logits, as a tensor, as `.logits` or first in a tuple: (batch, classes), with labels of"
        " more dimensions (batch, classes, ...) or (batch, ..., classes)"
    ),
    "language_modeling": (
        "logits (batch, time, vocabulary), as a tensor, as `.logits` or first in a tuple"
    ),
    "regression": ("one number for each label, as a tensor, as `.logits` or first in a tuple"),
    "multi_label": "one logit for each label, as a tensor, as `.logits` or first in a tuple",
    "token_classification": (
        "logits (batch, time, classes), as a tensor, as `.logits` or first in a tuple"
    ),
    "segmentation": (
        "logits (batch, classes, height, width) of the labels' height and width, as a tensor, as"
        " `.logits` or first in a tuple"
    ),
    "model": (
        "its loss, one number in a tensor with a gradient, or a dict or object with `loss`: a mean"
        " over the micro-batch's samples"
    ),
}
_LISTS = (
    " torch's default_collate turns lists inside of samples; give tensors (Hugging Face:"
    " `.with_format('torch')`) or the split a `collate`."
)
_COMPUTING = ("_loss", "_add", "_train_once", "forward")
"""Functions in which the model is called, with its `batch`."""


@dataclass(frozen=True)
class Components:
    """A run's components as people know them, `models/NAME.py` and `datasets/NAME.py`."""

    model: str = "the model"
    dataset: str = "the dataset"

    def bad_batch(self, task: str, batch: Batch) -> ComponentError:
        """A batch that the task cannot use."""
        return ComponentError(
            f"{self.dataset}: a batch of `task: {task}` is {_BATCHES[task]} (got"
            f" {described(batch)}).",
            _LISTS.strip() if "[" in described(batch) else "",
        )

    def bad_output(self, task: str, got: str, hint: str = "") -> ComponentError:
        """Something that the model returned and the task cannot use."""
        return ComponentError(
            f"{self.model}: a model of `task: {task}` returns {_OUTPUTS[task]}; {got}.", hint
        )

    @contextlib.contextmanager
    def proving(self, task: str, untried: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """While the components have not shown that they work, what they raise is a mistake in them.

        Raises:
            ComponentError: a component has raised something, and it was `untried` then.
            TrainError: the optimizer has.
        """
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            if not untried() or is_of_the_machine(error):
                raise
            if (told := self._told(error, task)) is None:
                raise
            raise told from error

    def _told(self, error: BaseException, task: str) -> XrunError | None:
        """The sentence about an error, by the frames that it came through; None if no component
        and no optimizer is among them."""
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        where = {str(frame.f_globals.get("__name__")).removeprefix("xrun.") for frame in frames}
        what = in_short(error)
        if where & {"data.loader", "data.stream"}:
            return ComponentError(
                f"{self.dataset}: reading a batch failed: {what}{line_of(error, self.dataset)}.",
                looked_for(error) or f"A batch of `task: {task}` is {_BATCHES[task]}.",
            )
        if frame := next(filter(_computes, frames), None):
            got = described(frame.f_locals.get("batch"))
            return ComponentError(
                f"{self.model}: the forward or backward pass failed: {what}"
                f"{line_of(error, self.model)}. The batch was {got}.",
                f"A model of `task: {task}` returns {_OUTPUTS[task]}.",
            )
        if any(map(_steps, frames)):
            return TrainError(
                f"The first step of the optimizer failed: {what}.",
                f"Change train.optimizer or train.clip_grad_norm, or what they cannot handle in"
                f" {self.model}.",
            )
        return None


def in_short(error: BaseException) -> str:
    """An error in one line; a loader's worker tells a whole traceback, which ends with it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1][:300].rstrip(".")
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}".rstrip(": .")


def looked_for(error: BaseException) -> str:
    """Where a file that is not there was looked for; "" of other errors, and of absolute paths."""
    if not re.search(r"No such file or directory: '[^/']", in_short(error)):
        return ""
    return f"A relative path begins at the recipe's project, {os.getcwd()}."


def line_of(error: BaseException, file: str) -> str:
    """Where in this component's file it has happened, or else in the project, as far as its frames
    tell."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename.endswith(f"/{file}")]
    return f" (line {lines[-1]})" if lines else in_project(error)


def _steps(frame: FrameType) -> bool:
    """Whether it is the loop's, in which gradients are clipped and the optimizer steps."""
    where = str(frame.f_globals.get("__name__")), frame.f_code.co_name
    return where[0] == "xrun.training.loop" and where[1] in ("_clip", "_optimize")


def _computes(frame: FrameType) -> bool:
    """Whether it is one of xrun's own in which a batch is computed, forward and backward."""
    own = str(frame.f_globals.get("__name__")).startswith("xrun.training.")
    return own and frame.f_code.co_name in _COMPUTING
