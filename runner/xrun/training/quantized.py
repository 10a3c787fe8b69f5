"""`model.frozen: 8bit` and `4bit`: the linear layers of a frozen base, packed by bitsandbytes.

They are packed on the processor, one after the other, from the weights that `build` has made: so
the bytes, and their digest, are the same on every device. bitsandbytes keeps what a packed weight
means (`absmax`, `SCB`, ...) beside it, in the state_dict but as neither parameter nor buffer. All
of that follows from the base and is in no checkpoint.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ComponentError
from ..libraries import QUANTIZED, require

_THREADS = 8
"""More would take memory: each holds the layer that it packs several times over, in float32."""
_OUTLIERS = 6.0
"""Inputs above it are computed in 16 bit by a layer of 8 bit: LLM.int8()'s and transformers'."""
_HEADS = ("classifier", "score", "qa_outputs")
"""New heads, by their names in transformers, which peft trains beside an adapter."""


def quantize(base: nn.Module, kind: str, trained: Collection[str], name: str) -> None:
    """Pack the linear layers of a base on the processor to `8bit` or `4bit` (nf4, computing in
    bf16). As in transformers, what stays are tied weights, the output layer and the last one;
    besides new heads and what `trained` names, which an adapter trains whole.

    Raises:
        ComponentError: there is nothing to pack.
        LaunchError: bitsandbytes is not installed.
    """
    require(QUANTIZED)
    chosen = packable(base, kind, trained)
    if not chosen:
        raise ComponentError(
            f"model.frozen: {name} has no linear layer that could be held in {kind}.",
            "Set `model.frozen: bf16`.",
        )
    # In threads: a billion weights take a core more than a minute in 4 bit.
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        packed = threads.map(lambda path: _packed(base.get_submodule(path), kind), chosen)
        for path, new in zip(chosen, packed, strict=True):
            base.set_submodule(path, new)
    setattr(base, f"is_loaded_in_{kind}", True)  # by which peft knows such a base


def packable(base: nn.Module, kind: str, trained: Collection[str]) -> list[str]:
    """The names of the layers that `quantize` packs."""
    layers = _linear(base, {*_HEADS, *trained})
    return [each for each in layers if _fits(base.get_submodule(each), kind)]


def _fits(layer: Any, kind: str) -> bool:
    """Two weights of a row share a byte in 4 bit. Where they do not, what a processor computes
    hangs on whether bitsandbytes finds a compiler."""
    return kind == "8bit" or layer.in_features % 2 == 0


def _linear(base: nn.Module, trained: set[str]) -> Iterator[str]:
    """The names of the layers that may be packed."""
    uses = Counter(id(p) for _, p in base.named_parameters(remove_duplicate=False))
    output = getattr(base, "get_output_embeddings", lambda: None)()
    *_, last = ["", *(name for name, _ in base.named_parameters())]
    for name, module in base.named_modules():
        tied = any(uses[id(p)] > 1 for p in module.parameters(recurse=False))
        stays = tied or module is output or last.rpartition(".")[0] == name
        if type(module) is nn.Linear and not stays and not _is_within(name, trained):
            yield name


def _is_within(name: str, chosen: Collection[str]) -> bool:
    """Whether one of these names, or the end of one, is this module's or that of one around it."""
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(f".{place}".endswith(f".{each}") for place in around for each in chosen)


def _packed(old: Any, kind: str) -> nn.Module:
    make = _in_4_bit if kind == "4bit" else _in_8_bit
    new, weight = make(old, {"bias": old.bias is not None, "device": "meta"})
    new.weight, new.bias = weight.to("cpu"), old.bias
    return new.requires_grad_(False).train(old.training)


def _in_4_bit(old: Any, how: dict[str, Any]) -> tuple[Any, Any]:
    """The layer, and the weight that is packed where it goes."""
    import bitsandbytes

    library: Any = bitsandbytes.nn
    packing = {"compress_statistics": False, "quant_type": "nf4"}
    how = {"compute_dtype": torch.bfloat16, **packing, **how}
    new = library.Linear4bit(old.in_features, old.out_features, **how)
    # Or a processor's evaluation would lay the weights out anew in their place.
    new.support_avx512bf16_for_cpu = False
    return new, library.Params4bit(old.weight.data, module=new, **packing)


def _in_8_bit(old: Any, how: dict[str, Any]) -> tuple[Any, Any]:
    import bitsandbytes

    library: Any = bitsandbytes.nn
    how = {"has_fp16_weights": False, "threshold": _OUTLIERS, **how}
    new = library.Linear8bitLt(old.in_features, old.out_features, **how)
    if old.bias is not None:
        new.register_forward_pre_hook(_keep_bias)
        new.register_forward_hook(_put_bias_back)
    return new, library.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)


def _keep_bias(module: Any, _: Any) -> None:
    """A layer of 8 bit gives its frozen bias the type of its inputs, for good."""
    module.bias_kept = module.bias.data


def _put_bias_back(module: Any, *_: Any) -> None:
    module.bias.data = module.bias_kept


def settle(model: nn.Module, device: torch.device) -> None:
    """Put packed layers onto the device where they stay. Those of 8 bit otherwise rearrange in
    their first call what they hold, which a copy of the model that shares their weights would
    miss."""
    for _, module in _packed_in(model):
        module.weight = module.weight.to(device)
        if hasattr(module, "init_8bit_state"):
            module.init_8bit_state()


def names_in(model: nn.Module) -> set[str]:
    """The names in the model's state_dict of everything that its packed layers hold."""
    return {
        name for path, module in _packed_in(model) for name in module.state_dict(prefix=f"{path}.")
    }


def weights_apart(model: nn.Module) -> list[Tensor]:
    """The packed weights that are not among the model's parameters: 8-bit layers hold theirs
    twice."""
    states: list[Any] = [getattr(module, "state", None) for _, module in _packed_in(model)]
    return [state.CB for state in states if getattr(state, "CB", None) is not None]


def _packed_in(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that bitsandbytes has made, by name."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes."):
            yield name, module
