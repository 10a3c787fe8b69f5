"""What each task measures, and whether less or more of a metric is better, as its name tells."""

from __future__ import annotations

import re
from typing import Literal

METRICS = {"classification": ("loss", "accuracy"), "language_modeling": ("loss", "perplexity")}
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
