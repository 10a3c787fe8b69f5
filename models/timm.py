"""Any model of timm, PyTorch Image Models (Wightman 2019), by its name there.

timm is no part of `xrun[train]`: install `xrun[timm]` here, and name `requirements: [timm]` in a recipe for machines of a cloud.
"""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from xrun.errors import ComponentError


def library() -> Any:
    """timm itself; ComponentError in a sentence where it cannot be loaded."""
    try:
        import timm
    except Exception as error:  # a torchvision for another build of torch raises RuntimeError
        told = str(error).strip().splitlines()[0]
        raise ComponentError(
            f"models/timm: timm cannot be loaded: {type(error).__name__}: {told}.",
            "Install with: pip install 'xrun[timm]'. Its torchvision has to be the one for this torch.",
        ) from error
    return timm


def weights(timm: Any, name: str, revision: str | None) -> dict[str, str]:
    """Where the Hub has the weights, as safetensors: nothing that was downloaded is unpickled."""
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if not known or not known.hf_hub_id:
        raise ComponentError(f"models/timm: timm has no weights for {name} on the Hub.", "Give `pretrained: false`.")
    place = f"{known.hf_hub_id}@{revision}" if revision else known.hf_hub_id
    return {"hf_hub_id": place, "hf_hub_filename": "model.safetensors"}


def build(
    name: str,
    classes: int,
    channels: int = 3,
    pretrained: bool = False,
    revision: str | None = None,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """(N, channels, height, width) -> logits (N, classes).

    `name` is one of `timm.list_models()`, with a tag (`vit_small_patch16_224.augreg_in21k`) for certain weights. With `pretrained`
    these come from the Hub; pin `revision` to a full commit. `args` are those of `timm.create_model`: `img_size`, `drop_rate`,
    `drop_path_rate` and so on. Pictures are to be normalised as the weights want it: the dataset's `mean` and `std`.
    """
    timm = library()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        raise ComponentError(f"models/timm: timm {timm.__version__} has no model {name!r}.", hint)
    overlay = weights(timm, name, revision) if pretrained else None
    given = {"num_classes": classes, "in_chans": channels, **(args or {})}
    model: nn.Module = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **given)
    return model.train()
