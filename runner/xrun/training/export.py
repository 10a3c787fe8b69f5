"""The final weights, in the standard Hugging Face layout: model.safetensors, config.json, README.md
(the model card)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from ..run.plan import Plan
from ..store.durable import sync_folder

WEIGHTS = "model.safetensors"


def write(folder: Path, model: nn.Module, plan: Plan, facts: Mapping[str, Any]) -> str:
    """Write the folder as a whole, replacing an older one; returns the SHA-256 of the weights.

    A transformers model is saved by its own `save_pretrained`, so that `from_pretrained` loads it;
    any other one as safetensors (tied weights once) and a config that names its component and
    arguments.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(temporary, max_shard_size="1TB")  # type: ignore[operator]  # transformers has it as a method
    else:
        save_model(model, str(temporary / WEIGHTS))
        (temporary / "config.json").write_text(json.dumps(_config(plan), indent=1) + "\n")
    sha256 = sha256_of(temporary / WEIGHTS)
    (temporary / "README.md").write_text(model_card(plan, facts, sha256))
    _replace(temporary, folder)
    return sha256


def full_copy(model: nn.Module, rebuild: Any) -> nn.Module | None:
    """An unsharded copy of a sharded model on the first process (None on the others); every process
    takes part."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    values = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if torch.distributed.get_rank() != 0:
        return None
    copy: nn.Module = rebuild()
    copy.load_state_dict(values)
    return copy


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_card(plan: Plan, facts: Mapping[str, Any], sha256: str) -> str:
    """What was trained, on what, how well, and by which code."""
    recipe = plan.recipe
    metrics = "\n".join(
        f"| {name} | {value:.6g} |" for name, value in sorted(facts.get("metrics", {}).items())
    )
    return f"""---
library_name: {"transformers" if recipe["model"]["name"] == "hub" else "pytorch"}
tags: [xrun]
---
# {plan.run}

`{recipe["model"]["name"]}` trained on `{recipe["dataset"]["name"]}` ({recipe["task"]}) for
{facts["step"]} steps, {facts["samples"]} samples, by xrun {plan.version}.

| metric | value |
|---|---|
{metrics}

Weights: `{WEIGHTS}`, SHA-256 `{sha256}`.
Data revision: {facts.get("data_revision") or "not named by the dataset"}.
{_effort(facts)}

## Recipe

```json
{json.dumps(recipe, indent=1)}
```

## Code

{_code(plan)}
"""


def _effort(facts: Mapping[str, Any]) -> str:
    cost = f" They cost ${facts['usd']:.2f}." if "usd" in facts else ""
    return (
        f"Attempts: {facts.get('attempts', 1)}, {facts.get('lost', 0)} of them ended from"
        f" outside.{cost}"
    )


def _code(plan: Plan) -> str:
    commit = plan.code.get("commit")
    state = (
        f"commit `{commit}`{' with uncommitted changes' if plan.code.get('dirty') else ''}"
        if commit
        else "not under git"
    )
    files = "\n".join(
        f"* `{path}`, BLAKE3 `{digest}`"
        for path, digest in plan.mathematics.get("sources", {}).items()
    )
    return f"The project is {state}.\n\n{files}"


def _config(plan: Plan) -> dict[str, Any]:
    model = plan.recipe["model"]
    return {
        "model_type": "xrun",
        "component": model["name"],
        "args": model["args"],
        "task": plan.recipe["task"],
    }


def _replace(temporary: Path, folder: Path) -> None:
    """Put the finished folder in its place; a kill leaves the old one, the new one, or (for a
    moment) none, never a half."""
    for path in [*temporary.rglob("*")]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(temporary)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
