"""What datasets/hub_images.py promises, on pictures that are written here."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.components import build, finish, picture, same, seeded
from xrun.errors import ComponentError


def test_hub_images_give_tensors_and_labels(pictures: Path) -> None:
    """Map-style splits of a folder: all pictures, of the wanted size, with their labels,
    normalised."""
    splits = build("datasets", "hub_images", name=str(pictures), image_size=16, augment=False)
    assert [label for _, label in splits["train"].__getitems__(list(range(24)))] == list(range(24))
    assert len(splits["val"]) == 8
    image, _ = splits["train"][5]
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
    assert -1 <= image.min() < image.max() <= 1


def test_hub_images_are_the_middle_of_the_picture(pictures: Path) -> None:
    """Without augmentation the tensor is the resized middle square, computed here in another
    way."""
    image, label = build(
        "datasets", "hub_images", name=str(pictures), image_size=35, channels=1, augment=False
    )["train"][7]
    grey = Image.fromarray(picture(label)).convert("L")
    side = 40 / 1.143
    box = (25 - side / 2, 20 - side / 2, 25 + side / 2, 20 + side / 2)
    expected = (
        np.asarray(grey.resize((35, 35), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
        / 127.5
        - 1
    )
    assert np.allclose(image[0].numpy(), expected, atol=1e-6)


def test_fast_pictures_are_nearly_the_same_ones(tmp_path: Path) -> None:
    """In bytes, which become numbers where the model is; a JPEG that is decoded at a fraction of
    its size is the same part of the same picture, however the camera was held."""
    for split in ("train", "validation"):
        for number, orientation in enumerate((1, 6, 3)):
            path = tmp_path / "photos" / split / f"kind {number}" / "1.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = orientation  # how the camera was held
            photo = Image.fromarray(picture(number)[::4, ::5]).resize((640, 480))
            photo.save(path, exif=exif, quality=95)
    args = {"name": str(tmp_path / "photos"), "image_size": 48, "std": [0.25, 0.5, 0.75]}
    plain, fast = (build("datasets", "hub_images", **args, fast=each) for each in (False, True))
    assert not hasattr(plain["train"], "on_device")
    for split in ("train", "val"):
        rows, sent = (seeded(1, functools.partial(list, each[split])) for each in (plain, fast))
        pixels = torch.stack([image for image, _ in sent])
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 3, 48, 48))
        numbers, labels = fast["train"].on_device((pixels, "labels"))
        off = numbers - torch.stack([image for image, _ in rows])
        assert (numbers.dtype, labels) == (torch.float32, "labels")
        assert off.abs().mean() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_become_the_same_numbers_anywhere(pictures: Path, channels: int) -> None:
    """Of pictures that nothing is left out of: PNG knows no fractions."""
    args = {"name": str(pictures), "image_size": 16, "channels": channels, "std": [0.3] * channels}
    plain, fast = (build("datasets", "hub_images", **args, fast=each) for each in (False, True))
    rows, sent = (seeded(1, functools.partial(list, each["train"])) for each in (plain, fast))
    numbers, _ = fast["train"].on_device((torch.stack([image for image, _ in sent]), None))
    assert torch.equal(numbers, torch.stack([image for image, _ in rows]))


def test_hub_images_augmentation_follows_from_torchs_generator(pictures: Path) -> None:
    """The same seed gives the same crop, another seed another, and `val` is never changed."""
    splits = build("datasets", "hub_images", name=str(pictures), image_size=16)
    one, again, other = (seeded(seed, lambda: splits["train"][0]) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    assert same(splits["val"][0], splits["val"][0])


def test_streamed_images_are_the_same_as_held_ones(pictures: Path) -> None:
    """All shards together give every item of the map-style split, and iterating decodes nothing."""
    args = {"name": str(pictures), "image_size": 16, "augment": False}
    held, stream = (
        build("datasets", "hub_images", **args, streaming=streaming)["train"]
        for streaming in (False, True)
    )
    raw = [example for i in range(stream.num_shards) for example in stream.shard(i)]
    assert stream.num_shards == 3
    assert set(raw[0]["image"]) == {"bytes", "path"}
    assert same([stream.transform(example) for example in raw], held.__getitems__(list(range(24))))
    assert stream.revision == held.revision


@pytest.mark.parametrize("taken", [1, 5, 8])
def test_an_image_shard_resumes_in_the_middle(pictures: Path, taken: int) -> None:
    """After `load_state_dict` exactly the rest of the shard comes, in the same order."""
    stream = build("datasets", "hub_images", name=str(pictures), image_size=16, streaming=True)[
        "train"
    ]
    whole = finish(stream.shard(1))
    shard = stream.shard(1)
    iterator = iter(shard)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(shard.state_dict()))
    finish(iterator)
    resumed = stream.shard(1)
    resumed.load_state_dict(state)
    assert finish(resumed) == whole[taken:]


def test_streamed_images_are_validated_on_every_shard(pictures: Path) -> None:
    """`val` of a stream is map-style and takes its samples evenly from all files."""
    splits = build(
        "datasets", "hub_images", name=str(pictures), image_size=16, streaming=True, val_samples=4
    )
    assert [label for _, label in splits["val"]] == [0, 1, 8, 9]


def test_hub_images_read_a_folder_of_image_files(tmp_path: Path) -> None:
    """A folder of classes with picture files works as it is; labels are the folders in alphabetical
    order."""
    for number, name in enumerate(["cat", "dog"]):
        path = tmp_path / "animals" / "train" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture(number)).save(path)
    for streaming in (False, True):
        args = {
            "name": str(tmp_path / "animals"),
            "val_split": None,
            "image_size": 8,
            "augment": False,
            "streaming": streaming,
        }
        train = build("datasets", "hub_images", **args)["train"]
        items = (
            [train.transform(e) for i in range(train.num_shards) for e in train.shard(i)]
            if streaming
            else list(train)
        )
        assert sorted(label for _, label in items) == [0, 1]


def test_hub_images_name_the_columns_there_are(pictures: Path) -> None:
    """A column that does not exist is an error that lists those that do."""
    with pytest.raises(ComponentError, match=r"no column class.*image, label, note"):
        build("datasets", "hub_images", name=str(pictures), label_column="class")


def test_what_evaluation_does_goes_with_the_model(tmp_path: Path) -> None:
    """The class names of the features, and a processor of transformers that makes of a picture what
    evaluation makes of it, up to how pixels are averaged."""
    import datasets
    from transformers.models.clip import CLIPImageProcessorPil

    smooth = np.linspace(0, 255, 60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "png")
    raw = {"bytes": buffer.getvalue(), "path": None}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = datasets.Dataset.from_dict({"image": [raw] * 2, "label": [1, 0]}, features=features)
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "train-0.parquet")
    args = {"name": str(tmp_path / "rows"), "image_size": 28, "val_split": None, "augment": False}
    std = [0.25, 0.5, 0.75]
    split = build("datasets", "hub_images", **args, std=std)["train"]
    assert split.class_names == ["cat", "dog"]
    split.processor.save_pretrained(str(tmp_path))
    made = CLIPImageProcessorPil.from_pretrained(tmp_path)
    pixels = made(Image.fromarray(smooth), return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == split[0][0].shape
    assert (pixels - split[0][0]).abs().mean() < 0.05
    stream = build("datasets", "hub_images", **args, streaming=True)["train"]
    assert stream.class_names == ["cat", "dog"]
