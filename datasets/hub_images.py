"""Images and labels from Hugging Face datasets: on the Hub or in a local folder, held or streamed.

Images stay encoded until `transform`, which runs in the workers. Nothing remote is executed: `datasets` runs no loading scripts.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from xrun.errors import ComponentError

if TYPE_CHECKING:
    import datasets  # takes a second, and datasets/image_folder does without

Item = tuple[Tensor, int]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in pixels."""
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""
SMALLEST_CROP = 0.25
"""Smallest share of the image's area that a training crop keeps (Szegedy et al. 2014 take 0.08, for longer training)."""
RESIZE = 1.143
"""Evaluation resizes the shorter side to 256 / 224 of the crop, as usual since Krizhevsky et al. 2012."""


class Transform:
    """A raw example -> (float32 (channels, image_size, image_size), label); draws from torch's generator if it augments.

    `fast`: the same in uint8, which `on_device` makes float32 of, decoded no larger than it has to be."""

    fast = False
    smallest_crop = SMALLEST_CROP
    resize_to = RESIZE
    mirrors = True

    def __init__(
        self, image_column: str, label_column: str, image_size: int, channels: int, mean: list[float], std: list[float],
        augment: bool,
    ) -> None:  # fmt: skip
        self.image_column, self.label_column, self.augment = image_column, label_column, augment
        self.image_size, self.mode = image_size, {1: "L", 3: "RGB"}[channels]
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, example: dict[str, Any]) -> Item:
        import datasets

        picture, label = example[self.image_column], int(example[self.label_column])
        if self.fast and picture["bytes"] is not None:
            return self.item(Image.open(io.BytesIO(picture["bytes"])), label)
        return self.item(datasets.Image().decode_example(picture), label)

    def item(self, image: Image.Image, label: int) -> Item:
        """A picture and its class, as the model takes them; `fast` ones are not decoded yet."""
        if self.fast:
            return self.pixels(self.drafted(image)), label
        image = image.convert(self.mode)
        return (self.pixels(self.cropped(image, *self.box(image.size))).float() / 255 - self.mean) / self.std, label

    def on_device(self, batch: Any) -> Any:
        """(uint8 pictures, labels) -> the pictures as numbers, where they are."""
        pictures, labels = batch
        channels = zip(pictures.unbind(1), self.mean.flatten().tolist(), self.std.flatten().tolist(), strict=True)
        return torch.stack([(pixels.float() / 255 - mean) / std for pixels, mean, std in channels], 1), labels

    def pixels(self, image: Image.Image) -> Tensor:
        """uint8 (channels, image_size, image_size)."""
        return torch.from_numpy(np.array(image)).view(self.image_size, self.image_size, -1).permute(2, 0, 1)

    def box(self, size: tuple[int, int]) -> tuple[Box, bool]:
        """The part of a picture of so many pixels that is taken, and whether it is mirrored."""
        return self.random_box(*size) if self.augment else (self.center_box(*size), False)

    def random_box(self, width: int, height: int) -> tuple[Box, bool]:
        """A rectangle of random area and shape (3/4 to 4/3), mirrored half of the time."""
        area, ratio, x, y, mirror = torch.rand(5).tolist()
        size = math.sqrt((self.smallest_crop + (1 - self.smallest_crop) * area) * width * height)
        stretch = math.exp((ratio - 0.5) * math.log(4 / 3))
        w, h = min(size * stretch, width), min(size / stretch, height)
        left, top = x * (width - w), y * (height - h)
        return (left, top, left + w, top + h), self.mirrors and mirror < 0.5

    def center_box(self, width: int, height: int) -> Box:
        """The middle square, of a side such that resizing first and cropping then would give the same picture."""
        side = min(width, height) / self.resize_to
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def cropped(self, image: Image.Image, box: Box, mirrored: bool) -> Image.Image:
        out = image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR, box=box)
        return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else out

    def drafted(self, image: Image.Image) -> Image.Image:
        """The part of a picture that is not decoded yet. A JPEG is decoded at a half, a quarter or an eighth of its size where
        the part has no fewer pixels then than are wanted of it."""
        held = image.getexif().get(ORIENTATION, 1)
        width, height = image.size[::-1] if held > 4 else image.size
        (left, top, right, bottom), mirrored = self.box((width, height))
        needed = min(1.0, self.image_size / min(right - left, bottom - top))
        image.draft(self.mode, (math.ceil(image.width * needed), math.ceil(image.height * needed)))
        image = ImageOps.exif_transpose(image) if held > 1 else image
        image = image if image.mode == self.mode else image.convert(self.mode)  # either copies all of it
        x, y = image.width / width, image.height / height
        return self.cropped(image, (left * x, top * y, right * x, bottom * y), mirrored)


class Processor:
    """What evaluation does with an image, for transformers' image processors: goes with the exported model."""

    def __init__(self, image_size: int, channels: int, mean: list[float], std: list[float]) -> None:
        self.config = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": channels == 3,
            "do_resize": True,
            "size": {"shortest_edge": round(RESIZE * image_size)},
            "resample": int(Image.Resampling.BILINEAR),
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": mean,
            "image_std": std,
        }

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(self.config, indent=2) + "\n")


class Images:
    """Map-style: `rows` are raw examples, a memory-mapped dataset or a list."""

    on_device: Callable[[Any], Any]
    class_names: list[str] | None = None
    processor: Processor | None = None

    def __init__(self, rows: Any, transform: Transform, revision: str) -> None:
        self.rows, self.transform, self.revision = rows, transform, revision

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.transform(self.rows[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        return [self[int(index)] for index in indices]


class ImageStream:
    """Streaming: one shard per file; a shard is a `datasets.IterableDataset`, which resumes by its state."""

    on_device: Callable[[Any], Any]
    class_names: list[str] | None = None
    processor: Processor | None = None

    def __init__(self, rows: datasets.IterableDataset, transform: Transform, revision: str) -> None:
        self.rows, self.transform, self.revision = rows, transform, revision
        self.num_shards: int = rows.num_shards

    def shard(self, index: int) -> datasets.IterableDataset:
        return self.rows.shard(num_shards=self.num_shards, index=index)


def version(name: str, revision: str | None) -> str:
    """What names the data: the given revision, for a folder the hash of its files' names and sizes, else the moving `main`."""
    if not Path(name).is_dir():
        return revision or "main"
    files = [(path.relative_to(name).as_posix(), path.stat().st_size) for path in Path(name).rglob("*") if path.is_file()]
    return hashlib.blake2b(repr(sorted(files)).encode(), digest_size=16).hexdigest()


def encoded(rows: Any, image_column: str, label_column: str) -> Any:
    """`rows` with these two columns and the images as the file's bytes."""
    import datasets

    known = rows.column_names or [image_column, label_column]  # some streams do not know theirs
    missing = {image_column, label_column} - set(known)
    if missing:
        raise ComponentError(f"datasets/hub_images: no column {', '.join(sorted(missing))}.", f"There are: {', '.join(known)}.")
    return rows.select_columns([image_column, label_column]).cast_column(image_column, datasets.Image(decode=False))


def first_of_each(rows: datasets.IterableDataset, samples: int) -> list[Any]:
    """About `samples` examples, the same number from the start of each shard: files are often sorted by label."""
    share = math.ceil(samples / rows.num_shards)
    return [row for i in range(rows.num_shards) for row in rows.shard(num_shards=rows.num_shards, index=i).take(share)]


def build(
    name: str,
    revision: str | None = None,
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    train_split: str = "train",
    val_split: str | None = "validation",
    image_size: int = 224,
    channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    augment: bool = True,
    streaming: bool = False,
    val_samples: int = 2048,
    fast: bool = False,
) -> dict[str, Images | ImageStream]:
    """`train` and, with `val_split`, `val`, of pairs of float32 (channels, image_size, image_size) and a label.

    `name` is owner/dataset or a local folder (parquet, arrow or an image folder); pin `revision` to a full commit. `mean` and
    `std` are per channel, for pixels from 0 to 1 (default 0.5). With `streaming` nothing is downloaded first; then `val` is held
    in memory, encoded, and has about `val_samples` examples. The class names and what evaluation does with an image go with the model.
    `fast`: pictures travel as bytes and become numbers on the model's device, and large JPEGs are decoded at a fraction of their
    size; what the model sees differs a little.
    """
    import datasets

    if channels not in (1, 3):
        raise ComponentError(f"datasets/hub_images: channels is 1 or 3 (got {channels}).")

    def split(which: str) -> Any:
        rows = datasets.load_dataset(name, config_name, split=which, revision=revision, streaming=streaming)
        return encoded(rows, image_column, label_column)

    half = [0.5] * channels

    def transform(random: bool) -> Transform:
        made = Transform(image_column, label_column, image_size, channels, mean or half, std or half, random)
        made.fast = fast
        return made

    tag = version(name, revision)
    kind = ImageStream if streaming else Images
    rows = split(train_split)
    splits: dict[str, Images | ImageStream] = {"train": kind(rows, transform(augment), tag)}
    splits["train"].class_names = getattr((rows.features or {}).get(label_column), "names", None)
    splits["train"].processor = Processor(image_size, channels, mean or half, std or half)
    if fast:
        splits["train"].on_device = splits["train"].transform.on_device
    if val_split:
        held = first_of_each(split(val_split), val_samples) if streaming else split(val_split)
        splits["val"] = Images(held, transform(False), tag)
    return splits
