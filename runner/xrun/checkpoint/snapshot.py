"""The copy of the state that a save writes, laid out in memory as in the files."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from . import tensor_file

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by their names, by the file that they are saved in."""
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every CUDA context."""


class Snapshot:
    """A copy of the state in memory that is kept and used again: one copy of the state is all that
    saving takes.

    A file's tensors lie one after the other, from the start of a page on, so that the disk can take
    them from where they are.
    """

    def __init__(self) -> None:
        self.rooms: dict[str, Tensor] = {}

    def copy(self, files: Files) -> None:
        """Copy these tensors; the caller keeps them from changing meanwhile."""
        for file, tensors in files.items():
            room, end = self._room(file, tensors.values()), 0
            for source in tensors.values():
                begin, end = end, end + source.nbytes
                _copy(source, room[begin:end])

    def _room(self, file: str, tensors: Iterable[Tensor]) -> Tensor:
        """A file's bytes, as it has had them if it is as large as before."""
        size, of_gpu = (
            sum(tensor.nbytes for tensor in tensors),
            any(tensor.device.type == "cuda" for tensor in tensors),
        )
        if file not in self.rooms or self.rooms[file].nbytes != size:
            if of_gpu and file in self.rooms and self.rooms[file].nbytes:
                torch.cuda.cudart().cudaHostUnregister(self.rooms[file].data_ptr())
            self.rooms[file] = _pages(size)
            if (
                of_gpu and size
            ):  # as `pin_memory` does, which would take the next power of two of bytes
                torch.cuda.cudart().cudaHostRegister(self.rooms[file].data_ptr(), size, _PORTABLE)
        return self.rooms[file]


def _pages(size: int) -> Tensor:
    """Bytes of memory that begin with a page, which malloc's do not."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(
        np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    )


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy the bytes without using the compute threads, which belong to the step that runs
    meanwhile."""
    if not source.nbytes:
        return
    if source.device.type == "cpu":
        np.copyto(target.numpy(), np.asarray(tensor_file.bytes_of(source.contiguous())))
    else:
        target.copy_(source.contiguous().reshape(-1).view(torch.uint8), non_blocking=True)
