"""What a plain torch loop makes of a case: the right answer.

Written without xrun, but for what xrun promises and is tested elsewhere: which samples a step
trains on (`Sampler`), and from which key its random numbers come (`seed_generators`). Everything
else, from the loss to the moving average, is as one would write it by hand, in the order of sums
that the documentation gives: a step's loss is the sum over its micro-batches, divided by what
counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from xrun.data.randomness import DATA, EVALUATION, INIT, LOOP, seed_generators
from xrun.data.sampler import Sampler

from .cases import Case, part

FUSED = {"adam", "adamw", "sgd", "adagrad"}
KINDS = {
    kind.__name__.lower(): kind for kind in vars(torch.optim).values() if isinstance(kind, type)
}


@dataclass
class Answer:
    """Losses by step, evaluations by step, and the final weights by the names of the state_dict."""

    losses: dict[int, float] = field(default_factory=dict)
    evaluated: dict[int, float] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)


def answer(case: Case) -> Answer:
    """Train it; raises whatever torch raises."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module of properties
    return Loop(case).run()


class Loop:
    """The loop and its parts."""

    def __init__(self, case: Case) -> None:
        self.case, self.train = case, dict(case["train"])
        if case["auto"]:  # everything fits
            self.train["micro_batch"] = self.train["global_batch"]
        self.seed = self.train["seed"]
        seed_generators(self.seed, INIT, 1)
        self.splits = part("datasets").build(case["takes"], **case["data"])
        self.model = self.built()
        self.average = self.built() if "ema" in self.train else None
        self.optimizer = optimizer_of(self.train["optimizer"], self.model)
        self.answer = Answer()

    def built(self) -> nn.Module:
        """The model of the seed, a new one each time; what is lazy in it has got its shape, and
        nothing else has happened to it."""
        model = self.fresh()
        if any(map(is_lazy, named_tensors(model).values())):
            model.load_state_dict(self.shapes(self.fresh()), strict=False)
        return model

    def fresh(self) -> nn.Module:
        """As the project builds it."""
        seed_generators(self.seed, INIT, 0)
        return part("models").build(self.case["blocks"], self.case["gives"], self.case["takes"])

    def shapes(self, model: nn.Module) -> dict[str, Tensor]:
        """What its lazy modules begin with, when two samples come by."""
        begun: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if any(map(is_lazy, [*module.parameters(False), *module.buffers(False)])):
                module.register_forward_pre_hook(partial(note, begun, name))
        batch = self.batch("train", Slice(0, np.arange(2)), DATA)
        seed_generators(self.seed, INIT, 2)
        with torch.no_grad():
            self.loss(model, batch, 2)
        return begun

    def run(self) -> Answer:
        """From step 0 to the last."""
        steps = self.train["steps"]
        split = self.splits["train"]
        batch, micro = self.train["global_batch"], self.train["micro_batch"]
        sampler = Sampler(len(split), batch, micro, self.seed, getattr(split, "weights", None))
        for step in range(steps):
            self.step(step, [piece for piece in sampler.step(step, 0, 1) if piece.weight])
            self.evaluate(step + 1)
        final = self.model if self.average is None else self.average
        self.answer.weights = final.state_dict()
        return self.answer

    def step(self, step: int, pieces: list[Any]) -> None:
        """One optimizer step."""
        batches = [self.batch("train", piece, DATA) for piece in pieces]
        samples = [len(piece.indices) for piece in pieces]
        count = sum(map(self.count, batches, samples)) or 1
        self.optimizer.zero_grad(set_to_none=True)
        sums = []
        for piece, batch, size in zip(pieces, batches, samples, strict=True):
            seed_generators(self.seed, LOOP, step, piece.slot)
            loss = self.loss(self.model, batch, size)
            (loss / count).backward()
            sums.append(float(loss.detach()))
        self.answer.losses[step + 1] = sum(sums, 0.0) / count
        if not math.isfinite(self.answer.losses[step + 1]):
            raise FloatingPointError("the loss is not finite")
        if limit := self.train.get("clip_grad_norm"):
            nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.train, step)
        self.optimizer.step()
        self.move_average(step == 0)

    def batch(self, name: str, piece: Any, purpose: int) -> Any:
        """The samples of a micro-batch, collated, with tensors for arrays."""
        split = self.splits[name]
        seed_generators(self.seed, purpose, piece.epoch, piece.number)
        batch = split.collate([split[i] for i in piece.indices.tolist()])
        if isinstance(batch, dict):
            arrays = {
                k: torch.tensor(v.copy("C")) for k, v in batch.items() if isinstance(v, np.ndarray)
            }
            return {**batch, **arrays}
        return batch

    def loss(self, model: nn.Module, batch: Any, samples: int) -> Tensor:
        """The sum over a micro-batch."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.train.get("precision") == "bf16"):
            if self.case["task"] == "model":
                return own_loss(called(model, batch)).reshape(()) * samples
            inputs, labels = parted(batch)
            logits = logits_of(inputs(model)).float()
            if self.case["task"] == "language_modeling":
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            if labels.dim() > 1 and not labels.is_floating_point():
                logits, labels = logits.flatten(0, -2), labels.flatten()
            labels = labels if labels.is_floating_point() else labels.long()
            return functional.cross_entropy(logits, labels, reduction="sum")

    def count(self, batch: Any, samples: int) -> int:
        """What a micro-batch adds to the number that the loss is a mean over."""
        if self.case["task"] == "model":
            return samples
        labels = parted(batch)[1]
        if self.case["task"] == "language_modeling":
            labels = labels[:, 1:]
        return samples if labels.is_floating_point() else int((labels != -100).sum())

    def evaluate(self, step: int) -> None:
        """The mean loss over `val`, each module in the mode in which it was afterwards."""
        every = self.train.get("evaluate", {}).get("every", "0").split()[0]
        due = step == self.train["steps"] or (int(every) and step % int(every) == 0)
        if "val" not in self.splits or not due:
            return
        model = self.model if self.average is None else self.average
        modes = {module: module.training for module in model.modules()}
        model.eval()
        sums, counts = [], 0
        with torch.no_grad():
            for piece in pieces_of(len(self.splits["val"]), self.train["micro_batch"]):
                batch = self.batch("val", piece, EVALUATION)
                counts += self.count(batch, len(piece.indices))
                seed_generators(self.seed, EVALUATION, 0, piece.number)
                sums.append(float(self.loss(model, batch, len(piece.indices))))
        for module, mode in modes.items():
            module.training = mode
        if counts:
            self.answer.evaluated[step] = math.fsum(sums) / counts

    def move_average(self, first: bool) -> None:
        """It begins after the first step; real and complex numbers follow, whole ones are the
        newest, as is what is new or has another shape."""
        if self.average is None:
            return
        averages = named_tensors(self.average)
        with torch.no_grad():
            for name, new in named_tensors(self.model).items():
                kept = averages.get(name)
                if kept is None or kept.shape != new.shape:
                    owner, _, own = name.rpartition(".")
                    setattr(self.average.get_submodule(owner), own, new.clone())
                elif not first and (kept.is_floating_point() or kept.is_complex()):
                    kept.lerp_(new, 1 - self.train["ema"])
                else:
                    kept.copy_(new)


@dataclass
class Slice:
    """A batch of evaluation, as the sampler's pieces are."""

    number: int
    indices: Any
    epoch: int = 0


def pieces_of(samples: int, size: int) -> Iterable[Slice]:
    """Every sample once, in order."""
    for number, start in enumerate(range(0, samples, size)):
        yield Slice(number, np.arange(start, min(start + size, samples)))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def note(begun: dict[str, Tensor], name: str, module: nn.Module, *_: Any) -> None:
    """Of a lazy module that has its shape since just now."""
    for key, value in module.state_dict().items():
        begun[f"{name}.{key}"] = value.clone()


def called(model: nn.Module, batch: Any) -> Any:
    """A dict by name, a tuple one by one, anything else as it is."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def parted(batch: Any) -> tuple[Any, Tensor]:
    """A call of a model with the batch's inputs, and the labels."""
    if isinstance(batch, tuple | list):
        return (lambda model: model(batch[0])), batch[1]
    if isinstance(batch, dict):
        named = {name: value for name, value in batch.items() if name != "labels"}
        return (lambda model: model(**named)), batch["labels"]
    return (lambda model: model(batch)), batch.labels


def logits_of(output: Any) -> Any:
    """By name, or the first."""
    if isinstance(output, dict):
        return output["logits"]
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def own_loss(output: Any) -> Tensor:
    """By name, or the only one that is one number."""
    if isinstance(output, dict):
        return output["loss"]
    if isinstance(output, Tensor) or not hasattr(output, "loss"):
        parts = output if isinstance(output, tuple) else (output,)
        return next(each for each in parts if isinstance(each, Tensor) and each.numel() == 1)
    return output.loss


def optimizer_of(told: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """torch's own, without decay for what has one dimension, fused where torch can be."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    flat = {name for name, p in named if p.dim() < 2}
    decay = told.get("weight_decay", 0.0)
    groups = [
        {
            "params": [p for name, p in named if not decay or name not in flat],
            "weight_decay": decay,
        },
        {"params": [p for name, p in named if decay and name in flat], "weight_decay": 0.0},
    ]
    options = {"lr": told["lr"], **told.get("args", {})}
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    real = all(p.is_floating_point() for _, p in named)
    if told["name"] in FUSED and real and not sparse and "foreach" not in options:
        options["fused"] = True
    return KINDS[told["name"]]([group for group in groups if group["params"]], **options)


def rate(train: dict[str, Any], step: int) -> float:
    """Warm-up in a line, then the schedule down to `final`."""
    lr, told = train["optimizer"]["lr"], train.get("schedule", {})
    warm, final = told.get("warmup_steps", 0), told.get("final", 0.0)
    if step < warm:
        return lr * (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, train["steps"] - warm))
    if told.get("name") == "cosine":
        return lr * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    return lr * (1 - (1 - final) * done) if told.get("name") == "linear" else lr
