"""Tensors in files: what is written loads with the safetensors library, and any number of processes
reads its rows back."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xrun.checkpoint.tensor_file import Rows, TensorReader, bytes_of, cut_by_size, header
from xrun.errors import CheckpointError

KINDS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def random_bits(kind: torch.dtype, *shape: int) -> Tensor:
    """Any bits at all, NaNs with payloads included; for booleans 0 and 1."""
    size = torch.empty(shape, dtype=kind).nbytes
    raw = torch.randint(
        0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
    )
    return (raw % 2).bool().reshape(shape) if kind is torch.bool else raw.view(kind).reshape(shape)


def write(path: Path, tensors: dict[str, Tensor], rows: dict[str, Rows] | None = None) -> Path:
    path.write_bytes(
        header(tensors, rows or {}) + b"".join(map(bytes, map(bytes_of, tensors.values())))
    )
    return path


def same_bits(left: Tensor, right: Tensor) -> bool:
    return (left.dtype, left.shape, bytes(bytes_of(left))) == (
        right.dtype,
        right.shape,
        bytes(bytes_of(right)),
    )


def test_every_kind_of_tensor_loads_with_the_library(tmp_path: Path) -> None:
    """Every dtype, odd sizes, 0-d and empty tensors come back from safetensors' own reader bit by
    bit."""
    tensors = {
        f"{kind}/{shape}": random_bits(kind, *shape)
        for kind in KINDS
        for shape in [(3,), (), (5, 3), (0,), (2, 0, 3)]
    }
    found = load_file(write(tmp_path / "t.safetensors", tensors))
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())


def test_every_kind_of_tensor_is_filled_back(tmp_path: Path) -> None:
    """The reader puts the same bits into tensors that are there, in place."""
    tensors = {
        f"{kind}/{shape}": random_bits(kind, *shape)
        for kind in KINDS
        for shape in [(3,), (), (5, 3), (0,)]
    }
    reader = TensorReader([write(tmp_path / "t.safetensors", tensors)])
    assert reader.names() == set(tensors)
    for name, tensor in tensors.items():
        target = torch.zeros_like(tensor)
        reader.fill(name, target, (0, tuple(tensor.shape)))
        assert same_bits(target, tensor), name


def test_the_bytes_are_views(tmp_path: Path) -> None:
    """Writing makes no second copy: the bytes lie in the tensor's own memory."""
    tensor = torch.zeros(1000)
    begun, data = header({"t": tensor}, {}), bytes_of(tensor)
    tensor[7] = 3.0
    (tmp_path / "t").write_bytes(begun + bytes(data))
    assert float(load_file(tmp_path / "t")["t"][7]) == 3.0


def test_tensors_begin_with_a_page() -> None:
    """However long the header is, so that a disk can take what follows from memory as it is."""
    for count in (0, 1, 40, 400):
        begun = header({f"tensor-{number}": torch.zeros(1) for number in range(count)}, {})
        assert len(begun) % mmap.PAGESIZE == 0
        assert int.from_bytes(begun[:8], "little") == len(begun) - 8


def test_a_state_is_cut_into_files_in_order() -> None:
    """A file ends once it is past the limit, no tensor is lost, and a larger one gets a file of its
    own."""
    tensors = {
        name: torch.zeros(size, dtype=torch.uint8)
        for name, size in (("a", 4), ("b", 6), ("c", 50), ("d", 1))
    }
    assert [list(part) for part in cut_by_size(tensors, 10)] == [["a", "b"], ["c"], ["d"]]
    assert list(cut_by_size({})) == []


def shares(count: int, processes: int) -> list[tuple[int, int]]:
    """The rows of each process, as torch.chunk cuts them."""
    size = -(-count // processes)
    return [(min(rank * size, count), min((rank + 1) * size, count)) for rank in range(processes)]


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 7, 8])
def test_rows_written_by_four_are_read_by_any_number(
    tmp_path: Path, readers: int, count: int
) -> None:
    """Processes that hold no row included, each reader gets exactly its own rows from four writers'
    files."""
    whole = random_bits(torch.bfloat16, count, 3)
    shape = (count, 3)
    paths = [
        write(tmp_path / str(rank), {"w": whole[a:b].contiguous()}, {"w": (a, shape)})
        for rank, (a, b) in enumerate(shares(count, 4))
    ]
    reader = TensorReader(paths)
    for a, b in shares(count, readers):
        target = torch.zeros(b - a, 3, dtype=torch.bfloat16)
        reader.fill("w", target, (a, shape))
        assert same_bits(target, whole[a:b].contiguous())


def test_files_are_mapped_one_at_a_time(tmp_path: Path) -> None:
    """What is mapped counts as a process's own memory under `ulimit -d`, and a checkpoint may be
    larger than that. A file none of whose rows are asked for is not opened again."""
    whole = torch.arange(64 * 1024.0).view(64, 1024)
    paths = [
        write(tmp_path / str(rank), {"w": whole[a:b].contiguous()}, {"w": (a, (64, 1024))})
        for rank, (a, b) in enumerate(shares(64, 4))
    ]

    def mapped() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[-1] for line in lines if str(tmp_path) in line}

    reader = TensorReader(paths)
    assert len(mapped()) == 1
    target = torch.zeros(20, 1024)
    reader.fill("w", target, (0, (64, 1024)))
    assert torch.equal(target, whole[:20])
    assert mapped() == {str(paths[1])}
    assert torch.equal(reader.read("w"), whole)
    assert len(mapped()) == 1


def test_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    """A tensor that the model now has in another shape is an error with its name, both shapes, and
    the way out."""
    reader = TensorReader([write(tmp_path / "t", {"model.w": torch.zeros(3, 2)})])
    with pytest.raises(
        CheckpointError, match=r"model\.w has the shape \[3, 2\].*\[2, 3\] in the model.*--again"
    ):
        reader.fill("model.w", torch.zeros(2, 3), (0, (2, 3)))
