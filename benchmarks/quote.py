"""Row 16: the most bytes of tensors that a step takes, as `xrun plan` predicts by shapes alone,
over what torch's MemTracker counts on real tensors: the shipped models, at three micro-batches.

Both see two micro-batches whose gradients add up, and a step of the optimizer. The worst deviation
counts; FLOPs stand beside.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.result import Row, main
from xrun.components import use_project
from xrun.data.batch import leaves
from xrun.data.loader import Fetch
from xrun.recipe.schema import Recipe
from xrun.training.costed import Batches, Costing, tried
from xrun.training.instances import build_splits
from xrun.training.micro_batch import first_batch

PROJECT = Path(__file__).parents[1]
TOKENS = {"kind": "tokens", "shape": 128, "classes": 256}
LORA = {"name": "lora", "args": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}}


@dataclass(frozen=True)
class Case:
    """A shipped model with its arguments, on made-up samples."""

    model: str
    args: Mapping[str, Any]
    data: Mapping[str, Any]
    task: str = "classification"
    train: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = (2, 8, 16)

    def recipe(self, samples: int) -> Recipe:
        """Its recipe, with micro-batches of so many samples."""
        train = {"steps": 1, "global_batch": 2 * samples, "micro_batch": samples, **self.train}
        return Recipe.model_validate(
            {
                "name": "quote",
                "model": {"name": self.model, "args": self.args, **self.more},
                "dataset": {"name": "synthetic", "args": {"samples": 64, **self.data}},
                "task": self.task,
                "train": train,
            }
        )


GPT = {"vocab": 256, "context": 128, "width": 128, "depth": 4, "heads": 4}
LLAMA = {"vocab": 256, "width": 128, "depth": 4, "heads": 4, "context": 128}
VIT = {
    "image_size": 32,
    "patch_size": 4,
    "channels": 3,
    "classes": 10,
    "width": 128,
    "depth": 4,
    "heads": 4,
}
PICTURES = {"shape": [3, 32, 32], "classes": 10}
CASES = {
    "mlp": Case("mlp", {"inputs": 256, "hidden": 512, "depth": 3, "classes": 10}, {"shape": 256}),
    "vit": Case("vit", VIT, PICTURES),
    "vit, bf16": Case("vit", VIT, PICTURES, train={"precision": "bf16"}),
    "gpt": Case("gpt", GPT, TOKENS, "language_modeling"),
    "gpt, bf16": Case("gpt", GPT, TOKENS, "language_modeling", {"precision": "bf16"}),
    "gpt, activations computed again": Case(
        "gpt", GPT, TOKENS, "language_modeling", {"activation_checkpointing": True}
    ),
    "llama": Case("llama", LLAMA, TOKENS, "language_modeling"),
    "flow": Case("flow", {"image_size": 32, "width": 32}, PICTURES, "model"),
}

ADAPTED = Case(
    "llama", LLAMA, TOKENS, "language_modeling", more={"adapter": LORA, "frozen": "fp32"}
)
"""MemTracker refuses frozen weights, so this one is no row."""


def predicted(recipe: Recipe, batch: Any) -> tuple[int, float]:
    """Bytes, and FLOPs of a micro-batch, by shapes alone."""
    samples = int(recipe.train.micro_batch)
    cost = tried(recipe, PROJECT, Batches({samples: batch}, {}))
    return cost.bytes_of(recipe.train, samples, 1), cost.trials[0].flops


def real(recipe: Recipe, batch: Any) -> int:
    """Bytes by torch's MemTracker, of tensors with numbers."""
    samples = int(recipe.train.micro_batch)
    costing = Costing.of(recipe, PROJECT, batch, None)
    objective, optimizer = costing.objective, costing.optimizer
    bits16 = recipe.train.precision != "fp32"

    def compute() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bits16):
            loss = objective(batch, samples)["loss"]
        loss.backward()

    compute()
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    tracker: Any = MemTracker()
    tracker.track_external(objective, optimizer, *(x for x in leaves(batch)))
    with tracker:
        compute()
        tracker.reset_mod_stats()
        compute()
        optimizer.step()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def batch_of(recipe: Recipe) -> Any:
    """Its first micro-batch."""
    split = build_splits(recipe, PROJECT)["train"]
    return first_batch(Fetch(split, recipe.train.seed), int(recipe.train.micro_batch))


def measure(quick: bool) -> Iterator[Row]:
    use_project(PROJECT)
    off, told = [], dict[str, dict[str, float]]()
    for name, case in CASES.items():
        for size in case.sizes[:1] if quick else case.sizes:
            recipe = case.recipe(size)
            batch = batch_of(recipe)
            (foreseen, flops), seen = predicted(recipe, batch), real(recipe, batch)
            off.append(abs(foreseen / seen - 1))
            told[f"{name}, {size}"] = {
                "predicted MiB": foreseen / 2**20,
                "MemTracker MiB": seen / 2**20,
                "GFLOP": flops / 1e9,
            }
    yield Row(
        row=16,
        name="memory of a step, predicted over MemTracker's: the worst deviation",
        value=max(off),
        target=0.10,
        better="lower",
        peers={},
        spread=(min(off), max(off)),
        also=told,
    )


if __name__ == "__main__":
    main(measure)
