"""Language modelling on the bytes of text files; without a folder, of Python's standard library, which is on every machine."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xrun.errors import ComponentError

SEPARATOR = b"\0"
IGNORED = -100
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
"""Folders below the standard library that hold somebody else's code, or tests (half of all bytes, and much of it odd)."""


class Blocks:
    """Dicts of `input_ids` and `labels`, int64 of shape (context,); every byte is in exactly one block.

    Labels are the inputs, not shifted. Only the last block is filled up, with the separator, where labels are -100.
    """

    tokenizer = None
    """Bytes need none."""

    def __init__(self, data: bytes, context: int, revision: str) -> None:
        self.size, self.revision = len(data), revision
        padded = data + SEPARATOR * (-len(data) % context)
        self.blocks: NDArray[np.uint8] = np.frombuffer(padded, np.uint8).reshape(-1, context)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        where = np.asarray(indices)
        inputs = torch.from_numpy(self.blocks[where].astype(np.int64))
        place = torch.from_numpy(where)[:, None] * inputs.shape[1] + torch.arange(inputs.shape[1])
        labels = inputs.masked_fill(place >= self.size, IGNORED)
        return [{"input_ids": a, "labels": b} for a, b in zip(inputs, labels, strict=True)]


def find(root: str | None, pattern: str) -> list[Path]:
    """The files to read, sorted by their path below the root; ComponentError if there are none."""
    top = Path(root or sysconfig.get_path("stdlib"))
    files = [path for path in top.rglob(pattern) if path.is_file()]
    if root is None:
        files = [path for path in files if NOT_THE_LIBRARY.isdisjoint(path.relative_to(top).parts)]
    if not files:
        raise ComponentError(f"datasets/text_files: no file below {top} matches {pattern!r}.")
    return sorted(files, key=lambda path: path.relative_to(top).as_posix())


def read(files: Iterable[Path], limit_bytes: int | None) -> list[bytes]:
    """The files' contents, until together they have `limit_bytes`; the last one is cut there."""
    documents, left = [], limit_bytes if limit_bytes is not None else 2**62
    for path in files:
        documents.append(path.read_bytes()[:left])
        left -= len(documents[-1])
        if left <= 0:
            break
    return documents


def build(
    root: str | None = None,
    pattern: str = "*.py",
    context: int = 256,
    limit_bytes: int | None = None,
    val_fraction: float = 0.1,
) -> dict[str, Blocks]:
    """`train` and `val` over the bytes of the files below `root` (default: this Python's standard library).

    Files are held out whole, every (1 / val_fraction)-th one of the sorted ones; `val_fraction: 0` has no `val`. Each file ends
    with a byte 0, so the vocabulary is 256. Held in memory, one byte per byte. `revision` is the hash of the content.
    """
    documents = read(find(root, pattern), limit_bytes)
    every = round(1 / val_fraction) if val_fraction else len(documents) + 1
    held_out = documents[every - 1 :: every]
    del documents[every - 1 :: every]
    splits = {"train": documents, "val": held_out} if held_out else {"train": documents}
    joined = {name: b"".join(document + SEPARATOR for document in part) for name, part in splits.items()}
    revision = hashlib.blake2b(b"".join(joined.values()), digest_size=16).hexdigest()
    return {name: Blocks(data, context, revision) for name, data in joined.items()}
