"""Recipes that a person did not mean: bytes cut and moved, values replaced, keys renamed."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import yaml

SMALL = """\
name: s
model: {name: mlp, args: {inputs: 8, hidden: 16, depth: 1, classes: 4}}
dataset: {name: digits}
task: classification
hardware: local
train: {steps: 100, global_batch: 8, micro_batch: 4}
"""
"""A recipe to begin with."""
TOKENS = [
    b":",
    b"- ",
    b"\n",
    b" ",
    b"  ",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/object:os.system ",
    b"!",
    b"|",
    b">",
    b"'",
    b'"',
    b"#",
    b"%YAML 1.1\n",
    b"---\n",
    b"...\n",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\U00110000",
    b'"\\ud800"',
    b"? ",
    b"~",
    b"null",
    b"true",
    b"on",
    b"1e999",
    b".nan",
    b"0x",
    b"1:30",
    b"2024-01-01",
    b"9" * 400,
    b"-1",
    b"0",
    b"A100:0",
    b"local",
    b"auto",
    b"1 epochs",
    b"extends: r.yaml\n",
    b"extends: .\n",
    b"env: {A: 1}\n",
    b"secrets: [a=b]\n",
    b"hardware: {any_of: [{}, 3]}\n",
    b"[" * 60,
    b"\xe2\x80\xa8",
    b"=",
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    7,
    10**30,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "a\0b",
    "local",
    "auto",
    "hub",
    "s3://x",
    "1 epochs",
    "10m",
    [],
    [None],
    [[]],
    {},
    {"name": "vit"},
    {"": 1},
    {"any_of": [{"accelerators": "A100:3"}]},
    {"local": {"processes": 3}},
    "../../etc",
    "é" * 50,
]
KEYS = [
    "name",
    "args",
    "any_of",
    "local",
    "spot",
    "micro_batch",
    "nodes",
    "trian",
    "",
    "a.b",
    "<<",
    "no",
    "3",
    "extends",
    "secrets",
    "env",
    "é",
]


def mutated_bytes(text: bytes, dice: random.Random) -> bytes:
    """The text with pieces cut, doubled, moved or put in."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text) + 1)
        end = min(len(text), start + dice.choice([0, 0, 1, 2, 8, 40]))
        piece = dice.choice(
            [
                b"",
                dice.choice(TOKENS),
                dice.choice(TOKENS),
                text[start:end] * 2,
                bytes([dice.randrange(256)]),
            ]
        )
        text = text[:start] + piece + text[end:]
    return text


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree, as its container and its key there."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else []
    )
    return [place for key, value in items for place in [(tree, key), *places(value)]]


@cache
def loaded(text: bytes) -> Any:
    return yaml.safe_load(text)


def mutated_nodes(text: bytes, dice: random.Random) -> bytes:
    """The recipe with values replaced, keys renamed, and keys taken away or added."""
    tree = copy.deepcopy(loaded(text))
    for _ in range(dice.randint(1, 3)):
        container, key = dice.choice(places(tree) or [({}, "x")])
        value = container.pop(key) if isinstance(container, dict) else container[key]
        new_key = (
            dice.choice([key, key, key, dice.choice(KEYS)]) if isinstance(container, dict) else key
        )
        if not isinstance(container, dict) or dice.random() < 0.9:
            container[new_key] = (
                copy.deepcopy(dice.choice([value, *VALUES])) if dice.random() < 0.8 else value
            )
    return yaml.dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


OVERRIDES = [
    "train.steps=3",
    "train.steps=x",
    "hardware.any_of.0.nodes=2",
    "name.x=1",
    "a=",
    "=",
    "model={}",
    "model.args=3",
    "hardware=local",
    "hardware.local=3",
    "extends=x",
    "train=null",
    "env.a.b=1",
    "secrets.0=x",
    "dataset.name=digits",
    "train.optimizer.name=sgd",
    "checkpoint.store='hub'",
    "x" * 300 + "=[",
]
