"""A large base's configuration -> what makes of it one of the same architecture that processors
train in a moment: fewer layers, fewer and smaller heads, and what follows from their width.

Names of modules stay, so that an adapter finds its targets; so do the vocabulary, the positions and
the sizes of inputs, which the data know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

LAYERS = 2
HEAD = 16
"""Numbers of a head; rotary embeddings want an even part of them."""
_HEADS = re.compile(r"(num_(attention|key_value)_heads|(encoder|decoder)_attention_heads)")
_LAYERS = re.compile(r"(num_hidden_layers|num_decoder_layers|(encoder|decoder)_layers)")
_INNER = re.compile(r"(.*intermediate_size|.*ffn_dim|ffn_hidden_size|d_ff|n_inner|hidden_dim)")
_WIDTH = re.compile(r"(.*hidden_size|.*embed_dim|.*projection_dim|d_model|dim|word_embed_.*)")
_HEAD = ("head_dim", "d_kv")

Changes = dict[str, Any]


def narrow(config: Any, *, fewer: bool = True) -> Iterator[Changes]:
    """What may be changed in a configuration of transformers, the smallest first: with small heads,
    and with its own, since a table may be made for their size. `fewer`: with few layers, else with
    all of them. Nothing where it tells of no heads."""
    for head in (HEAD, None):
        if changes := _changes(config, fewer, head):
            yield changes


def with_few_layers(config: Any) -> Changes:
    """The changes that leave a configuration with few layers; empty where it has no more."""
    found: Changes = {
        name: LAYERS for name in _names(config, _LAYERS) if int(getattr(config, name)) > LAYERS
    }
    for name in ("layer_types", "mlp_layer_types"):
        if found and _can_change(config, name) and (kinds := getattr(config, name, None)):
            found[name] = list(kinds)[:LAYERS]
    return found


def _changes(config: Any, fewer: bool, head: int | None) -> Changes:
    """The changes of a configuration and of those inside of it; empty where it has no heads."""
    inside = {
        name: found
        for name in getattr(config, "sub_configs", {})
        if (part := getattr(config, name, None)) is not None
        and (found := _changes(part, fewer, head))
    }
    layers = with_few_layers(config) if fewer else {}
    return {**layers, **_widths(config, head), **inside}


def _widths(config: Any, head: int | None) -> Changes:
    hidden, heads = getattr(config, "hidden_size", None), _whole(config, "num_attention_heads")
    if not isinstance(hidden, int) or not heads or hidden % heads:
        return {}
    groups = _whole(config, "num_key_value_heads") or heads
    ratio = heads // groups if heads % groups == 0 else heads
    few = dict.fromkeys(_names(config, _HEADS), 2 if groups == heads else ratio)
    if "num_key_value_heads" in few:
        few["num_key_value_heads"] = few["num_attention_heads"] // ratio
    own = next((value for name in _HEAD if (value := _whole(config, name))), hidden // heads)
    small = head if head and own % head == 0 else own
    width = few["num_attention_heads"] * small
    if width >= hidden:
        return {}
    inner = {
        name: -(-int(getattr(config, name)) * width // hidden // 16) * 16
        for name in _names(config, _INNER)
    }
    same = {name: width for name in _names(config, _WIDTH) if getattr(config, name) == hidden}
    sizes = {n: small for n in _HEAD if _whole(config, n) and _can_change(config, n)}
    return {**inner, **same, "hidden_size": width, **few, **sizes}


def _names(config: Any, kind: re.Pattern[str]) -> list[str]:
    """Those of its numbers whose names are of a kind, also under transformers' usual names."""
    known = [*getattr(config, "attribute_map", {}), *config.to_dict()]
    return [name for name in known if kind.fullmatch(name) and _whole(config, name)]


def _whole(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _can_change(config: Any, name: str) -> bool:
    """Whether it is no property that follows from others."""
    return not isinstance(getattr(type(config), name, None), property)


def computes(model: nn.Module) -> bool:
    """Whether a model of transformers computes on inputs that its configuration tells of; not if
    nobody can tell."""
    config: Any = model.config
    name = getattr(model, "main_input_name", "")
    given: Mapping[str, Any] = {}
    if name == "input_ids":
        given = {name: torch.ones(1, 4, dtype=torch.long)}
        if getattr(config, "is_encoder_decoder", False):
            given = {**given, "decoder_input_ids": given[name]}
    elif name == "pixel_values" and isinstance(size := getattr(config, "image_size", None), int):
        given = {name: torch.zeros(1, int(getattr(config, "num_channels", 3)), size, size)}
    try:
        with torch.no_grad():
            model(**given)
    except Exception:
        return False
    return True
