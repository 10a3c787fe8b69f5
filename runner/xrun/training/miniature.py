"""A rehearsal's run in miniature: what is made smaller so that processors of any machine train it
in a moment, and what is written down of that (`RunFolder.smaller`) for those who watch.

Everything else of a rehearsal is what a run does.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import component
from ..data.collate import is_hugging_face
from ..data.fingerprint import imports_datasets
from ..data.stream import is_stream
from ..errors import TrainError
from ..files import read_json, write_json
from ..recipe.schema import ModelRef, Recipe
from ..run.folder import RunFolder
from ..run.plan import Plan
from .narrowed import computes, narrow, with_few_layers

SAMPLES = 4
"""So many are evaluated, and so many of a stream are shuffled at once."""
ROWS = 64
"""So many of a dataset that would be downloaded whole."""
LARGE = 50_000_000
"""A base from the Hub with more parameters is neither downloaded nor built whole, and a step of a
build of one's own with more is one micro-batch."""
BYTES = 24
"""What a parameter takes in a run: itself, its gradient, two moments, a copy to be saved, and as
much again for what is computed."""


@dataclass
class Miniature:
    """What is made smaller of a plan's run."""

    plan: Plan
    rows: list[tuple[int, int | None]] = field(default_factory=list)
    """Of each dataset that would be downloaded whole: rows that were read, and how many it has
    (None: it does not say)."""

    def note(self, what: str, shapes: str = "") -> None:
        """Write it down; `shapes` says why nothing but shapes was tried."""
        path = RunFolder(self.plan.folder).smaller
        before = (read_json(path, dict) or {}).get("smaller", [])
        told = {"smaller": list(dict.fromkeys([*before, what])), "shapes": shapes}
        write_json(path, told)

    def splits(self, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `build` gives, with few samples to evaluate and few to read ahead."""
        with self.streamed():
            splits = build()
        train, val = splits["train"], splits.get("val")
        if is_stream(train):
            with contextlib.suppress(AttributeError):  # it has no room for one
                train.shuffle_block = SAMPLES
            if getattr(train, "lanes", None):
                train.lanes = 1  # a step may be as small as one sample
        if val is not None and len(val) > SAMPLES:
            self.note(f"evaluation on {SAMPLES} of {len(val)} samples")
            splits["val"] = val.select(range(SAMPLES)) if is_hugging_face(val) else Few(val)
        return splits

    @contextlib.contextmanager
    def streamed(self) -> Iterator[None]:
        """While this lasts nothing of Hugging Face's `datasets` is downloaded whole."""
        recipe, project = self.plan.load_recipe(), Path(self.plan.project)
        path = component.find("datasets", recipe.dataset.name, project)
        if not imports_datasets([path.read_bytes()]):
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
        taken = list(rows.take(ROWS))
        told = (builder.info.splits or {}).get(whole)
        self.rows.append((len(taken), (told.num_examples or None) if told else None))
        return Dataset.from_list(taken, features=rows.features)

    def recipe(self) -> Recipe:
        """The plan's recipe, with a model that this machine can train.

        Raises:
            TrainError: it can only be built without its memory, which it was.
        """
        recipe, project = _without_patience(self.plan.load_recipe()), Path(self.plan.project)
        if recipe.model.name == "hub" and (small := self._small_base(recipe.model, project)):
            return self._one_sample(recipe.model_copy(update={"model": small}))
        whole = parameters(recipe.model, project) if recipe.model.name != "hub" else 0
        if whole * BYTES > (memory := free_memory()):
            what = (
                f"{whole / 1e9:.1f} billion parameters need {whole * BYTES >> 30} GiB to be"
                f" trained, and this machine has {memory >> 30} GiB left"
            )
            self.note("models by their shapes alone", shapes=what)
            raise TrainError(f"models/{recipe.model.name}.py: {what}.")
        return self._one_micro_batch(recipe) if whole > LARGE else recipe

    def _one_micro_batch(self, recipe: Recipe) -> Recipe:
        """The recipe with steps of one micro-batch, which is what takes longest."""
        few = recipe.train.global_batch // recipe.train.micro_batches
        self.note(f"a step is one micro-batch of {few}, for the model is large")
        return _with_train(recipe, global_batch=few)

    def _one_sample(self, recipe: Recipe) -> Recipe:
        """The recipe of a large base with steps of one sample where it writes texts: over all words
        that it knows a sample's logits alone are gigabytes, however narrow it is."""
        if recipe.task != "language_modeling" or recipe.train.global_batch == 1:
            return recipe
        self.note("a step is one sample, for the base knows many words")
        return _with_train(recipe, global_batch=1, micro_batch=1)

    def _small_base(self, ref: ModelRef, project: Path) -> ModelRef | None:
        """A large base from its configuration, narrow and with few layers; None where it is not
        large, or where nobody can tell."""
        hub = sys.modules[component.load_build("models", ref.name, project).__module__]
        args = {**ref.args, "pretrained": False}
        try:
            source = {"revision": args.get("revision"), "trust_remote_code": ref.trust_remote_code}
            config = hub.configuration(args["name"], source, args.get("config") or {})
            whole = parameters(ref.model_copy(update={"args": args}), project)
        except Exception:
            return None  # what is wrong, building it says
        if whole <= LARGE:
            return None
        small, left = _smallest(ref, config, project)
        if not 0 < left < whole:
            return None
        self.note(
            f"{args['name']} from its configuration{_how(config, small)}"
            f" ({left / 1e6:.1f} of {whole / 1e6:.0f} million parameters),"
            f" {'model.init_from and ' if ref.init_from else ''}its weights not loaded"
        )
        return small


def _smallest(ref: ModelRef, config: Any, project: Path) -> tuple[ModelRef, int]:
    """The smallest base that computes, else the one with few layers; and how many parameters it
    has. A base keeps all of its layers where the recipe names some by their numbers."""
    fewer = not _names_layers(ref)
    for changes in narrow(config, fewer=fewer):
        small = _changed(ref, changes)
        model = built(small, project)
        if model is not None and computes(model):
            return small, sum(p.numel() for p in model.parameters())
    small = _changed(ref, with_few_layers(config) if fewer else {})
    return small, parameters(small, project)


def _changed(ref: ModelRef, changes: Mapping[str, Any]) -> ModelRef:
    config = {**(ref.args.get("config") or {}), **changes}
    args = {**ref.args, "pretrained": False, "config": config}
    return ref.model_copy(update={"args": args, "init_from": None})


def _names_layers(ref: ModelRef) -> bool:
    """Whether the recipe names single layers, which are then to be there."""
    adapter = ref.adapter.args if ref.adapter else {}
    named = {name: adapter.get(name) for name in ("target_modules", "modules_to_save")}
    texts = re.findall(r"[.(|]\d+\b", f"{named} {' '.join(f'.{n}' for n in ref.frozen_modules)}")
    chosen = ("layers_to_transform", "layer_replication", "rank_pattern", "alpha_pattern")
    return bool(texts) or any(adapter.get(name) for name in chosen)


def _how(config: Any, small: ModelRef) -> str:
    """What is said of a base that was made smaller."""
    changes = small.args["config"]
    layers, width = changes.get("num_hidden_layers"), changes.get("hidden_size")
    told = [
        f"{layers} of {config.num_hidden_layers} layers" if layers else "",
        f"a width of {width} instead of {config.hidden_size}" if width else "",
    ]
    return " with " + " and ".join(filter(None, told)) if any(told) else ", made smaller"


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
    return _with_train(recipe, evaluate=recipe.train.evaluate.model_copy(update={"patience": None}))


def _with_train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def parameters(ref: ModelRef, project: Path) -> int:
    """How many a model has, built without memory for them; 0 where it cannot be built so."""
    with torch.device("meta"):
        model = built(ref, project)
    return sum(p.numel() for p in model.parameters()) if model is not None else 0


def built(ref: ModelRef, project: Path) -> nn.Module | None:
    """What its component builds; None where it cannot."""
    build = component.load_build("models", ref.name, project)
    args: Mapping[str, Any] = ref.args
    if ref.trust_remote_code:
        args = {**args, "trust_remote_code": True}
    try:
        model = build(**args)
    except (Exception, SystemExit):
        return None  # what is wrong, building it says; some only cannot be built so
    return model if isinstance(model, nn.Module) else None


def free_memory() -> int:
    """Bytes that this machine can give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) << 10
