"""`Case`: something to train, drawn from a seed: blocks of a model, a batch, an output, and how it
is trained. A case is JSON, so that one that was found stays what it is when the grammar grows."""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
from functools import cache
from typing import Any

from support.paths import TESTS

PROJECT = TESTS / "attack" / "project"
sys.path.append(str(PROJECT))

Case = dict[str, Any]

BATCHES = {
    "classification": [
        *("pair tuple named dict small nested dataclass packed ragged offsets numpy texts".split()),
        *("soft padded ignored".split()),
    ],
    "model": "pair tuple named dict dataclass packed ragged offsets numpy texts apart".split(),
    "language_modeling": ["tokens"],
}
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    {"name": "adam", "lr": 0.01, "args": {"amsgrad": True}},
    {"name": "adam", "lr": 0.01, "args": {"foreach": True}},
    {"name": "sgd", "lr": 0.05},
    {"name": "sgd", "lr": 0.05, "args": {"momentum": 0.9, "nesterov": True}, "weight_decay": 0.01},
    {"name": "sgd", "lr": 0.05, "args": {"momentum": 0.9, "maximize": True}},
    {"name": "rmsprop", "lr": 0.01, "args": {"centered": True, "momentum": 0.5}},
    {"name": "adagrad", "lr": 0.02},
    {"name": "adadelta", "lr": 0.5},
    {"name": "adamax", "lr": 0.01},
    {"name": "nadam", "lr": 0.01},
    {"name": "radam", "lr": 0.01},
    {"name": "asgd", "lr": 0.01},
    {"name": "rprop", "lr": 0.01},
    {"name": "adafactor", "lr": 0.01},
]
SPARSE = [
    {"name": "sgd", "lr": 0.05},
    {"name": "adagrad", "lr": 0.02},
]
"""What torch gives sparse gradients to, with dense ones beside them."""
SCHEDULES: list[dict[str, Any]] = [
    {"name": "cosine", "warmup_steps": 3, "final": 0.1},
    {"name": "linear", "warmup_steps": 1},
    {"name": "constant", "warmup_steps": 4},
]


@cache
def part(kind: str) -> Any:
    """The project's `models/odd.py` or `datasets/odd.py`, imported without xrun."""
    spec = importlib.util.spec_from_file_location(f"odd_{kind}", PROJECT / kind / "odd.py")
    assert spec
    assert spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(dice: random.Random) -> Case:
    """Any case for one process."""
    blocks_known = sorted({*importlib.import_module("oddities").BLOCKS} - {"unkeyed"})
    task = dice.choice(["classification", "classification", "model", "language_modeling"])
    takes = dice.choice(BATCHES[task])
    blocks = dice.sample(blocks_known, dice.choice([1, 1, 2, 3]))
    micro = dice.choice([2, 3, 4, 6])
    optimizer = dice.choice(SPARSE if "sparse" in blocks else OPTIMIZERS)
    return {
        "task": task,
        "takes": takes,
        "gives": dice.choice(
            sorted(part("models").LOSSES if task == "model" else part("models").LOGITS)
        ),
        "blocks": blocks,
        "data": {
            "n": dice.choice([24, 29, 37]),
            "val": dice.choice([0, 7, 13]),
            "weighted": dice.random() < 0.1,
        },
        "train": {
            "steps": dice.choice([5, 8, 11]),
            "micro_batch": micro,
            "global_batch": micro * dice.choice([1, 2, 3]),
            "seed": dice.randrange(1000),
            "optimizer": optimizer,
            **_sometimes(dice, blocks, optimizer["name"]),
        },
        "auto": dice.random() < 0.05,
        "every": dice.choice([1, 2, 3]),
        "kills": [],
    }


def _sometimes(dice: random.Random, blocks: list[str], optimizer: str) -> dict[str, Any]:
    """Settings of `train` that most recipes leave out."""
    drawn: dict[str, Any] = {}
    if dice.random() < 0.3 and optimizer != "rprop":  # which reads the rate in its first step only
        drawn["schedule"] = dice.choice(SCHEDULES)
    if dice.random() < 0.25:
        drawn["clip_grad_norm"] = dice.choice([0.1, 1.0])
    if dice.random() < 0.3:
        drawn["ema"] = dice.choice([0.5, 0.9, 0.999])
    if dice.random() < 0.15:
        drawn["precision"] = "bf16"
    if dice.random() < 0.4:
        drawn["evaluate"] = {"every": f"{dice.choice([1, 2, 3])} steps"}
    if dice.random() < 0.1:
        drawn["num_workers"] = dice.choice([1, 2])
    if dice.random() < 0.15 and not {*blocks} & {*DEPENDS, "noise"}:
        drawn["activation_checkpointing"] = True
    return drawn


def killed(dice: random.Random) -> Case:
    """A case whose process is killed at some of its micro-batches, each time anew."""
    case = draw(dice)
    train = case["train"]
    per_step = train["global_batch"] // train["micro_batch"]
    calls = train["steps"] * per_step
    case["kills"] = [dice.randint(1, calls) for _ in range(dice.choice([1, 1, 2]))]
    return case


def shared(dice: random.Random) -> Case:
    """A case for two processes: what does not depend on which of them computes a sample, and an
    optimizer that makes a rounding no larger."""
    case = killed(dice)
    train = case["train"]
    alone = set(DEPENDS)
    case["blocks"] = [name for name in case["blocks"] if name not in alone] or ["linear"]
    train["global_batch"] = train["micro_batch"] * dice.choice([2, 4])
    train["optimizer"] = {"name": "sgd", "lr": 0.02}
    train.pop("precision", None)
    train.pop("num_workers", None)
    if dice.random() < 0.4:
        train["reduction"] = "exact"
    if case["gives"] == "short":
        case["gives"] = "logits"
    case["processes"], case["auto"] = 2, False
    return case


DEPENDS = (
    *"batch_norm cumulative_norm bare_norm untracked_norm half_frozen_norm lazy pictures".split(),
    *"counter kinds reassigned growing late aliases seldom momentum extra spectral".split(),
    *"old_spectral bounded clamped rounded".split(),
)
"""Blocks whose state is moved by each call in turn, or that jump where a sum is rounded: they
depend on how many processes there are, and on what is computed again."""


def recipe_of(case: Case) -> str:
    """The recipe that says it; JSON is YAML."""
    args = {"blocks": case["blocks"], "gives": case["gives"], "takes": case["takes"]}
    recipe = {
        "name": "odd",
        "model": {"name": "odd", "args": args},
        "dataset": {"name": "odd", "args": {"takes": case["takes"], **case["data"]}},
        "task": case["task"],
        "train": case["train"] | ({"micro_batch": "auto"} if case["auto"] else {}),
        "hardware": {"local": {"processes": case.get("processes", 1)}},
        "checkpoint": {"every": f"{case['every']} steps"},
    }
    return json.dumps(recipe, indent=1)
