"""Which keys of a recipe change what is computed, so that a run's id follows from them: the one
list, for whoever makes the id and for whoever asks whether two recipes would get two."""

from __future__ import annotations

TRAIN = (
    "global_batch",
    "micro_batch",
    "precision",
    "optimizer",
    "schedule",
    "clip_grad_norm",
    "seed",
    "ema",
    "gather",
)
"""Keys of `train` that change what is computed; the others change where, how fast, or how long."""
WHOLE = ("model", "dataset", "task")
"""Parts that count whole, but for what is only done with the finished model."""
AFTERWARDS = ("model.adapter.merge",)


def counts(key: str) -> bool:
    """Whether a dotted key changes what is computed."""
    part, _, inner = key.partition(".")
    if part == "train":
        return inner.partition(".")[0] in TRAIN
    return part in WHOLE and key not in AFTERWARDS
