"""What `model.adapter` takes: the arguments of peft's `LoraConfig`, by name and kind.

peft takes seconds to import and is not installed where runs are only launched, so its signature
stands here as it is in the pinned version; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ..component import Expected, shown
from ..errors import Problem, did_you_mean

LORA: Mapping[str, str] = {
    "r": "int",
    "target_modules": "Optional[Union[list[str], str]]",
    "exclude_modules": "Optional[Union[list[str], str]]",
    "lora_alpha": "int",
    "lora_dropout": "float",
    "fan_in_fan_out": "bool",
    "bias": "Literal['none', 'all', 'lora_only']",
    "use_rslora": "bool",
    "modules_to_save": "Optional[list[str]]",
    "init_lora_weights": "bool | Literal['gaussian', 'orthogonal']",
    "layers_to_transform": "Optional[Union[list[int], int]]",
    "layers_pattern": "Optional[Union[list[str], str]]",
    "rank_pattern": "Optional[dict]",
    "alpha_pattern": "Optional[dict]",
    "trainable_token_indices": "Optional[Union[list[int], dict[str, list[int]]]]",
    "use_dora": "bool",
    "alora_invocation_tokens": "Optional[list[int]]",
    "layer_replication": "Optional[list[tuple[int, int]]]",
    "lora_bias": "bool",
    "target_parameters": "Optional[list[str]]",
    "ensure_weight_tying": "bool",
    "task_type": "Optional[str]",
}
"""The arguments that a recipe may give, with their annotations."""
_BASE = "it changes the base's own weights, which no checkpoint holds"
_DATA = "it has to see data before the first step"
_UNTRIED = "it is not tested with exact resumes"
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("loftq_config", "corda_config"), _BASE),
    **dict.fromkeys(("eva_config", "lora_ga_config"), _DATA),
    **dict.fromkeys(
        (
            *("megatron_config", "megatron_core", "velora_config", "use_qalora"),
            *("qalora_group_size", "monteclora_config", "runtime_config", "use_bdlora"),
            *("arrow_config", "kasa_config"),
        ),
        _UNTRIED,
    ),
    **dict.fromkeys(
        (
            *("peft_type", "auto_mapping", "base_model_name_or_path", "revision"),
            *("inference_mode", "peft_version"),
        ),
        "xrun sets it",
    ),
}
"""Arguments of a `LoraConfig` that a recipe may not give, and why."""
_BEGINNINGS = {"eva": _DATA, "mica": _UNTRIED}


def wrong_adapter_args(args: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a LoRA adapter's arguments; `key` is the argument's name."""
    for name, value in args.items():
        if name in _REFUSED:
            yield Problem("", 0, 0, name, f"not available: {_REFUSED[name]}", hint="Remove it.")
        elif name not in LORA:
            hint = did_you_mean(name, LORA) or f"It takes {', '.join(islice(LORA, 12))}, ..."
            yield Problem("", 0, 0, name, "peft's LoraConfig has no such argument", hint=hint)
        elif not (expected := Expected(LORA[name])).accepts(value):
            yield _of_another_kind(name, value, expected)


def _of_another_kind(name: str, value: Any, expected: Expected) -> Problem:
    got = value if isinstance(value, str) else shown(value)
    if name == "init_lora_weights" and isinstance(value, str):
        why = _BEGINNINGS.get(value, _BASE)
        hint = "Use true, false, gaussian or orthogonal."
        return Problem("", 0, 0, name, f"not available: {why}", got, hint)
    return Problem("", 0, 0, name, f"peft's LoraConfig takes {expected}", got)
