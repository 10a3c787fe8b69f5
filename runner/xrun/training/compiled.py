"""`train.compile`: the call of a model through torch.compile, so that the graph of a step follows
from the recipe and the step alone.

What was compiled before must not count, because an attempt that resumes has compiled other batches
before, or none. So every shape has a graph of its own (`dynamic=False`; by default torch makes a
second shape's graph for any shape), batches that are short run as they are, and a model that would
be compiled again and again is refused, where torch would go on without compiling from some step on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import TrainError

GRAPHS = 16
"""How often one call may be compiled. Training and evaluation on whole batches of one shape are two
graphs."""
VERSION = 2
"""Of how xrun compiles: what was computed under another one may have other bits. In the first one a
model that is one of torch's own modules (`nn.Sequential`) was not compiled at all."""


class Compiled:
    """Calls a model, compiled by `backend`: torch's own by default, which needs a C++ compiler on
    processors and Triton on GPUs; one that only counts, or computes as it is, needs neither."""

    def __init__(self, backend: Any = "inductor") -> None:
        # Loud instead of uncompiled. Process-wide: a call's own settings would cost a context each.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._dynamo.config.recompile_limit = GRAPHS
        self._call = torch.compile(_call, dynamic=False, backend=backend)

    def __call__(self, model: nn.Module, *arguments: Any, **named: Any) -> Any:
        """What the model gives.

        Raises:
            TrainError: it would have to be compiled too often.
        """
        try:
            return self._call(model, *arguments, **named)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise TrainError(
                f"train.compile: {type(model).__name__} was compiled {GRAPHS} times, and this batch"
                " needs one more: shapes, or numbers in the model, change from step to step.",
                "Pad batches to one length, or set train.compile: false.",
            ) from error


def _call(model: nn.Module, *arguments: Any, **named: Any) -> Any:
    """A frame that is not torch's own: those torch.compile passes over, so
    `nn.Sequential(...).compile()` compiles nothing."""
    return model(*arguments, **named)
