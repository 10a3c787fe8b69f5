"""A multi-layer perceptron over flattened inputs."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from xrun.errors import ComponentError


def layer(inputs: int, outputs: int, dropout: float, batch_norm: bool) -> list[nn.Module]:
    """One hidden layer; its bias stays with batch norm too, so that the two variants differ in one module only."""
    norm = [nn.BatchNorm1d(outputs)] if batch_norm else []
    drop = [nn.Dropout(dropout)] if dropout else []
    return [nn.Linear(inputs, outputs), *norm, nn.GELU(), *drop]


def build(
    inputs: int,
    classes: int,
    hidden: list[int] | int = 128,
    depth: int = 1,
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Module:
    """(N, ...) with `inputs` numbers per sample -> logits (N, classes).

    `hidden` is the list of the hidden widths, or one width that is repeated `depth` times.
    """
    if isinstance(hidden, list) and depth != 1:
        raise ComponentError("models/mlp: `depth` repeats one width; with a list in `hidden` leave it out.")
    widths = [inputs, *(hidden if isinstance(hidden, list) else [hidden] * depth)]
    layers = [m for a, b in pairwise(widths) for m in layer(a, b, dropout, batch_norm)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], classes))
