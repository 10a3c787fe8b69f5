"""What datasets/image_folder.py promises, on pictures that are written here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from support.components import build, picture, same, seeded
from xrun.errors import ComponentError


def write(root: Path, *names: str, mode: str = "RGB") -> Path:
    """Pictures of noise by their names below the folder."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).convert(mode).save(path)
    return root


def files(split: dict[str, object], side: str) -> list[str]:
    return [name.decode() for name in getattr(split.get(side), "files", [])]


def test_folders_train_and_val_are_the_splits(tmp_path: Path) -> None:
    """Classes are the folders' names, sorted; files may lie deeper and in capitals; what is hidden,
    no picture, or a split that is not used is left out."""
    names = ("train/dog/1.png", "train/cat/deep/2.JPG", "val/dog/3.webp", "test/cat/4.png")
    root = write(tmp_path, *names, "train/.cache/5.png")
    (root / "train" / "notes.txt").write_text("by hand")
    splits = build("datasets", "image_folder", folder=root, image_size=8)
    assert splits["train"].class_names == splits["val"].class_names == ["cat", "dog"]
    assert (files(splits, "train"), files(splits, "val")) == ([names[1], names[0]], [names[2]])
    assert [label for _, label in splits["train"]] == [0, 1]
    assert [label for _, label in splits["val"]] == [1]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Where its pictures lie in that folder itself, beside those of other classes."""
    root = write(tmp_path, "train/1.png", "bus/2.png", "val/3.png")
    train = build("datasets", "image_folder", folder=root, val_fraction=0.0)["train"]
    assert train.class_names == ["bus", "train", "val"]


def test_pictures_are_held_out_by_their_paths(tmp_path: Path) -> None:
    """About the fraction of them, the same ones every time; what is added moves none."""
    names = [f"{label}/{n}.png" for label in "ab" for n in range(60)]
    root = write(tmp_path, *names[:100])
    before = build("datasets", "image_folder", folder=root, val_fraction=0.2)
    held_out = set(files(before, "val"))
    assert 10 <= len(held_out) <= 30
    assert sorted([*held_out, *files(before, "train")]) == sorted(names[:100])
    write(tmp_path, *names)
    after = build("datasets", "image_folder", folder=root, val_fraction=0.2)
    assert set(files(after, "val")) & set(names[:100]) == held_out
    assert after["train"].revision != before["train"].revision


def test_a_picture_is_what_hub_images_makes_of_it(tmp_path: Path, pictures: Path) -> None:
    """The same augmentation from the same seed, and the same middle square, to the last bit."""
    root = tmp_path / "own"
    for side in ("train", "val"):
        write(root, f"{side}/a/0.png")
    own = build("datasets", "image_folder", folder=root, image_size=16, eval_crop=1 / 1.143)
    hub = build("datasets", "hub_images", name=str(pictures), image_size=16)
    assert same(*(seeded(3, partial(s["train"].__getitem__, 0)) for s in (own, hub)))
    assert same(own["val"][0], hub["val"][0])
    assert not same(*(seeded(seed, lambda: own["train"][0]) for seed in (3, 4)))
    assert same(*(seeded(seed, lambda: own["val"][0]) for seed in (3, 4)))


def test_crops_follow_the_arguments(tmp_path: Path) -> None:
    """The whole picture, never mirrored: augmentation has nothing left to change but the shape of
    the part, and evaluation sees all of the middle square."""
    root = write(tmp_path, "train/a/0.png", "val/a/1.png")
    args = {"folder": root, "image_size": 40, "channels": 1, "augment": False, "eval_crop": 1.0}
    image, _ = build("datasets", "image_folder", **args)["val"][0]
    middle = Image.fromarray(picture(1)).convert("L").crop((5, 0, 45, 40))
    assert torch.equal(image[0], (torch.tensor(np.array(middle)) / 255 - 0.5) / 0.5)
    own = {**args, "augment": True, "smallest_crop": 0.9}
    mirrored = [build("datasets", "image_folder", **own, mirror=flag)["train"] for flag in (0, 1)]
    turned = [same(*(seeded(n, partial(s.__getitem__, 0)) for s in mirrored)) for n in range(8)]
    assert set(turned) == {True, False}


def test_cameras_are_turned(tmp_path: Path) -> None:
    """A picture that says by EXIF how it was held is upright."""
    upright = write(tmp_path, "a/0.png", "a/1.png") / "a" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = Image.open(upright)
    image.rotate(180).save(tmp_path / "a" / "1.png", exif=exif)
    args = {"folder": tmp_path, "image_size": 8, "val_fraction": 0.0, "augment": False}
    assert same(*(build("datasets", "image_folder", **args)["train"][n] for n in (0, 1)))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Empty, of another kind, or cut off: the sentence has its path."""
    root = write(tmp_path, "a/0.png")
    (root / "a" / "0.png").write_bytes(content)
    train = build("datasets", "image_folder", folder=root, val_fraction=0.0)["train"]
    with pytest.raises(ComponentError, match=r"/a/0\.png cannot be read as a picture"):
        train[0]


def test_a_picture_that_is_cut_off_is_named(tmp_path: Path) -> None:
    """Also where its first half is fine."""
    path = write(tmp_path, "a/0.png") / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:2000])
    train = build("datasets", "image_folder", folder=tmp_path, val_fraction=0.0)["train"]
    with pytest.raises(ComponentError, match=r"/a/0\.png cannot be read as a picture"):
        train[0]


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    """PIL would make white of them without a word."""
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "a" / "0.png")
    train = build("datasets", "image_folder", folder=tmp_path, val_fraction=0.0)["train"]
    with pytest.raises(ComponentError, match=r"0\.png has more than 8 bits per pixel"):
        train[0]


@pytest.mark.parametrize(
    ("names", "args", "said"),
    [
        ((), {}, "there are no pictures to train on"),
        (("1.png",), {}, "there are no pictures to train on.*a folder for each class"),
        (("train/cat/1.png", "val/cats/2.png"), {}, "class cats is in `val`.*Did you mean `cat`"),
        (("a/1.png",), {"val_fraction": 0.0001}, "none of the 1 pictures"),
        (("a/1.png",), {"channels": 4}, "channels is 1 or 3"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_says_why(
    tmp_path: Path, names: tuple[str, ...], args: dict[str, object], said: str
) -> None:
    """Before a step is computed."""
    with pytest.raises(ComponentError, match=said):
        build("datasets", "image_folder", folder=write(tmp_path, *names), **args)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"there is no folder .*/nowhere"):
        build("datasets", "image_folder", folder=tmp_path / "nowhere")


def test_scikit_learns_digits_are_a_folder() -> None:
    """1,797 pictures of ten classes; a picture is the digit."""
    args = {"image_size": 8, "channels": 1, "val_fraction": 0.2, "eval_crop": 1.0, "augment": False}
    splits = build("datasets", "image_folder", folder="sklearn://digits", **args)
    assert splits["train"].class_names == [str(n) for n in range(10)]
    assert (len(splits["train"]), len(splits["val"])) == (1455, 342)
    images, labels = load_digits(return_X_y=True)
    number = int(files(splits, "val")[0].split("/")[1].removesuffix(".png"))
    image, label = splits["val"][0]
    assert label == labels[number]
    assert torch.allclose(image.flatten(), torch.tensor(images[number] * 15 / 127.5 - 1).float())
