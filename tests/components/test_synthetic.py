"""What datasets/synthetic.py promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from support.components import (
    build,
    same,
    seeded,
)


@pytest.mark.parametrize(
    "args",
    [{"kind": "classification", "shape": [2, 3]}, {"kind": "tokens", "shape": 12, "classes": 50}],
)
def test_a_synthetic_sample_is_a_function_of_its_index(args: dict[str, Any]) -> None:
    """Any of a billion samples comes at once, the same each time, and differs from its
    neighbour."""
    train = build("datasets", "synthetic", samples=10**9, **args)["train"]
    last = train[10**9 - 1]
    assert len(train) == 10**9
    assert same(last, build("datasets", "synthetic", samples=10**9, **args)["train"][10**9 - 1])
    assert not same(last, train[10**9 - 2])
    with pytest.raises(IndexError):
        train[10**9]


def test_synthetic_validation_goes_on_where_training_ends() -> None:
    """`val` are the indices after `train`, so no sample is in both."""
    few, more = (build("datasets", "synthetic", samples=n, val_samples=10) for n in (100, 110))
    assert all(same(few["val"][i], more["train"][100 + i]) for i in range(10))


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_synthetic_noise_follows_from_torchs_generator(kind: str) -> None:
    """The same seed gives the same noise, another seed another, and labels and `val` have none."""
    splits = build("datasets", "synthetic", kind=kind, noise=0.5)
    one, again, other = (seeded(seed, lambda: splits["train"][3]) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    label: Any = 1 if kind == "classification" else "labels"
    assert same(one[label], other[label])
    assert same(splits["val"][0], splits["val"][0])


def test_synthetic_classes_can_be_learned() -> None:
    """The nearest class mean tells nearly all held-out labels: there is something to learn."""
    splits = build("datasets", "synthetic", samples=2000, shape=32, classes=4)
    x, y = torch.utils.data.default_collate([splits["train"][i] for i in range(2000)])
    means = torch.stack([x[y == label].mean(0) for label in range(4)])
    right = [
        int((means - image).norm(dim=1).argmin()) == label
        for image, label in map(splits["val"].__getitem__, range(200))
    ]
    assert np.mean(right) > 0.95
