"""Row 19: pictures per CPU-second on their way to a model, over PIL by torch's DataLoader.

The pictures are JPEGs of 500 x 375 pixels, as large as ImageNet's, smooth noise; what a model gets
are random parts of 224 x 224, mirrored half of the time, 64 in a batch. Each side is a fresh
process without workers: `datasets/image_folder` with `fast` through xrun's sampler and loader,
where bytes are what travels, and a dataset by hand through torch's DataLoader, which decodes by PIL
the whole picture, resizes the same part of it and normalises on the processor. xrun's bytes become
numbers on the GPU; what that takes where there is none stands beside it. The first quarter of the
pictures is not counted: there each imports and begins.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Row, main, median, spread

TARGET = 1.2
SIZE, BATCH, PICTURES = 224, 64, 256


def measure(quick: bool) -> Iterator[Row]:
    rounds, pictures = (1, 512) if quick else (3, 1024)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in list(SIDES)[:: 1 if number % 2 else -1]:
                found[side].append(in_a_process(folder, side, pictures))
    ratios = [a / b for a, b in zip(found["fast"], found["by hand"], strict=True)]
    yield Row(
        19,
        "pictures per CPU-second, over PIL by torch's DataLoader",
        median(ratios),
        TARGET,
        "higher",
        {"by hand, pictures per CPU-second": median(found["by hand"])},
        spread(ratios),
        {
            "pictures per CPU-second": median(found["fast"]),
            **{
                f"{side}, over by hand": median(found[side]) / median(found["by hand"])
                for side in ("normalised on the processor", "without fast")
            },
        },
    )


def prepare(folder: Path) -> None:
    """A folder of pictures for each of two classes."""
    from PIL import Image

    for number in range(PICTURES):
        rough = np.random.default_rng(number).integers(0, 256, (47, 63, 3), dtype=np.uint8)
        path = folder / "train" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(path, quality=90)


def in_a_process(folder: str, side: str, pictures: int) -> float:
    """What a side measures, in a process that has done nothing before."""
    command = [sys.executable, "-m", "benchmarks.pictures", "--side", folder, side, str(pictures)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environ, check=True)
    return float(json.loads(done.stdout))


def per_cpu_second(batches: Iterator[Any], pictures: int) -> float:
    """Pictures over the CPU-seconds that they took, from the first quarter of them on."""
    began, first, seen = 0.0, 0, 0
    while seen < pictures:
        seen += len(next(batches))
        if not first and seen >= pictures // 4:
            began, first = sum(os.times()[:2]), seen
    return (seen - first) / (sum(os.times()[:2]) - began)


def shipped(folder: Path, fast: bool, ready: bool = False) -> Iterator[Any]:
    """Batches of xrun as they travel; `ready` as the model gets them."""
    from xrun.component import load_build
    from xrun.data.loader import Loader
    from xrun.data.sampler import Sampler

    build = load_build("datasets", "image_folder", Path.cwd())
    split = build(folder=str(folder), image_size=SIZE, val_fraction=0, fast=fast)["train"]
    sampler = Sampler(len(split), BATCH, BATCH, seed=0)
    for step in Loader(split, sampler.steps(0, sys.maxsize, 0, 1), 0):
        for _, batch in step:
            yield (split.on_device(batch) if ready else batch)[0]


class Pictures:
    """As people write it with PIL alone: RandomResizedCrop, a mirror, and numbers."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch
        from PIL import Image

        image = Image.open(self.paths[index]).convert("RGB")
        area, ratio, x, y, mirror = torch.rand(5).tolist()
        size = math.sqrt((0.25 + 0.75 * area) * image.width * image.height)
        stretch = math.exp((ratio - 0.5) * math.log(4 / 3))
        width, height = min(size * stretch, image.width), min(size / stretch, image.height)
        left, top = x * (image.width - width), y * (image.height - height)
        box = (left, top, left + width, top + height)
        out = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        if mirror < 0.5:
            out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(out, dtype=np.float32)).permute(2, 0, 1)
        return (pixels / 255 - 0.5) / 0.5, int(self.paths[index].parent.name)


def by_hand(folder: Path) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    pictures: Any = Pictures(folder)
    while True:
        for batch, _ in DataLoader(pictures, batch_size=BATCH, shuffle=True):
            yield batch


SIDES: dict[str, Callable[[Path], Iterator[Any]]] = {
    "fast": lambda folder: shipped(folder, fast=True),
    "normalised on the processor": lambda folder: shipped(folder, fast=True, ready=True),
    "without fast": lambda folder: shipped(folder, fast=False),
    "by hand": by_hand,
}


if __name__ == "__main__":
    if sys.argv[1:2] != ["--side"]:
        main(measure)
    else:
        where, which, wanted = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
        print(json.dumps(per_cpu_second(SIDES[which](where), wanted)), flush=True)
