"""What datasets/digits.py promises, on scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import torch

from support.components import (
    build,
    same,
    seeded,
)
from support.paths import ROOT
from xrun.component import load_build


def test_digits_are_split_without_loss_or_overlap() -> None:
    """Every image is in exactly one split, and every class in the same proportion in both."""
    from sklearn.datasets import load_digits

    splits = build("datasets", "digits")
    found = [
        (*(image.flatten() * 8 + 8).tolist(), label)
        for split in splits.values()
        for image, label in split
    ]
    images, labels = load_digits(return_X_y=True)
    assert sorted(found) == sorted(
        (*map(float, image), label) for image, label in zip(images, labels, strict=True)
    )
    shares = [np.bincount(split.labels, minlength=10) / len(split) for split in splits.values()]
    assert np.abs(shares[0] - shares[1]).max() < 0.005


def test_digits_split_follows_from_its_seed() -> None:
    """The same seed gives the same split, another seed another one."""
    first, again, other = (
        build("datasets", "digits", split_seed=seed)["val"].labels for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_digits_augmentation_follows_from_torchs_generator() -> None:
    """The same seed gives the same images to the last bit, another seed others, and `val` is never
    changed."""
    splits = build("datasets", "digits", augment=True)
    one, again, other = (
        seeded(seed, lambda: splits["train"].__getitems__([5, 6, 7])) for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not same(one, other)
    assert same(splits["val"][3], splits["val"][3])


def test_digits_move_by_one_pixel_at_most() -> None:
    """A shifted image is the image itself, moved, with background behind it."""
    shift = load_build("datasets", "digits", ROOT).__globals__["shift"]
    image = torch.rand(1, 1, 8, 8).expand(200, -1, -1, -1)
    padded = torch.nn.functional.pad(image[0, 0], (1, 1, 1, 1), value=-1.0)
    places = {padded[y : y + 8, x : x + 8].numpy().tobytes() for y in range(3) for x in range(3)}
    assert {moved.numpy().tobytes() for moved in seeded(0, lambda: shift(image))[:, 0]} == places
