"""Pictures in a folder for each class, read with PIL alone, the shipped augmentations included.

`folder/train/cat/1.png` and `folder/val/cat/2.png`, or `folder/cat/1.png`, of which a fraction is held out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from xrun.errors import ComponentError, did_you_mean

from .hub_images import ORIENTATION, Transform  # type: ignore[import-not-found]  # this folder is no package to mypy

KINDS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Item = tuple[Tensor, int]
DIGITS = "sklearn://digits"
TRAIN, VAL = "train", {"val", "valid", "validation"}
SPLITS = {TRAIN, *VAL, "test"}


class Pictures:
    """Map-style: pairs of float32 (channels, image_size, image_size) and the number of the class in `class_names`.

    `files` are paths below `root`; those in `held` are in memory. They are kept in an array: workers would copy a list.
    """

    on_device: Callable[[Any], Any]

    def __init__(
        self, root: str, files: dict[str, int], held: dict[str, bytes], transform: Any, revision: str, class_names: list[str]
    ) -> None:  # fmt: skip
        self.root, self.held, self.transform = root, held, transform
        self.files = np.array([os.fsencode(name) for name in files])
        self.labels = np.array(list(files.values()))
        self.revision, self.class_names = revision, class_names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        name, label = os.fsdecode(self.files[index]), int(self.labels[index])
        picture = self.picture(name)
        with self.readable(name) if self.transform.fast else contextlib.nullcontext():
            item: Item = self.transform.item(picture, label)
        return item

    @contextlib.contextmanager
    def readable(self, name: str) -> Iterator[None]:
        """Around what decodes a picture; ComponentError with its name where it is none."""
        try:
            yield
        except Exception as error:  # PIL has as many as there are kinds of files
            told = f"datasets/image_folder: {self.root}/{name} cannot be read as a picture ({type(error).__name__})."
            raise ComponentError(told, "Replace the file or remove it.") from error

    def picture(self, name: str) -> Image.Image:
        """The picture, turned as its EXIF data say, or for `fast` not decoded yet; ComponentError with its name where it is none."""
        path = f"{self.root}/{name}"
        data = self.held[name] if self.held else Path(path).read_bytes()
        with self.readable(name):
            picture = Image.open(io.BytesIO(data))
            if not self.transform.fast:
                picture.load()
        if picture.mode[0] in "IF":
            told = f"datasets/image_folder: {path} has more than 8 bits per pixel (PIL's mode {picture.mode})."
            raise ComponentError(told, "PIL would cut them off. Convert it to 8 bits first.")
        if self.transform.fast:
            return picture
        return ImageOps.exif_transpose(picture) if picture.getexif().get(ORIENTATION) else picture


def files_below(root: str) -> dict[str, int]:
    """All pictures by their path below the root, and their sizes in bytes; hidden ones are none."""
    return dict(sorted((os.path.relpath(entry.path, root), entry.stat().st_size) for entry in entries(root)))


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from entries(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in KINDS:
                yield entry


def digit_files() -> dict[str, bytes]:
    """scikit-learn's digits as if they lay in such a folder: 1,797 PNG files of 8 x 8 pixels, `0/0000.png` and so on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return {f"{label}/{n:04d}.png": png(image) for n, (image, label) in enumerate(zip(images, labels, strict=True))}


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def is_held_out(name: str, fraction: float) -> bool:
    """By the hash of the path: a picture stays on its side whatever is added."""
    number = int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())
    return number < fraction * 2**64


def sides(files: list[str], val_fraction: float) -> tuple[dict[str, str], dict[str, str]]:
    """Training's and validation's files, each with its class: by the folders `train` and `val`, or by hash."""
    parts = [name.split("/") for name in files]
    tops = {part[0] for part in parts}
    # A class may be called train: then its pictures lie in that folder itself.
    in_splits = TRAIN in tops and tops <= SPLITS and all(len(part) > 2 for part in parts if part[0] == TRAIN)
    depth = 1 if in_splits else 0
    classes = {"/".join(part): part[depth] for part in parts if len(part) > depth + 1}
    val = {name: label for name, label in classes.items() if in_splits and name.split("/")[0] in VAL}
    train = {name: label for name, label in classes.items() if not in_splits or name.startswith(f"{TRAIN}/")}
    if not val:
        val = {name: label for name, label in train.items() if is_held_out(name, val_fraction)}
    return {name: label for name, label in train.items() if name not in val}, val


def class_names(folder: Path, train: dict[str, str], val: dict[str, str], val_fraction: float) -> list[str]:
    """The names of the classes, sorted; ComponentError where a side lacks what it needs."""
    names = sorted(set(train.values()))
    if not names:
        hint = f"It needs a folder for each class, with files {', '.join(sorted(KINDS))} in it."
        raise ComponentError(f"datasets/image_folder: there are no pictures to train on in {folder}.", hint)
    if val_fraction and not val:
        what = f"none of the {len(train)} pictures in {folder} is held out by val_fraction {val_fraction}."
        raise ComponentError(f"datasets/image_folder: {what}", "Take more of them, or 0 for no `val`.")
    if strange := sorted(set(val.values()) - set(names)):
        hint = did_you_mean(strange[0], names) or f"There are: {', '.join(names[:20])}."
        raise ComponentError(f"datasets/image_folder: the class {strange[0]} is in `val` and has no picture in `train`.", hint)
    return names


def build(
    folder: Path,
    image_size: int = 224,
    channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    val_fraction: float = 0.1,
    augment: bool = True,
    smallest_crop: float = 0.25,
    mirror: bool = True,
    eval_crop: float = 0.875,
    fast: bool = False,
) -> dict[str, Pictures]:
    """`train` and `val` of pairs of float32 (channels, image_size, image_size) and the number of the class, by sorted names.

    `folder` has `train` and `val`, each with a folder for each class, or these folders themselves; then about `val_fraction` of
    the pictures are held out, each by the hash of its path (0: no `val`). Files lie at any depth below their class. A relative
    path begins at the project; `sklearn://digits` is scikit-learn's digits, as if they lay there. `mean` and `std` are per
    channel, for pixels from 0 to 1 (default 0.5). `augment` takes a random part of each training picture, at least
    `smallest_crop` of its area, and with `mirror` turns half of them; otherwise, and in `val`, it is the middle square, with
    `eval_crop` of the shorter side. `fast`: pictures travel as bytes and become numbers on the model's device, and large JPEGs are
    decoded at a fraction of their size; what the model sees differs a little. `revision` is the hash of all names and sizes.
    """
    if channels not in (1, 3):
        raise ComponentError(f"datasets/image_folder: channels is 1 or 3 (got {channels}).")
    held = digit_files() if str(folder) == DIGITS else {}
    if not held and not Path(folder).is_dir():
        raise ComponentError(f"datasets/image_folder: there is no folder {folder}.")
    sizes = {name: len(data) for name, data in held.items()} or files_below(str(folder))
    parts = sides(list(sizes), val_fraction)
    names = class_names(folder, *parts, val_fraction)
    numbers = {name: number for number, name in enumerate(names)}
    revision = hashlib.blake2b(repr(sorted(sizes.items())).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    splits: dict[str, Pictures] = {}
    for split, part in zip(("train", "val"), parts, strict=True):
        half = [0.5] * channels
        change = Transform("", "", image_size, channels, mean or half, std or half, augment and split == "train")
        change.smallest_crop, change.resize_to, change.mirrors, change.fast = smallest_crop, 1 / eval_crop, mirror, fast
        files = {name: numbers[label] for name, label in part.items()}
        splits[split] = Pictures(str(folder), files, held, change, revision, names)
        if fast:
            splits[split].on_device = change.on_device
    return splits if parts[1] else {"train": splits["train"]}
