"""The copy of the state that a save writes, laid out in memory as in the files."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Set

import numpy as np
import torch
from torch import Tensor

from ..errors import TrainError
from . import tensor_file

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by their names, by the file that they are saved in."""
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every CUDA context."""
_NOT_FINITE = {
    torch.float64: ("i8", 0x7FF0 << 48),
    torch.float32: ("i4", 0x7F80 << 16),
    torch.complex64: ("i4", 0x7F80 << 16),
    torch.float16: ("i2", 0x7C00),
    torch.bfloat16: ("i2", 0x7F80),
    torch.float8_e5m2: ("i1", 0x7C),
    torch.float8_e4m3fn: ("i1", 0x7F),
}
"""The integer as which a number is read, and the least positive one that is none."""
_BLOCK = 1 << 20
"""Numbers that are looked at twice while the processor still has them near."""


class Snapshot:
    """A copy of the state in memory that is kept and used again: one copy of the state is all that
    saving takes.

    A file's tensors lie one after the other, from the start of a page on, so that the disk can take
    them from where they are.
    """

    def __init__(self) -> None:
        self.rooms: dict[str, Tensor] = {}

    def copy(self, files: Files, names: Set[str]) -> None:
        """Copy the named ones of these tensors; the caller keeps them from changing meanwhile."""
        for file, tensors in files.items():
            self._make_room(file, tensors.values())
            for name, target in self._parts(file, tensors):
                if name in names:
                    _copy(tensors[name], target)

    def parts(self, files: Files, names: Set[str]) -> Iterator[tuple[str, Tensor]]:
        """The bytes of the copies of the named ones."""
        for file, tensors in files.items():
            yield from (part for part in self._parts(file, tensors) if part[0] in names)

    def _parts(self, file: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        end = 0
        for name, source in tensors.items():
            begin, end = end, end + source.nbytes
            yield name, self.rooms[file][begin:end]

    def _make_room(self, file: str, tensors: Iterable[Tensor]) -> None:
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


def is_finite(data: Tensor, kind: torch.dtype) -> bool:
    """Whether these bytes hold no NaN and no infinity; numbers of other kinds have neither.

    As integers, such numbers are the largest ones of their sign: no copy is made, and none of the
    compute threads, which belong to the step that runs meanwhile, is used.
    """
    if kind not in _NOT_FINITE or not data.nbytes:
        return True
    signed, least = _NOT_FINITE[kind]
    unsigned = np.dtype(signed.replace("i", "u"))
    numbers = data.numpy().view(signed)
    largest = 1 << 8 * unsigned.itemsize - 1
    return all(
        int(block.max()) < least and int(block.view(unsigned).max()) < largest + least
        for block in np.split(numbers, range(_BLOCK, len(numbers), _BLOCK))
    )


def _pages(size: int) -> Tensor:
    """Bytes of memory that begin with a page, which malloc's do not.

    Raises:
        TrainError: there is no room for a copy.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    try:
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise TrainError(
            f"A save copies the state first, and there is no memory for {size / 1e9:.1f} GB of it"
            f" ({error.strerror}).",
            "Use a machine with more memory.",
        ) from error
    return torch.from_numpy(np.frombuffer(pages, np.uint8))


def _copy(source: Tensor, target: Tensor) -> None:
    """Copy the bytes without using the compute threads, which belong to the step that runs
    meanwhile."""
    if not source.nbytes:
        return
    plain = source.resolve_neg().contiguous()
    if source.device.type == "cpu":
        np.copyto(target.numpy(), np.asarray(tensor_file.bytes_of(plain)))
    else:
        target.copy_(plain.reshape(-1).view(torch.uint8), non_blocking=True)
