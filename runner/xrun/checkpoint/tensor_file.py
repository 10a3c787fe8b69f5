"""Tensors <-> safetensors files that a store keeps.

Written by hand, though the library has a writer, because the copied state lies in memory as in the
file: no second copy, and the store hashes while it writes. Read with the library. A process that
holds a shard of a tensor writes its rows and says which ones they are, so that any other number of
processes can read its own rows back.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CheckpointError
from .share import ALL, Share

Rows = tuple[int, tuple[int, ...]]
"""First row of a part, and the shape of the whole tensor."""
FILE_BYTES = 1 << 30
"""A file is ended past this size: files are hashed and sent in parallel."""

KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
}
"""What a file can hold, and its name there."""


def cut_by_size(
    tensors: Mapping[str, Tensor], limit: int = FILE_BYTES
) -> Iterator[dict[str, Tensor]]:
    """Cut tensors into files of about `limit` bytes, keeping their order."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        part[name] = tensor
        size += tensor.nbytes
        if size >= limit:
            yield part
            part, size = {}, 0
    if part:
        yield part


def header(tensors: Mapping[str, Tensor], rows: Mapping[str, Rows], attempt: str = "") -> bytes:
    """What a safetensors file begins with; the tensors' bytes follow, one after the other, from the
    next page on.

    `attempt` is who wrote it: exact recomputation makes the same tensors again, and a store that
    knows files by their content would take a file that one attempt is about to delete for the one
    that its successor has just written.
    """
    by = {"attempt": attempt} if attempt else {}  # first: a store finds it without reading far
    told: dict[str, Any] = {"__metadata__": {**by, "format": "pt", "rows": json.dumps(rows)}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        told[name] = {
            "dtype": KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(told).encode()
    text += b" " * (-(8 + len(text)) % mmap.PAGESIZE)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """A view of a contiguous CPU tensor's bytes."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy arrays are buffers from Python 3.12 on


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor in a file: the first one, how many, and the shape of the whole tensor."""

    path: Path
    begin: int
    count: int
    whole: tuple[int, ...]


class TensorReader:
    """Reads tensors, or rows of them, out of the files of one checkpoint, in which what belongs to
    this `share` of the processes was verified."""

    def __init__(self, paths: Sequence[Path], share: Share = ALL) -> None:
        self._share = share
        self._sharded = set[str]()
        self._opened: tuple[Path, Any] | None = None
        self._pieces: dict[str, list[_Piece]] = {}
        for path in paths:
            file = self._file(path)
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            self._sharded |= rows.keys()
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                shape = tuple(file.get_slice(name).get_shape())
                begin, whole = rows.get(name, (0, shape))
                piece = _Piece(path, begin, shape[0] if shape else 1, tuple(whole))
                self._pieces.setdefault(name, []).append(piece)

    def _file(self, path: Path) -> Any:
        """The file, opened. One at a time: the library maps it so that it counts as the process's
        own memory where that is limited (`ulimit -d`) or the system promises no more than it has.
        """
        if self._opened is None or self._opened[0] != path:
            self._opened = None
            self._opened = path, safe_open(path, framework="pt")
        return self._opened[1]

    def names(self) -> set[str]:
        """Names of all tensors in the checkpoint."""
        return set(self._pieces)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of each."""
        return {name: pieces[0].whole for name, pieces in self._pieces.items()}

    def read(self, name: str) -> Tensor:
        """A whole tensor, put together from the rows that processes have written; all of its files
        were verified."""
        pieces = self._pieces[name]
        first = self._file(pieces[0].path).get_tensor(name)
        if tuple(first.shape) == pieces[0].whole:
            return first
        made = torch.empty(pieces[0].whole, dtype=first.dtype)
        for piece in pieces:
            rows = self._file(piece.path).get_tensor(name)
            made[piece.begin : piece.begin + piece.count].copy_(rows)
        return made

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, rows: Rows) -> None:
        """Copy the saved rows into `target`, the part of the tensor that starts at `rows[0]`, in
        place.

        Raises:
            CheckpointError: the saved tensor has another shape, or the rows are not this process's
                own, so that nobody has verified them.
        """
        start, shape = rows
        if name in self._sharded:
            self._check_own(name, start, target.shape[0], shape[0])
        for piece in self._pieces[name]:
            if piece.whole != shape:
                raise CheckpointError(
                    f"{name} has the shape {list(piece.whole)} in the checkpoint and {list(shape)}"
                    " in the model.",
                    "The model's code or arguments have changed; start another run with --again.",
                )
            if not shape:
                target.copy_(self._file(piece.path).get_tensor(name))
                continue
            begin = piece.begin
            low, high = max(start, begin), min(start + target.shape[0], begin + piece.count)
            if low < high:
                saved = self._file(piece.path).get_slice(name)
                target[low - start : high - start].copy_(saved[low - begin : high - begin])

    def _check_own(self, name: str, start: int, count: int, whole: int) -> None:
        low, high = self._share.rows(whole)
        if count and not low <= start <= start + count <= high:
            raise CheckpointError(
                f"{name}: rows {start} to {start + count} are asked for, and this process has read"
                f" rows {low} to {high}: the model is sharded in another way than xrun shards it.",
                "Leave sharding to train.sharding.",
            )
