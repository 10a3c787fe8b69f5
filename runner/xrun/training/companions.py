"""`Companions`: what goes with the weights so that they can be used at once: the names of the
classes, and what makes the model's inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.collate import is_hugging_face
from ..errors import ComponentError
from ..recipe.schema import Recipe

log = logging.getLogger("xrun")

_LABELS = ("label", "labels")
"""Columns whose classes Hugging Face's own datasets name."""


@dataclass(frozen=True)
class Companions:
    """As the split `train` has them: the class of each number, and a tokenizer and a processor,
    which are anything with `save_pretrained(folder)`."""

    class_names: tuple[str, ...] = ()
    tokenizer: Any = None
    processor: Any = None

    @classmethod
    def of(cls, split: Any, where: str) -> Companions:
        """Those of a split whose dataset is `where`.

        Raises:
            ComponentError: one of them is not what it has to be.
        """
        made = {name: getattr(split, name, None) for name in ("tokenizer", "processor")}
        for name, value in made.items():
            if value is not None and not hasattr(value, "save_pretrained"):
                raise ComponentError(
                    f"{where}: the {name} of the split 'train' is a {type(value).__name__}, which"
                    " has no save_pretrained.",
                    "Give one of transformers', or an object with save_pretrained(folder).",
                )
        return cls(_class_names(split, where), **made)

    def labels(self, number: int | None = None) -> dict[str, dict[Any, Any]]:
        """`id2label` and `label2id`, as transformers has them; empty without names, or where there
        are more of them than a model has outputs. Outputs without a class keep their number."""
        names = self.class_names
        if not names or (number is not None and len(names) > number):
            return {}
        rest = range(len(names), number or 0)
        id2label = {**dict(enumerate(names)), **{each: f"LABEL_{each}" for each in rest}}
        return {"id2label": id2label, "label2id": {name: each for each, name in id2label.items()}}

    def write(self, folder: Path) -> None:
        """Save what makes the inputs beside the weights."""
        for each in (self.tokenizer, self.processor):
            if each is not None:
                each.save_pretrained(str(folder))


NOTHING = Companions()


def companions_of(split: Any, recipe: Recipe) -> Companions:
    """Those of a recipe's split; the tokenizer of a base from the Hub goes with what was trained
    from it, where the dataset says nothing of its own (`tokenizer = None` says that there is
    none).

    Raises:
        ComponentError: as `Companions.of`.
    """
    own = Companions.of(split, f"datasets/{recipe.dataset.name}.py")
    silent = not hasattr(split, "tokenizer") and own.processor is None
    from_base = recipe.model.name == "hub" and recipe.model.args.get("pretrained", True)
    return replace(own, tokenizer=_base_tokenizer(recipe)) if silent and from_base else own


def _class_names(split: Any, where: str) -> tuple[str, ...]:
    names = getattr(split, "class_names", None)
    if names is None and is_hugging_face(split):
        features: Mapping[str, Any] = getattr(split, "features", None) or {}
        names = next((getattr(features.get(each), "names", None) for each in _LABELS), None)
    if names is None:
        return ()
    texts = isinstance(names, Sequence) and not isinstance(names, str)
    if not texts or not all(isinstance(name, str) for name in names):
        raise ComponentError(
            f"{where}: class_names of the split 'train' must be a list of texts (got {names!r})."
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ComponentError(f"{where}: class_names of the split 'train' has {twice!r} twice.")
    return tuple(names)


def _base_tokenizer(recipe: Recipe) -> Any:
    """None where the base has none, or nobody can tell now: the weights are worth more."""
    import transformers

    args, trust = recipe.model.args, recipe.model.trust_remote_code
    source = {"revision": args.get("revision"), "trust_remote_code": trust}
    try:
        config = transformers.AutoConfig.from_pretrained(args["name"], **source)
        if getattr(config, "vocab_size", None) is None:
            return None  # it takes no text
        return transformers.AutoTokenizer.from_pretrained(args["name"], **source)
    except Exception as error:  # a repository may hold anything
        told = " ".join(str(error).split())[:200]
        log.warning("No tokenizer of %s goes with the model: %s", args.get("name"), told)
        return None
