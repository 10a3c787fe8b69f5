"""Any of transformers' Auto classes, from the Hub or from a local folder.

Weights are read from safetensors only, so nothing that was downloaded is unpickled. They are held in float32 whatever the file's
type, unless `dtype` says otherwise: the recipe's `precision` says in what the arithmetic is done, and many an optimizer step is too
small to change bfloat16 weights. Those that an adapter freezes take half of the memory in bfloat16 while they are read, too.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from torch import nn

from xrun.errors import ComponentError

FINAL = (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError)
"""What no second try changes. Any other OSError may be the network, and goes up as it is, so that the attempt comes back."""


def auto_model(auto_class: str) -> Any:
    """The class `transformers.<auto_class>`; ComponentError with a suggestion if there is none."""
    known = [name for name in dir(transformers) if name.startswith("AutoModel")]
    if auto_class in known:
        return getattr(transformers, auto_class)
    near = difflib.get_close_matches(auto_class, known, n=1, cutoff=0.4)
    raise ComponentError(
        f"models/hub: transformers {transformers.__version__} has no {auto_class}.", f"Did you mean {near[0]}?" if near else ""
    )


def configuration(name: str, source: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """The model's configuration with `overrides`; one that it does not know is refused instead of ignored."""
    config, unknown = transformers.AutoConfig.from_pretrained(name, return_unused_kwargs=True, **source, **overrides)
    if unknown:
        near = difflib.get_close_matches(next(iter(unknown)), list(config.to_dict()), n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        raise ComponentError(f"models/hub: {type(config).__name__} has no {', '.join(sorted(unknown))}.", hint)
    return config


def load(
    name: str, auto_class: str, source: dict[str, Any], overrides: dict[str, Any], pretrained: bool, how: dict[str, Any]
) -> Any:
    """The model; layers that the weights lack are initialised from torch's generator."""
    auto, config = auto_model(auto_class), configuration(name, source, overrides)
    if not pretrained:
        trust = {"trust_remote_code": source["trust_remote_code"]}
        return auto.from_config(config, **how, **trust)
    # Another number of labels asks for another head; any other mismatch of sizes stays an error.
    head = {"ignore_mismatched_sizes": True} if "num_labels" in overrides else {}
    return auto.from_pretrained(name, config=config, use_safetensors=True, **how, **source, **head)


def build(
    name: str,
    auto_class: str = "AutoModel",
    revision: str | None = None,
    pretrained: bool = True,
    trust_remote_code: bool = False,
    config: dict[str, Any] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    attn_implementation: str | None = None,
) -> nn.Module:
    """`transformers.<auto_class>` for `name` (owner/model or a folder) at `revision`, in training mode.

    `config` overrides the model's configuration; `pretrained: false` takes only the configuration and starts from new weights.
    `dtype` is what weights are held in, `attn_implementation` transformers' name of an attention (default: its own choice).
    Pin `revision` to a full commit: a branch can move between two attempts of one run.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    how = {"dtype": getattr(torch, dtype), **attention}
    try:
        model: nn.Module = load(name, auto_class, source, config or {}, pretrained, how)
    except OSError as error:
        if isinstance(error.__cause__, FINAL) or Path(name).is_dir():
            raise ComponentError(f"models/hub: {name} cannot be loaded. {error}") from error
        raise
    return model.train()
