"""What each task measures, and whether less or more of a metric is better, as its name tells."""

from __future__ import annotations

import re
from typing import Literal

METRICS = {
    "classification": ("loss", "accuracy"),
    "language_modeling": ("loss", "perplexity"),
    "regression": ("loss",),
    "multi_label": ("loss", "accuracy"),
    "token_classification": ("loss", "accuracy"),
    "segmentation": ("loss", "accuracy"),
}
"""What is measured without being asked for. A model with a loss of its own says itself."""
_F1 = ("f1", "f1_micro", "f1_weighted", "precision", "recall")
_RANKED = ("auroc", "average_precision")
_NUMBERS = ("mae", "mse", "rmse", "r2")
FURTHER = {
    "classification": (*_F1, *_RANKED, "top5"),
    "language_modeling": (),
    "regression": _NUMBERS,
    "multi_label": (*_F1, *_RANKED),
    "token_classification": (*_F1, *_RANKED, "top5"),
    "segmentation": ("miou", *_F1),
    "model": ("accuracy", *_F1, "miou", *_RANKED, "top5", *_NUMBERS),
}
"""What is measured over the whole split where a recipe names it; `top5` stands for every number."""
_TOP = re.compile(r"top([1-9][0-9]{0,3})")
_MORE = re.compile(
    r"(^|[_/-])(acc|accuracy|f1|auc|auroc|precision|recall|bleu|rouge\w*|iou|miou|map|psnr|ssim"
    r"|top\d+|score|r2)($|[_/-])"
)
_LESS = re.compile(
    r"(^|[_/-])(loss|perplexity|ppl|error|err|mse|rmse|mae|nll|wer|cer|fid|bpb|bpc)($|[_/-])"
)


def better(metric: str) -> Literal["min", "max"] | None:
    """Whether less or more of a metric is better, as far as its name tells."""
    if _LESS.search(metric.lower()):
        return "min"
    return "max" if _MORE.search(metric.lower()) else None


def top(metric: str) -> int | None:
    """5 for `top5`, None for what is called otherwise."""
    found = _TOP.fullmatch(metric)
    return int(found[1]) if found else None


def is_measured(task: str, metric: str) -> bool:
    """Whether a task measures it, by itself or where it is named."""
    named = "top5" if top(metric) else metric
    return named in (*METRICS.get(task, ()), *FURTHER[task])


def over_the_split(task: str, metric: str, named: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics that are computed over the whole split: the named ones and the one that decides,
    unless the task has it by itself. A model with a loss of its own may return the latter."""
    deciding = () if task == "model" else (metric,)
    wanted = dict.fromkeys((*named, *deciding))
    return tuple(name for name in wanted if name not in METRICS.get(task, ()))
