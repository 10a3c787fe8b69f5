"""Tries that check a recipe: valid ones, ones with pieces changed, and garbage.

`xrun check` answers 0 or 2 within a few seconds, in text that a terminal can show; a valid recipe
is fine, and whoever writes it in another order has the same run.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from support.mutations import OVERRIDES, mutated_bytes, mutated_nodes
from support.recipes import OLD, SHIPPED
from xrun.recipe.load import load_recipe
from xrun.run.plan import Plan, make_plan

from .lives import Wrong, command, no_traceback

Case = dict[str, Any]
SECONDS = 5.0
SHOWN = {"\n", "\t"}


def draw(dice: random.Random) -> Case:
    """A file's bytes, overrides, and whether it is fine (None: nobody knows)."""
    make, fine = dice.choice([(valid, True), (changed, None), (changed, None), (garbage, None)])
    text = make(dice)
    overrides = [] if fine else dice.sample(OVERRIDES, dice.choice([0, 0, 0, 1, 2]))
    return {
        "text": base64.b64encode(text).decode(),
        "overrides": overrides,
        "fine": fine,
        "order": dice.randrange(1000),
    }


def valid(dice: random.Random) -> bytes:
    """A recipe of many keys in which nothing is wrong."""
    micro, steps = dice.choice([1, 2, 8]), dice.randint(20, 400)
    size: dict[str, Any] = dice.choice([{"steps": steps}, {"epochs": dice.randint(2, 9)}])
    train = {**size, "micro_batch": micro, "global_batch": micro * dice.choice([1, 4, 16])}
    for key, values in CHOICES.items():
        if dice.random() < 0.3:
            train[key] = dice.choice(values)
    recipe = {
        "name": dice.choice(["a", "abc-1", "x" * 28]),
        "model": {
            "name": "mlp",
            "args": {"inputs": 64, "classes": 10, "hidden": dice.randint(1, 99)},
        },
        "dataset": {"name": "digits", "args": dice.choice([{}, {"augment": True}])},
        "task": "classification",
        "train": train,
    }
    recipe |= dict(dice.sample(PARTS, dice.randint(0, 3)))
    return yaml.safe_dump(recipe, sort_keys=dice.random() < 0.5).encode()


CHOICES: dict[str, list[Any]] = {
    "precision": ["fp32", "bf16"],
    "optimizer": [{"name": "sgd", "lr": 0.5}, {"lr": 1e-4, "weight_decay": 0.1}, {"name": "RAdam"}],
    "schedule": [{"name": "cosine", "warmup_steps": 7}, {"name": "linear", "final": 0.5}],
    "clip_grad_norm": [1, 0.25],
    "seed": [0, 1, 2**63 - 1],
    "deterministic": [True, False],
    "ema": [0.5, 0.9999],
    "evaluate": [
        {"every": "5 steps"},
        {"metric": "accuracy"},
        {"every": "1 epochs", "mode": "max"},
    ],
    "num_workers": [0, 3],
    "log_every": [1, 50],
    "compile": [False],
}
PARTS: list[tuple[str, Any]] = [
    ("checkpoint", {"every": "90s", "keep": 3}),
    ("checkpoint", {"every": "10 steps", "keep_every": "20 steps"}),
    ("tracking", {"wandb": {"project": "p", "tags": ["a", "é"]}}),
    ("budget", {"hours": 2.5}),
    ("env", {"A": "1", "B_C": ""}),
    ("secrets", ["MY_KEY"]),
    ("version", 1),
    ("hardware", "local"),
    ("hardware", {"local": {"processes": 1}}),
]


def changed(dice: random.Random) -> bytes:
    """A recipe in which something was changed that nobody meant."""
    text = dice.choice([*SHIPPED, *OLD]).read_bytes() if dice.random() < 0.6 else valid(dice)
    return dice.choice([mutated_bytes, mutated_nodes])(text, dice)


def garbage(dice: random.Random) -> bytes:
    """What is no recipe at all."""
    return dice.choice(GARBAGE)(dice)


def _text(dice: random.Random) -> str:
    return "".join(dice.choice(SIGNS) for _ in range(dice.randint(1, 40)))


SIGNS = [
    *"abc:-{}[],&*!|>%@`'\"# \n\t0123456789.",
    "\x1b[31m",
    "\x07",
    "‮",
    "\x9b",
    "é",
    "日",
    "\\x1b",
]
GARBAGE: list[Callable[[random.Random], bytes]] = [
    lambda dice: dice.randbytes(dice.randint(0, 300)),
    lambda dice: _text(dice).encode(),
    lambda dice: f"name: {json.dumps(_text(dice))}\nmodel: {json.dumps(_text(dice))}\n".encode(),
    lambda dice: f"{json.dumps(_text(dice))}: {json.dumps(_text(dice))}\n".encode(),
    lambda dice: b"[" * dice.choice([10, 1000, 50_000]),
    lambda dice: b"a: " * dice.choice([10, 1000]) + b"1",
    lambda dice: b"- " * dice.choice([10, 1000, 20_000]) + b"1",
    lambda dice: b"".join(b"k%d: 1\n" % n for n in range(dice.choice([10, 300, 2000]))),
    lambda dice: (
        b"a: &a [1,2]\n"
        + b"".join(
            b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c]\n" % (98 + n, 98 + n, *[97 + n] * 6)
            for n in range(9)
        )
    ),
    lambda dice: b"a: &a [*a]\nname: *a\n",
    lambda dice: b"name: " + b"9" * dice.choice([10, 5000, 50_000]),
    lambda dice: (
        b"name: !!"
        + dice.choice([b"binary =", b"set {a}", b"timestamp x", b"int a", b"python/name:os.system"])
    ),
    lambda dice: (
        b"name: "
        + dice.choice([b"2024-13-45", b"1:99:99", b"0b2", b"0o9", b".inf", b"-.nan", b"1e400"])
    ),
    lambda dice: ("name: a\n" * 3).encode(
        dice.choice(["utf-16", "utf-32", "utf-16-le", "utf-8-sig"])
    ),
    lambda dice: (
        b"extends: "
        + dice.choice(
            [b"r.yaml", b"/dev/zero", b"/", b"..", b"/proc/self/mem", b'"\\0"', b"x" * 5000]
        )
    ),
]


def play(case: Case, folder: Path) -> None:
    """Check it, as text and as JSON.

    Raises:
        Wrong: another exit code, a traceback, signs that move a terminal's cursor, too long.
    """
    path = folder / "recipes" / "r.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(base64.b64decode(case["text"]))
    os.chdir(folder)
    options = [part for override in case["overrides"] for part in ("-s", override)]
    began = time.monotonic()
    done = command("check", str(path), *options)
    seconds = time.monotonic() - began
    no_traceback(done, "check", (0,) if case["fine"] else (0, 2))
    if seconds > SECONDS:
        raise Wrong(f"check takes {seconds:.0f} s")
    if hidden := {sign for sign in done.out + done.err if not sign.isprintable()} - SHOWN:
        raise Wrong(f"check prints {sorted(map(ascii, hidden))} as they are")
    if done.code == 2 and not done.err.strip():
        raise Wrong("check refuses without a word")
    told = command("check", "--json", str(path), *options)
    no_traceback(told, "check --json", (done.code,))
    if done.code != (2 if json.loads(told.out) else 0):
        raise Wrong("check --json says something else than check")
    if case["fine"]:
        _same_run(path, random.Random(case["order"]))


def _same_run(path: Path, dice: random.Random) -> None:
    """The same recipe in another order, through a plan's JSON, has the same id."""
    one = make_plan(load_recipe(path), path, environ={})
    other = path.with_name("o.yaml")
    other.write_text(
        yaml.safe_dump(_shuffled(yaml.safe_load(path.read_text()), dice), sort_keys=False)
    )
    two = Plan.from_json(make_plan(load_recipe(other), other, environ={}).to_json())
    if one.run != two.run:
        raise Wrong(f"in another order the run is {two.run}, not {one.run}")


def _shuffled(tree: Any, dice: random.Random) -> Any:
    if not isinstance(tree, dict):
        return tree
    names = dice.sample(list(tree), len(tree))
    return {name: _shuffled(tree[name], dice) for name in names}
