"""A rehearsal's run in miniature: what is made smaller so that processors of any machine train it
in a moment, and what is written down of that (`RunFolder.smaller`) for those who watch.

Everything else of a rehearsal is what a run does.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import component
from ..data.collate import is_hugging_face
from ..data.stream import is_stream
from ..errors import TrainError
from ..files import read_json, write_json
from ..recipe.schema import ModelRef, Recipe
from ..run.folder import RunFolder
from ..run.plan import Plan

SAMPLES = 8
"""So many are evaluated, and so many of a stream are shuffled at once."""
ROWS = 64
"""So many of a dataset that would be downloaded whole."""
LARGE = 50_000_000
"""A base from the Hub with more parameters is neither downloaded nor built whole."""
LAYERS = 2
BYTES = 24
"""What a parameter takes in a run: itself, its gradient, two moments, a copy to be saved, and as
much again for what is computed."""
_IMPORTS = re.compile(r"^\s*(import|from) datasets\b", re.MULTILINE)


@dataclass
class Miniature:
    """What is made smaller of a plan's run."""

    plan: Plan

    def note(self, what: str, shapes: str = "") -> None:
        """Write it down; `shapes` says why nothing but shapes was tried."""
        path = RunFolder(self.plan.folder).smaller
        before = (read_json(path, dict) or {}).get("smaller", [])
        told = {"smaller": list(dict.fromkeys([*before, what])), "shapes": shapes}
        write_json(path, told)

    def splits(self, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `build` gives, with few samples to evaluate and few to read ahead."""
        with self._streamed():
            splits = build()
        train, val = splits["train"], splits.get("val")
        if is_stream(train):
            with contextlib.suppress(AttributeError):  # it has no room for one
                train.shuffle_block = SAMPLES
        if val is not None and len(val) > SAMPLES:
            self.note(f"evaluation on {SAMPLES} of {len(val)} samples")
            splits["val"] = val.select(range(SAMPLES)) if is_hugging_face(val) else Few(val)
        return splits

    @contextlib.contextmanager
    def _streamed(self) -> Iterator[None]:
        """While this lasts nothing of Hugging Face's `datasets` is downloaded whole."""
        recipe, project = self.plan.load_recipe(), Path(self.plan.project)
        path = component.find("datasets", recipe.dataset.name, project)
        if not _IMPORTS.search(path.read_text(errors="replace")):
            yield
            return
        from datasets import DatasetBuilder

        kept = DatasetBuilder.download_and_prepare, DatasetBuilder.as_dataset
        DatasetBuilder.download_and_prepare = lambda *_, **__: None
        DatasetBuilder.as_dataset = lambda builder, split=None, **_: self._few_rows(builder, split)
        try:
            yield
        finally:
            DatasetBuilder.download_and_prepare, DatasetBuilder.as_dataset = kept

    def _few_rows(self, builder: Any, split: Any) -> Any:
        from datasets import Dataset, DatasetDict

        if split is None:
            parts = builder.as_streaming_dataset()
            return DatasetDict({name: self._few_rows(builder, name) for name in parts})
        whole = re.split(r"[\[+]", str(split))[0]  # a stream has no slices
        rows = builder.as_streaming_dataset(split=whole)
        self.note(f"the first {ROWS} rows of {builder.repo_id or builder.dataset_name}, streamed")
        return Dataset.from_list(list(rows.take(ROWS)), features=rows.features)

    def recipe(self) -> Recipe:
        """The plan's recipe, with a model that this machine can train.

        Raises:
            TrainError: it can only be built without its memory, which it was.
        """
        recipe, project = _without_patience(self.plan.load_recipe()), Path(self.plan.project)
        if recipe.model.name == "hub" and (small := self._few_layers(recipe.model, project)):
            return recipe.model_copy(update={"model": small})
        whole = parameters(recipe.model, project) if recipe.model.name != "hub" else 0
        if whole * BYTES > (memory := free_memory()):
            what = (
                f"{whole / 1e9:.1f} billion parameters need {whole * BYTES >> 30} GiB to be"
                f" trained, and this machine has {memory >> 30} GiB left"
            )
            self.note("models by their shapes alone", shapes=what)
            raise TrainError(f"models/{recipe.model.name}.py: {what}.")
        return recipe

    def _few_layers(self, ref: ModelRef, project: Path) -> ModelRef | None:
        """A large base from its configuration, with few layers; None where it is not large, or
        where nobody can tell."""
        hub = sys.modules[component.load_build("models", ref.name, project).__module__]
        args = dict(ref.args)
        try:
            source = {"revision": args.get("revision"), "trust_remote_code": ref.trust_remote_code}
            config = hub.configuration(args["name"], source, args.get("config") or {})
            layers = int(config.num_hidden_layers)
            fewer = {**(args.get("config") or {}), "num_hidden_layers": LAYERS}
            if kinds := getattr(config, "layer_types", None):
                fewer["layer_types"] = list(kinds)[:LAYERS]
            small = ref.model_copy(update={"args": {**args, "pretrained": False, "config": fewer}})
            new = {**args, "pretrained": False}
            whole = parameters(ref.model_copy(update={"args": new}), project)
        except Exception:
            return None  # what is wrong, building it says
        if whole <= LARGE or layers <= LAYERS:
            return None
        left = parameters(small, project)
        self.note(
            f"{args['name']} from its configuration with {LAYERS} of {layers} layers"
            f" ({left / 1e6:.0f} of {whole / 1e6:.0f} million parameters), its weights not loaded"
        )
        return small


class Few:
    """The first samples of a map-style split, which is itself in everything else."""

    def __init__(self, split: Any) -> None:
        self.split = split

    def __len__(self) -> int:
        return min(SAMPLES, len(self.split))

    def __getitem__(self, index: int) -> Any:
        return self.split[index]

    def __getattr__(self, name: str) -> Any:
        if name == "split":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.split, name)


def _without_patience(recipe: Recipe) -> Recipe:
    """Its few steps are all trained."""
    evaluate = recipe.train.evaluate.model_copy(update={"patience": None})
    return recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"evaluate": evaluate})}
    )


def parameters(ref: ModelRef, project: Path) -> int:
    """How many a model has, built without memory for them; 0 where it cannot be built so."""
    build = component.load_build("models", ref.name, project)
    args: Mapping[str, Any] = ref.args
    if ref.trust_remote_code:
        args = {**args, "trust_remote_code": True}
    try:
        with torch.device("meta"):
            model = build(**args)
        return sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
    except (Exception, SystemExit):
        return 0  # what is wrong, building it says; some only cannot be built so


def free_memory() -> int:
    """Bytes that this machine can give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) << 10
