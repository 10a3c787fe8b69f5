"""The copy of the state that a save writes, laid out in memory as in the files."""

from __future__ import annotations

import contextlib
import logging
import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import TrainError
from ..files import mapped
from . import tensor_file

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by their names, by the file that they are saved in."""
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every CUDA context."""
log = logging.getLogger("xrun")
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
_SPARE = 10
"""One part in so many of a GPU's memory stays free beside a copy and what training takes."""
_BLOCK = 1 << 20
"""Numbers that are read twice in a row, so few that they stay in the processor's cache."""


class Snapshot:
    """A copy of the state in memory that is kept and used again: one copy of the state is all that
    saving takes.

    A file's tensors lie one after the other, from the start of a page on, so that the disk can take
    them from where they are. What lies on a processor is copied into files without a name in a
    `folder`, where one is given, which is then no memory of the process's own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
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
        """Memory for a file's tensors: what it had already, if the size is the same."""
        kinds, size = set[str](), 0
        for tensor in tensors:
            kinds.add(tensor.device.type)
            size += tensor.nbytes
        if file not in self.rooms or self.rooms[file].nbytes != size:
            self.rooms.pop(file, None)
            pinned = "cuda" in kinds
            self.rooms[file] = _pages(size, pinned, None if pinned else self._folder)


def on_device(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of these tensors beside them in a GPU's memory, made in the order of its stream, so
    that a step need not wait for their way to the host: for 2.4 GB it waits 3 ms and not 44.

    None where one lies elsewhere, or where the most that training has taken so far would not leave
    room for them: a step must never run out of memory because of a save.
    """
    if not parts or any(part.device.type != "cuda" for part in parts.values()):
        return {}
    free, total = torch.cuda.mem_get_info()
    room = free + torch.cuda.memory_reserved() - torch.cuda.max_memory_allocated()
    if sum(part.nbytes for part in parts.values()) > room - total // _SPARE:
        return {}
    try:
        return {name: part.clone() for name, part in parts.items()}
    except torch.OutOfMemoryError:  # there is room, but not in one piece
        return {}


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


def _pages(size: int, pinned: bool, folder: Path | None) -> Tensor:
    """Bytes of memory that begin with a page, which malloc's do not; `pinned`, so that a GPU writes
    to them while it computes; in a file in this folder, where there is one with room for them.

    Raises:
        TrainError: there is no room for a copy.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    if folder is not None:
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            return torch.from_numpy(np.frombuffer(mapped(file, 0, size), np.uint8))
    try:
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise TrainError(
            f"There is not enough memory to copy {size / 1e9:.1f} GB of state for a save"
            f" ({error.strerror}).",
            "Use a machine with more memory.",
        ) from error
    room = np.frombuffer(pages, np.uint8)
    if pinned:
        _pin(room)
    return torch.from_numpy(room)


def _pin(room: NDArray[np.uint8]) -> None:
    """Lock these bytes in memory for as long as they live: what is mapped at their place afterwards
    must not be taken for locked.

    By hand, because `pin_memory` takes the next power of two of bytes.
    """
    address, cudart = room.ctypes.data, torch.cuda.cudart()
    if code := int(cudart.cudaHostRegister(address, room.nbytes, _PORTABLE)):
        # The next kernel would be blamed: CUDA tells of an error until somebody has asked.
        with contextlib.suppress(torch.AcceleratorError):
            torch.zeros(1, device="cuda")
        log.warning(
            "The memory of the saved copy could not be locked (%s): training waits while the state"
            " is copied.",
            cudart.cudaGetErrorString(cudart.cudaError(code)),
        )
    else:
        weakref.finalize(room, cudart.cudaHostUnregister, address).atexit = False


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
