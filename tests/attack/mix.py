"""What is tried, how often, and within which time: the one table of it; and the faults that are
known and still open, which are passed over so that others are found."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cases, damage, disturbed, far, recipes, trained

Case = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of try: its share of all, how a seed draws a case, what plays it in a folder, and the
    seconds after which it hangs."""

    share: float
    draw: Callable[[random.Random], Case]
    play: Callable[[Case, Path], None]
    seconds: float
    what: str


KINDS = {
    "recipe": Kind(40, recipes.draw, recipes.play, 20, "xrun check of valid and broken recipes"),
    "model": Kind(26, cases.draw, trained.play, 60, "trained at a stretch, against the oracle"),
    "killed": Kind(18, cases.killed, trained.play, 90, "the same under SIGKILL and resumed"),
    "damage": Kind(16, damage.draw, damage.play, 90, "files of a run damaged, then read and run"),
    "signal": Kind(4, disturbed.draw, disturbed.play, 150, "signals to any process of a run"),
    "shared": Kind(5, cases.shared, trained.play, 120, "two processes, one killed"),
    "server": Kind(0.7, far.draw, far.play, 240, "faults of Hub and W&B, lost machines"),
    "command": Kind(0.4, disturbed.cold, disturbed.play, 240, "signals to the real command"),
}

WHOLE_NUMBERS = {
    *"batch_norm cumulative_norm bare_norm half_frozen_norm eval_norm owntrain pictures".split(),
    *"counter kinds codes seldom lazy whole".split(),
}
"""Blocks with buffers of whole numbers."""
UNUSED = {"unused", "seldom"}
ODD_FILES = {"fifo", "link", "folder", "content", "value", "lose"}


def _has(case: Case, *blocks: str) -> bool:
    return bool({*blocks} & {*case.get("blocks", ())})


def _has_escapes(case: Case) -> bool:
    text = base64.b64decode(case["text"]).decode("utf-8", "replace")
    return any(not sign.isprintable() and sign not in "\n\t" for sign in text) or "\\" in text


OPEN: dict[str, Callable[[str, Case], bool]] = {
    "averages of whole numbers": lambda kind, case: (
        "ema" in case.get("train", ()) and _has(case, *WHOLE_NUMBERS)
    ),
    "copies of modules that torch cannot copy": lambda kind, case: (
        _has(case, "pruned", "old_spectral") and ("ema" in case["train"] or case["auto"])
    ),
    "terminal escapes": lambda kind, case: kind == "recipe" and _has_escapes(case),
    "evaluation mode from build()": lambda kind, case: _has(case, "eval_norm"),
    "lazy modules": lambda kind, case: _has(case, "lazy"),
    "buffers that grow or come late": lambda kind, case: _has(case, "growing", "late"),
    "a loss of shape (1,) in a tuple": lambda kind, case: case.get("gives") == "tuple of one",
    "labels that are all ignored": lambda kind, case: case.get("takes") == "ignored",
    "parameters that two processes do not use": lambda kind, case: (
        kind == "shared" and _has(case, *UNUSED)
    ),
    "small files of another kind or shape": lambda kind, case: (
        kind == "damage" and any(name in ODD_FILES for name, _ in case["damages"])
    ),
}
"""Names of faults that are known, and which tries meet them."""


def kind_of(seed: int) -> str:
    """The kind that a seed draws."""
    shares = [kind.share for kind in KINDS.values()]
    return random.Random(f"kind {seed}").choices(list(KINDS), shares)[0]


def open_fault(kind: str, case: Case) -> str:
    """The open fault that a try meets; "" if none."""
    return next((name for name, meets in OPEN.items() if meets(kind, case)), "")
