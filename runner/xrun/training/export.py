"""The final weights, in the layout of the library that the model comes of, with what goes with them
and README.md (the model card)."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import nn

from .. import clock
from ..checkpoint.state import is_sharded, local
from ..errors import ComponentError
from ..files import json_text, sha256_of
from ..run.folder import RunFolder
from ..run.locked import NO_LOCK, Lock
from ..run.plan import Plan
from ..run.receipt import receipt_of
from ..run.record import AttemptRecord, Finished
from ..run.stores import open_publisher
from ..store.durable import sync_folder
from ..store.protocol import RateLimited, Store
from .adapter_folder import ADAPTER, write_beside
from .companions import NOTHING, Companions
from .mapped import WeightsFile, built_in
from .model_card import library_of, model_card
from .page import write_page

log = logging.getLogger("xrun")

WEIGHTS = "model.safetensors"
"""Those of a model that has no way of its own to be saved."""
_SUFFIXES = ((".safetensors",), (".bin", ".pt", ".pth", ".ckpt"))
"""What weights are called, and what only a `save_pretrained` of a project's own calls them."""


def export(
    plan: Plan,
    model: nn.Module,
    finished: Finished,
    attempts: Sequence[AttemptRecord],
    companions: Companions = NOTHING,
    lock: Lock = NO_LOCK,
) -> Finished:
    """Write the final weights into the run's folder; what the record says of them."""
    folder = RunFolder(plan.folder).model
    sha256 = write(folder, model, plan, finished, attempts, companions, lock)
    return replace(finished, weights_sha256=sha256)


def say_wait(store: object, what: str) -> None:
    """That something is done as soon as the store takes a commit, where that is not now."""
    if isinstance(store, RateLimited) and (delay := store.commit_delay()) > 1:
        log.info("%s when the store takes its next commit, in %.0f s.", what, delay)


def publish(plan: Plan, attempt: str, store: Store, finished: Finished) -> Finished:
    """Put the exported model where others find it, if the run has such a place; what the record
    says of it. Raises what `Publisher.publish` raises."""
    place = open_publisher(plan, attempt, store)
    if place is None:
        return finished
    step = finished.step if finished.exported_step is None else finished.exported_step
    message = f"{plan.run}: {step} steps"
    say_wait(place, "The model is made, and is published")
    revision = place.publish(RunFolder(plan.folder).model, plan.run, message)
    return replace(finished, model_revision=revision)


def write(
    folder: Path,
    model: nn.Module,
    plan: Plan,
    finished: Finished,
    attempts: Sequence[AttemptRecord] = (),
    companions: Companions = NOTHING,
    lock: Lock = NO_LOCK,
) -> str:
    """Write the folder as a whole, replacing an older one; returns the digest of the weights, whose
    files are a function of the tensors and their names alone.

    A model with `save_pretrained` (of transformers, peft, diffusers or its own) is saved by it, so
    that `from_pretrained` loads it; any other one as safetensors (tied weights once) and a config
    that names its component and arguments.

    Raises:
        ComponentError: its `save_pretrained` writes no weights.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if hasattr(model, "save_pretrained"):
        _save_pretrained(model, temporary, companions, plan)
    else:
        _save(_Stored(model), temporary / WEIGHTS)
        config = _config(plan) | companions.labels()
        (temporary / "config.json").write_text(json_text(config, indent=1) + "\n")
    companions.write(temporary)
    files = weights_in(temporary)
    if not files:
        raise ComponentError(
            f"models/{plan.load_recipe().model.name}.py: save_pretrained has written no weights"
            f" ({', '.join(sorted(path.name for path in temporary.iterdir())) or 'nothing'})."
        )
    for path in temporary.rglob("*.safetensors"):
        in_one_order(path)
    finished = replace(finished, weights_sha256=digest_of(temporary, files))
    digests = {name: sha256_of(temporary / name) for name in files}
    points = RunFolder(plan.folder).points()
    receipt = receipt_of(plan.run, attempts, clock.now())
    flops = next((each.sample_flops for each in reversed(attempts) if each.sample_flops), 0.0)
    sha256 = str(finished.weights_sha256)
    write_page(temporary, plan, lock, points, digests, sha256, receipt, flops)
    card = model_card(plan, finished, attempts, receipt, files, model, lock)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    _replace(temporary, folder)
    return sha256


def _save_pretrained(model: Any, folder: Path, companions: Companions, plan: Plan) -> None:
    """By the model's own method; in one file as far as it can be told so."""
    given = plan.load_recipe().model.args.get("config") or {}
    config = getattr(model, "config", None)
    # As transformers' models have them, under an adapter too.
    if config is not None and hasattr(config, "id2label") and "id2label" not in given:
        for name, labels in companions.labels(config.num_labels).items():
            setattr(config, name, labels)
    takes = inspect.signature(model.save_pretrained).parameters
    any_name = any(each.kind == each.VAR_KEYWORD for each in takes.values())
    whole = {"max_shard_size": "1TB"} if any_name or "max_shard_size" in takes else {}
    model.save_pretrained(folder, **whole)
    if (folder / ADAPTER).exists() and library_of(model) == "peft":
        write_beside(folder, model, plan.load_recipe(), companions)


def weights_in(folder: Path) -> list[str]:
    """The names of the files below a folder that hold weights, sorted."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    kinds = ([name for name in names if name.endswith(kind)] for kind in _SUFFIXES)
    return next(filter(None, kinds), [])


def digest_of(folder: Path, files: Sequence[str]) -> str:
    """The SHA-256 of the one file; of several that of what `sha256sum` prints for them, sorted by
    name."""
    if len(files) == 1:
        return sha256_of(folder / files[0])
    lines = (f"{sha256_of(folder / name)}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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


def full_copy(model: nn.Module, rebuild: Callable[[], nn.Module], folder: Path) -> nn.Module | None:
    """An unsharded copy of a sharded model on the first process (None on the others), which has its
    weights in a file without a name in this folder: of its memory, and of a GPU's, it takes one
    tensor. Every process takes part.

    Raises:
        TrainError: the disk is full.
    """
    first = torch.distributed.get_rank() == 0
    with WeightsFile(folder) as file:
        values = {}
        for name, tensor in model.state_dict().items():
            whole = tensor.full_tensor() if is_sharded(tensor) else tensor
            if first:
                values[name] = file.put(whole.cpu())
        if not first:
            return None
        copy = built_in(file, rebuild)
        copy.load_state_dict(values)
    return copy


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
    mode = temporary.stat().st_mode & 0o666  # some libraries write what only the owner can read
    for path in [*temporary.rglob("*")]:
        if path.is_file():
            path.chmod(mode)
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
