"""The final weights, in the standard Hugging Face layout: model.safetensors, config.json, README.md
(the model card)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import nn

from .. import clock
from ..checkpoint.state import local
from ..files import json_text
from ..run import spending
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..run.record import AttemptRecord, Finished
from ..store.durable import sync_folder
from ..store.protocol import Publisher, Store
from .warm_start import ADAPTER_WEIGHTS

WEIGHTS = "model.safetensors"
_DIGESTS = {1: "BLAKE3", 2: "BLAKE3 of its code"}
"""What the digests of a plan's sources are, by the rule that made them."""


def export(
    plan: Plan,
    store: Store,
    model: nn.Module,
    finished: Finished,
    attempts: Sequence[AttemptRecord],
) -> Finished:
    """Write the final weights into the run's folder, and publish them where the store is a place
    for that; what the record says of them."""
    folder = RunFolder(plan.folder).model
    sha256 = write(folder, model, plan, finished, attempts)
    revision = ""
    if isinstance(store, Publisher):
        revision = store.publish(folder, plan.run, f"{plan.run}: {finished.step} steps")
    return replace(finished, weights_sha256=sha256, model_revision=revision or None)


def write(
    folder: Path,
    model: nn.Module,
    plan: Plan,
    finished: Finished,
    attempts: Sequence[AttemptRecord] = (),
) -> str:
    """Write the folder as a whole, replacing an older one; returns the SHA-256 of the weights,
    whose file is a function of the tensors and their names alone.

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
        _save(_Stored(model), temporary / WEIGHTS)
        (temporary / "config.json").write_text(json_text(_config(plan), indent=1) + "\n")
    for path in temporary.rglob("*.safetensors"):
        in_one_order(path)
    adapter = temporary / ADAPTER_WEIGHTS
    sha256 = sha256_of(adapter if adapter.exists() else temporary / WEIGHTS)
    (temporary / "README.md").write_text(
        model_card(plan, finished, attempts, sha256), encoding="utf-8"
    )
    _replace(temporary, folder)
    return sha256


def _save(model: nn.Module, path: Path) -> None:
    """Tied weights once, under the first of their names."""
    try:
        save_model(model, str(path))
    except RuntimeError:
        # The library refuses parts of a larger tensor that has no name itself. Each part by itself
        # is what a `load_state_dict` takes.
        whole = torch.contiguous_format
        parts = {name: p.clone(memory_format=whole) for name, p in model.state_dict().items()}
        save_file(parts, path)


def in_one_order(path: Path) -> None:
    """Sort the texts in a safetensors file's header: the library writes them, such as the other
    names of tied weights, in another order each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        texts = header.get("__metadata__", {})
        header["__metadata__"] = dict(sorted(texts.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(texts) > 1 and len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


class _Stored(nn.Module):
    """A model's tensors as a file holds them; see `checkpoint.state.local`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._tensors = {name: local(tensor) for name, tensor in model.state_dict().items()}

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]  # save_model wants no more
        return self._tensors


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


def model_card(
    plan: Plan, finished: Finished, attempts: Sequence[AttemptRecord], sha256: str
) -> str:
    """What was trained, on what, how well, and by which code."""
    recipe = plan.load_recipe()
    metrics = "\n".join(
        f"| {name} | {value:.6g} |" for name, value in sorted(finished.metrics.items())
    )
    return f"""---
library_name: {"transformers" if recipe.model.name == "hub" else "pytorch"}
tags: [xrun]
---
# {plan.run}

`{recipe.model.name}` trained on `{recipe.dataset.name}` ({recipe.task}) for
{finished.step} steps, {finished.samples} samples, by xrun {plan.version}.

| metric | value |
|---|---|
{metrics}

Weights: `{WEIGHTS}`, SHA-256 `{sha256}`.
Data revision: {finished.data_revision or "not named by the dataset"}.{_other_data(attempts)}
{_effort(attempts)}

## Recipe

```json
{json_text(plan.recipe, indent=1)}
```

## Code

{_code(plan)}
"""


def _other_data(attempts: Sequence[AttemptRecord]) -> str:
    return "".join(
        f" Other data from step {each.first_step} on ({each.other_data})."
        for each in attempts
        if each.other_data
    )


def _effort(attempts: Sequence[AttemptRecord]) -> str:
    usd = spending.dollars(attempts, clock.now())
    cost = "" if usd is None else f" They cost ${usd:.2f}."
    lost = sum(attempt.was_lost for attempt in attempts)
    return f"Attempts: {len(attempts) or 1}, {lost} of them ended from outside.{cost}"


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


def _config(plan: Plan) -> dict[str, Any]:
    recipe = plan.load_recipe()
    return {
        "model_type": "xrun",
        "component": recipe.model.name,
        "args": recipe.model.args,
        "task": recipe.task,
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
