"""The model card: what was trained, on what, how well, by which code, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import json_text
from ..recipe.schema import Recipe
from ..run.locked import NO_LOCK, Lock
from ..run.page import CURVES, FOLDER, LOCK, RECIPE
from ..run.plan import Plan
from ..run.receipt import Receipt
from ..run.record import AttemptRecord, Finished
from .adapter_folder import use_of

_DIGESTS = {1: "BLAKE3", 2: "BLAKE3 of its code"}
"""What the digests of a plan's sources are, by the rule that made them."""
_TOLD = ("torch", "numpy", "accelerate", "transformers", "datasets")
_MACHINE = ("device", "driver", "cuda", "processes", "threads", "requirements")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_LOADS = {
    "transformers": "from transformers import {name}\n\nmodel = {name}.from_pretrained(FOLDER)",
    "diffusers": "from diffusers import {name}\n\nmodel = {name}.from_pretrained(FOLDER)",
    "peft": "from peft import AutoPeftModel\n\nmodel = AutoPeftModel.from_pretrained(FOLDER)",
    "pytorch": "import xrun\n\nmodel = xrun.load_model(FOLDER, project=PROJECT)",
}
"""How people load it; FOLDER is where these files lie, PROJECT the folder whose `models/` has the
component (not needed in that project, nor for what xrun ships)."""


def library_of(model: Any) -> str:
    """Which library's layout a model has, by the class that it comes of."""
    found = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    return next(
        (each for each in ("peft", "diffusers", "transformers") if each in found), "pytorch"
    )


def model_card(
    plan: Plan,
    finished: Finished,
    attempts: Sequence[AttemptRecord],
    receipt: Receipt,
    weights: Sequence[str],
    model: Any = None,
    lock: Lock = NO_LOCK,
) -> str:
    """The card of a model whose weights are these files, with the digest that `finished` has."""
    recipe = plan.load_recipe()
    library = library_of(model)
    metrics = "\n".join(
        f"| {name} | {value:.6g} |" for name, value in sorted(finished.metrics.items())
    )
    return f"""---
library_name: {library}
tags: [xrun]{_base(plan)}
---
# {plan.run}

`{recipe.model.name}` trained on `{recipe.dataset.name}` ({recipe.task}) for
{finished.step} steps, {finished.samples} samples, by xrun {plan.version}.{_which(finished)}
{_picture(finished)}
| metric | value |
|---|---|
{metrics}

Weights: {_weights(weights, finished.weights_sha256)}.
Data revision: {finished.data_revision or "not named by the dataset"}.{_other_data(attempts)}
{_effort(receipt)}
{_use(library, model, recipe)}
## Recipe

```json
{json_text(plan.recipe, indent=1)}
```

## Code

{_code(plan)}

## Lock

{_lock(lock)}

## Make it again

```
xrun reproduce {_where(plan)}
xrun {FOLDER}/{RECIPE}
```

{_standing(plan)}The first trains it as it was trained, with the versions above, and says up
to which step the bits are the same; the second begins a run of one's own.
`xrun verify {_where(plan)}` checks the hashes alone.
"""


def _picture(finished: Finished) -> str:
    picture = f"\n![The losses by step]({FOLDER}/{CURVES})\n"
    return picture if "train/loss" in finished.metrics else ""


def _where(plan: Plan) -> str:
    """What leads to this model: its address, and where it has none the folder that it lies in."""
    address = plan.model_address
    return str(address) if address and address.name else "."


def _standing(plan: Plan) -> str:
    """Where the commands are typed, if that is no matter of course."""
    return "Both are typed in the folder of these files. " if _where(plan) == "." else ""


def _lock(lock: Lock) -> str:
    """Its commits and the versions that the arithmetic depends on most; the rest is in the file."""
    if not lock:
        return "Nobody has noted what it was made from."
    known = {name: lock.packages[name] for name in _TOLD if name in lock.packages}
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    told = [f"* `{name}` was `{commit}`" for name, commit in sorted(lock.hub.items())]
    told += [f"* Python {lock.python}, {versions}; {len(lock.packages)} packages"] if known else []
    told += [f"* {name} {value}" for name, value in lock.machine.items() if name in _MACHINE]
    told += [f"* image `{lock.image}`"] if lock.image else []
    told += [f"* {each}" for each in lock.changes]
    return "\n".join([*told, f"\nAll of it: [`{FOLDER}/{LOCK}`]({FOLDER}/{LOCK})."])


def _base(plan: Plan) -> str:
    """The model on the Hub that it was trained from."""
    model = plan.load_recipe().model
    name = str(model.args.get("name", ""))
    of_hub = model.name == "hub" and model.args.get("pretrained", True)
    known = of_hub and _REPOSITORY.fullmatch(name) and not Path(plan.project, name).exists()
    return f"\nbase_model: {name}" if known else ""


def _which(finished: Finished) -> str:
    step = finished.exported_step
    return "" if step in (None, finished.step) else f"\nThis is step {step}, the best one."


def _weights(files: Sequence[str], sha256: str | None) -> str:
    names = ", ".join(f"`{name}`" for name in files)
    if len(files) == 1:
        return f"{names}, SHA-256 `{sha256}`"
    return f"{names}; `sha256sum {' '.join(files)} | sha256sum` is `{sha256}`"


def _use(library: str, model: Any, recipe: Recipe) -> str:
    if library == "pytorch" and hasattr(model, "save_pretrained"):
        return ""  # it is loaded by a class of its own
    peft = library == "peft" and hasattr(model, "peft_config")
    name = type(model).__name__
    lines = use_of(model, recipe) if peft else _LOADS[library].format(name=name)
    return f"\n## Use\n\n```python\n{lines}\n```\n"


def _other_data(attempts: Sequence[AttemptRecord]) -> str:
    return "".join(
        f" Other data from step {each.first_step} on ({each.other_data})."
        for each in attempts
        if each.other_data
    )


def _effort(receipt: Receipt) -> str:
    """The receipt: what each attempt has cost, for what, and what of it is not known."""
    if not receipt.lines:
        return "Attempts: 1."
    lost = sum(line.taken for line in receipt.lines)
    told = f"Attempts: {len(receipt.lines)}, {lost} of them ended from outside."
    head, *rows = (f"| {' | '.join(row)} |" for row in receipt.rows())
    table = [head, "|" + "---|" * (head.count("|") - 1), *rows]
    sentences = [f"* {each}" for each in receipt.sentences()]
    notes = (f"\n{each.replace('* ', chr(92) + '* ', 1)}" for each in receipt.notes())
    lines = [told, "", *sentences, "", *table, *notes]
    return "\n".join(lines) + "\n"


def _code(plan: Plan) -> str:
    commit = plan.code.get("commit")
    state = (
        f"commit `{commit}`{' with uncommitted changes' if plan.code.get('dirty') else ''}"
        if commit
        else "not under git"
    )
    files = "\n".join(
        f"* `{path}`, {_DIGESTS.get(plan.rule, 'digest')} `{digest}`"
        for path, digest in plan.sources.items()
    )
    return f"The project is {state}.\n\n{files}"
