"""`model.adapter`: a model of peft's, its base frozen, its adapter trained in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoint.state import check_own_tensors
from ..data.randomness import INIT, seed_generators
from ..errors import ComponentError, TrainError
from ..recipe.schema import Adapter, ModelRef, Recipe
from .contract import in_short
from .freezing import hold, hold_base
from .quantized import names_in

log = logging.getLogger("xrun")

_NAME = "default"
_TASKS = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
}
"""What peft calls the tasks of transformers' classes; a new head is trained with the adapter."""


def with_adapter(
    base: nn.Module, recipe: Recipe, adapter: Adapter, *, shapes: bool = False
) -> nn.Module:
    """peft's model around this base, its new weights drawn from the recipe's seed, the same on
    every process. `shapes`: the base has no values, which no checkpoint could hold.

    Raises:
        ComponentError: the adapter does not fit the model.
    """
    # peft brings it in. It warns of kernels that it does without, and in 8 bit at each call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import LoraConfig, get_peft_model

    ref = recipe.model
    hold_base(base, ref)
    seed_generators(recipe.train.seed, INIT, 3)
    try:
        model: Any = get_peft_model(base, LoraConfig(**{**_task_of(ref), **adapter.args}))
    except Exception as error:  # peft says in many ways that it cannot
        raise ComponentError(
            f"model.adapter: peft cannot put it onto models/{ref.name}.py: {in_short(error)}.",
            "The names in target_modules and modules_to_save are those of the model's modules.",
        ) from error
    for p in model.parameters():
        if p.requires_grad and p.is_floating_point():
            p.data = p.data.float()
    config = model.peft_config[_NAME]
    config.base_model_name_or_path, config.revision = _source_of(base, ref)
    _check_statistics(model, ref, adapter)
    packed = names_in(model) if ref.quantized else set()
    if not shapes:
        check_own_tensors(model, f"models/{ref.name}.py", packed)
    return model


def _task_of(ref: ModelRef) -> dict[str, str]:
    task = _TASKS.get(str(ref.args.get("auto_class", ""))) if ref.name == "hub" else None
    return {"task_type": task} if task else {}


def _source_of(base: nn.Module, ref: ModelRef) -> tuple[str | None, str | None]:
    """Where people find the base: its name on the Hub, at the commit that was downloaded, or its
    folder. A component's own model has no such name."""
    if ref.name != "hub":
        return None, None
    name = str(ref.args["name"])
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve()), None
    commit = getattr(getattr(base, "config", None), "_commit_hash", None)
    return name, commit or ref.args.get("revision")


def _check_statistics(model: nn.Module, ref: ModelRef, adapter: Adapter) -> None:
    """An adapter's file has no place for running statistics of the base, which move in training.

    Raises:
        ComponentError: some would be lost in the export.
    """
    kept = ("original_module", "modules_to_save")
    moving = (
        name
        for name, module in model.named_modules()
        if module.training
        and module._buffers.get("running_mean") is not None
        and not any(part in kept for part in name.split("."))
    )
    if not adapter.merge and (name := next(moving, None)):
        raise ComponentError(
            f"model.adapter: models/{ref.name}.py has {name.removeprefix('base_model.model.')},"
            " whose running statistics move while the adapter is trained, and an adapter's file"
            " has no place for them.",
            "Name it in modules_to_save, put it into evaluation mode in build(), or set"
            " model.adapter.merge: true.",
        )


def load_adapter(model: nn.Module, source: str, path: Path) -> None:
    """Put an adapter's weights, as peft saves them, onto the model's adapter.

    Raises:
        TrainError: they are of another adapter.
    """
    from peft import set_peft_model_state_dict

    found: dict[str, Tensor] = load_file(path)
    try:
        result: Any = set_peft_model_state_dict(model, found)
    except (RuntimeError, KeyError, ValueError) as error:
        raise TrainError(
            f"model.init_from: {source} does not fit the adapter: {in_short(error)}.",
            "r, target_modules and modules_to_save must be those that it was trained with.",
        ) from error
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if lacking := sorted(trained & set(result.missing_keys)):
        raise TrainError(
            f"model.init_from: {source} lacks {lacking[0]}"
            + (f" and {len(lacking) - 1} more" if lacking[1:] else "")
            + ", which the recipe's adapter has.",
            "Give model.adapter.args the values that it was trained with.",
        )
    log.info("Warm start from %s: %d weights of the adapter.", source, len(found))


def final_of(model: nn.Module, ref: ModelRef, unpacked: Callable[[], nn.Module]) -> nn.Module:
    """What is exported of a trained model: itself, or the base with the adapter merged into it,
    which it is from then on. Where the base is packed, `unpacked` builds both in bf16, and the
    adapter is merged there: the base's own layout has no packed layers."""
    if ref.adapter is None or not ref.adapter.merge:
        return model
    if ref.quantized:
        log.info("model.adapter.merge: the adapter is merged into the base in bf16.")
        model = _like(unpacked(), model)
    with torch.no_grad():
        merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]  # a method of peft's
    hold(merged, ref.held)
    return merged


@torch.no_grad()
def _like(fresh: nn.Module, trained: nn.Module) -> nn.Module:
    """The model that was just built, with what training has changed."""
    own = fresh.state_dict(keep_vars=True)
    for name, tensor in trained.state_dict(keep_vars=True).items():
        changed = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
        if changed and name in own:
            own[name].copy_(tensor)
    return fresh
