"""A model and its task as one module: a batch goes in, sums come out.

Sums, not means, because a step's loss is the sum over all of its micro-batches on all processes
divided by what the global batch counts: samples for a model's own loss, labels that are not ignored
otherwise. So an incomplete last batch is right, and so is any number of processes. How many samples
a batch has is told, never guessed from its tensors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batch import Batch, described
from ..errors import ComponentError
from .classes import Classes, Shapes, fit
from .compiled import Compiled
from .contract import Components
from .fitting import doubt, would_fit
from .tasks import LEAST, count, laid_out, loss_sum, right, wanted
from .twin import twin

Sums = dict[str, Tensor]
"""`loss` and metrics summed over what `count` counts."""
_NAMELESS = Components()


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Objective(nn.Module):
    """Wraps a user's model; `forward(batch, samples)` gives the micro-batch's sums, metrics only in
    evaluation mode."""

    def __init__(self, model: nn.Module, task: str, components: Components = _NAMELESS) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.compiled: Compiled | None = None
        self.whole = True
        """Whether the batch that comes is a whole one; a short one is not compiled."""
        self.components = components
        self.doubtful = False
        """Whether the values of the next batch are looked at, as those of a run's first one."""
        self.seen: list[tuple[Tensor, Tensor]] | None = None
        """Where the predictions of a batch and what they should be are put in evaluation mode."""
        self.no_numbers: dict[str, str] = {}
        """What a model with a loss of its own has returned last that is no number, by its kind."""
        self.on_device: Callable[[Batch], Batch] = _as_it_is
        """What the dataset does with a batch once it lies where the model is."""
        self.others: Callable[[], Iterable[Batch]] = tuple
        """A few batches of other samples."""
        self.classes = Classes(self._shapes_of_others)

    def forward(self, batch: Batch | None, samples: int = 0) -> Sums:
        """The sums of one micro-batch of so many samples; without a batch, a zero that depends on
        every trainable parameter.

        Raises:
            ComponentError: the batch or what the model makes of it does not fit the task.
        """
        if batch is None:
            return {"loss": zero_of(p for p in self.parameters() if p.requires_grad)}
        if self.task == "model":
            return self._own_loss(batch, samples)
        logits, named = self._logits(batch)
        given = logits, self._labels(batch)
        logits, labels = self._laid_out(*given, named)
        if self.doubtful:
            self._look_at(batch, given, (logits, labels))
        sums = {"loss": loss_sum(self.task, logits, labels)}
        if not self.training and (found := right(self.task, logits, labels)) is not None:
            sums["accuracy"] = found
        if self.seen is not None and not self.training:
            self.seen.append((logits, wanted(self.task, labels)))
        return sums

    def check_after_forward(self) -> None:
        """Look once, after the next batch, whether the model has the parameters that it was built
        with; others would not be trained, and not come back on a resume."""
        known = dict(self.model.named_parameters())

        def check(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
            if inputs[0] is None:
                return
            handle.remove()
            late = [name for name, _ in self.model.named_parameters() if name not in known]
            if late:
                raise ComponentError(
                    f"{self.components.model}: the forward pass makes the parameter {late[0]}, and"
                    " the optimizer only trains those that build() has made.",
                    "Make it in build(), or take a lazy module such as nn.LazyLinear.",
                )

        handle = self.register_forward_hook(check)

    @property
    def _call(self) -> Callable[..., Any]:
        """What computes a batch: the model, or its compiled call."""
        if self.compiled is None or not self.whole:
            return self.model
        return functools.partial(self.compiled, self.model)

    def count(self, batch: Batch, samples: int) -> int:
        """What the loss of a batch is a mean over: its samples where the model has a loss of its
        own, else its labels that are not ignored."""
        if self.task == "model":
            return samples
        return count(self.task, self._labels(batch))

    @property
    def counts_samples(self) -> bool:
        """Whether `count` is the number of samples, so that every process knows the global batch's
        without asking."""
        return self.task == "model"

    def _labels(self, batch: Batch) -> Tensor:
        if _is_pair(batch):
            labels = batch[1]
        else:
            named = isinstance(batch, Mapping)
            labels = batch.get("labels") if named else getattr(batch, "labels", None)
        if not isinstance(labels, Tensor) or labels.dim() < LEAST.get(self.task, 1):
            raise self.components.bad_batch(self.task, batch)
        return labels

    def _logits(self, batch: Batch) -> tuple[Tensor, bool]:
        """The model's logits, and whether it has named them."""
        output = _output(self._call, self.on_device(batch))
        logits = _logits_in(output)
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            raise self.components.bad_output(self.task, f"it returned {described(output)}")
        return logits, not isinstance(output, Tensor | tuple | list)

    def _laid_out(self, logits: Tensor, labels: Tensor, named: bool) -> tuple[Tensor, Tensor]:
        """Logits and labels as the task's loss takes them."""
        if self.task not in ("classification", "language_modeling"):
            fitting = laid_out(self.task, logits, labels)
            self._check(fitting is not None, logits, labels)
            return fitting or (logits, labels)
        if self.task == "language_modeling":
            self._check(logits.dim() == 3 and logits.shape[:2] == labels.shape, logits, labels)
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        elif not labels.is_floating_point():
            logits, labels = self._classes_second(logits, labels, named)
        self._check(fit(logits, labels), logits, labels)
        return logits, labels

    def _classes_second(self, logits: Tensor, labels: Tensor, named: bool) -> tuple[Tensor, Tensor]:
        """Logits and labels with the classes in the second dimension, where torch's cross entropy
        wants them."""
        if labels.dim() > 1 and self.classes.are_last(logits, labels, named):
            return logits.flatten(0, -2), labels.flatten()
        return logits, labels

    def _shapes_of_others(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels of other batches, by a copy of the model: nothing of it changes."""
        probe = twin(
            self.model,
            f"{self.components.model}: which dimension of the logits holds the classes is tried on"
            " a copy of the model",
            "Return logits with the classes in the second dimension, for samples of another length"
            " than there are classes.",
        )
        probe.eval()
        for batch in self.others():
            with torch.no_grad():
                logits = _logits_in(_output(probe, self.on_device(batch)))
            yield logits, self._labels(batch)

    def _check(self, fits: bool, logits: Tensor, labels: Tensor) -> None:
        if not fits:
            got = f"its logits are {described(logits)} for labels {described(labels)}"
            raise self.components.bad_output(self.task, got, would_fit(logits, labels, self.task))

    def _look_at(self, batch: Batch, given: Shapes, rows: Shapes) -> None:
        """The first batch of a run is one that its task means; `rows` is what is `given` as the
        loss takes it."""
        self.doubtful = False
        logits, labels = given
        shown = given if self.task == "language_modeling" else rows
        if told := doubt(self.task, self.model, batch, *shown):
            what = f"its logits are {described(logits)} for labels {described(labels)}: {told[0]}"
            raise self.components.bad_output(self.task, what, told[1])

    def _own_loss(self, batch: Batch, samples: int) -> Sums:
        output = _called(self._call, self.on_device(batch))
        values = _values_in(output)
        if "count" in values:
            raise ComponentError(
                f"{self.components.model}: the model returns `count`, but its loss must be a mean"
                " over the micro-batch's samples.",
                "Return the mean over samples and no `count`.",
            )
        loss = values.get("loss")
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise self.components.bad_output(self.task, f"it returned {described(output)}")
        if self.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise self.components.bad_output(
                self.task, "its loss has no gradient (is it detached, or a constant?)"
            )
        values["loss"] = loss.reshape(()) if loss.dim() else loss
        if self.seen is not None and not self.training:
            self.seen.append(self._predictions(values, output))
        found = {name: _scalar(value, values["loss"]) for name, value in values.items()}
        self.no_numbers = {
            name: _kind(values[name]) for name, value in found.items() if value is None
        }
        return {name: value * samples for name, value in found.items() if value is not None}

    def _predictions(self, values: Mapping[str, Any], output: Any) -> tuple[Tensor, Tensor]:
        """What a model with a loss of its own gives for metrics over the whole split."""
        predictions, targets = values.get("preds"), values.get("target")
        if isinstance(predictions, Tensor) and isinstance(targets, Tensor):
            return predictions, targets
        raise ComponentError(
            f"{self.components.model}: train.evaluate.metrics: a model of `task: model` returns"
            " `preds` and `target`, two tensors, beside its loss while it is evaluated; it returned"
            f" {described(output)}."
        )


def _scalar(value: Any, loss: Tensor) -> Tensor | None:
    """A tensor with one number, or a number of Python or numpy as one, in fp32 whatever the loss
    is; None of anything else."""
    if isinstance(value, int | float | np.number | np.bool_):
        return torch.full((), float(value), dtype=torch.float32, device=loss.device)
    return value if isinstance(value, Tensor) and not value.dim() else None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of the shape {tuple(value.shape)}"
    return f"something of the type {type(value).__name__}"


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """A zero that depends on these parameters."""
    parts = (torch.view_as_real(p) if p.is_complex() else p for p in parameters)
    return sum((part.sum() * 0 for part in parts), torch.zeros(()))


def _output(model: Callable[..., Any], batch: Batch) -> Any:
    """What the model makes of a batch without its labels."""
    if _is_pair(batch):
        return model(batch[0])
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name != "labels"})
    return model(batch)


def _is_pair(batch: Batch) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def _called(model: Callable[..., Any], batch: Batch) -> Any:
    """What a plain torch loop calls: names by name, a tuple one by one, anything else as it is."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def _logits_in(output: Any) -> Any:
    """The tensor itself, what is called `logits`, or the first thing of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output.get("logits")
    if isinstance(output, tuple | list) and not hasattr(output, "logits"):
        return output[0] if output else None
    return getattr(output, "logits", None)


def _values_in(output: Any) -> dict[str, Any]:
    """What a model with a loss of its own returns, by names; a plain tuple's only scalar is its
    loss, else its only tensor with one number."""
    if isinstance(output, Mapping):
        return dict(output.items())
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if dataclasses.is_dataclass(output):
        return {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    if isinstance(output, tuple | list):
        tensors = [each for each in output if isinstance(each, Tensor) and each.numel() == 1]
        scalars = [each for each in tensors if not each.dim()] or tensors
        return {"loss": scalars[0]} if len(scalars) == 1 else {}
    return {"loss": getattr(output, "loss", output)}


def means(sums: Mapping[str, float], count: float, task: str) -> dict[str, float]:
    """Turn sums over `count` into the values that are logged."""
    values = {name: value / count for name, value in sums.items()} if count else {}
    if task == "language_modeling" and "loss" in values:
        values["perplexity"] = float(torch.exp(torch.tensor(values["loss"], dtype=torch.float64)))
    return values
