"""The first weights of a sharded model, built once on a node: `build_once` on two real processes.

The file is also the program that they run: `python test_mapped.py FOLDER RANK`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from support.ranks import run_ranks
from xrun.errors import TrainError
from xrun.training.mapped import WeightsFile, build_once, placing
from xrun.training.world import World

WIDE = 3000
"""A layer has 36 MB."""


class Plain(nn.Module):
    """Layers, tied weights, weights that were there before they became parameters, and buffers,
    one of them drawn and one made of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.wide = nn.Linear(WIDE, WIDE)
        self.tokens, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.tokens.weight
        self.own = nn.Parameter(torch.randn(3), requires_grad=False)
        self.none = nn.Parameter(torch.empty(0))
        self.register_buffer("drawn", torch.randn(4), persistent=False)
        self.register_buffer("first", self.own * 2)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]


class Drawn(Plain):
    """Has a tensor of random numbers that nobody knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(5)


class Asking(Plain):
    """Asks a parameter for its value."""

    def __init__(self) -> None:
        super().__init__()
        self.most = float(self.own.detach().max())


MODELS: dict[str, Callable[[], nn.Module]] = {"plain": Plain, "drawn": Drawn, "asking": Asking}


def build(kind: str, hollow: bool = False) -> nn.Module:
    torch.manual_seed(3)
    with placing():
        return MODELS[kind]()


def broken(hollow: bool) -> nn.Module:
    raise TrainError("this cannot be built")


def anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def work(folder: Path, rank: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    world = World(rank, 2, dist.new_group(), dist.new_group())
    told: dict[str, Any] = {}
    for kind in MODELS:
        model, why = build_once(functools.partial(build, kind), folder, world)
        if kind == "plain":
            before = anonymous()
            again, _ = build_once(functools.partial(build, kind), folder, world)
            told["grown"] = anonymous() - before
            del again
        told[kind] = {
            "why": why,
            "state": {**dict(model.named_parameters()), **dict(model.named_buffers())},
            "trained": [name for name, p in model.named_parameters() if p.requires_grad],
            "tied": model.head.weight is model.tokens.weight,
            "noise": getattr(model, "noise", None),
        }
    try:
        build_once(broken if rank == 0 else functools.partial(build, "plain"), folder, world)
    except TrainError as error:
        told["broken"] = str(error)
    told["left"] = [path.name for path in folder.iterdir() if path.stat().st_size > 1 << 20]
    dist.barrier()
    torch.save(told, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mapped")
    run_ranks(__file__, folder, 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", list(MODELS))
def test_every_process_has_the_weights_of_an_ordinary_build(
    told: list[dict[str, Any]], kind: str
) -> None:
    """Parameters and buffers to the last bit, with what is tied and what is frozen."""
    own = build(kind)
    expected: dict[str, Tensor] = {**dict(own.named_parameters()), **dict(own.named_buffers())}
    for each in (told[0][kind], told[1][kind]):
        assert each["state"].keys() == expected.keys()
        assert all(torch.equal(each["state"][name], t) for name, t in expected.items())
        assert each["trained"] == [name for name, p in own.named_parameters() if p.requires_grad]
        assert each["tied"]


def test_no_process_has_them_in_memory_of_its_own(told: list[dict[str, Any]]) -> None:
    """One more model of 36 MB takes none of it, on either process."""
    assert max(told[rank]["grown"] for rank in range(2)) < 12 << 20


def test_what_is_not_all_parameters_is_the_same_too(told: list[dict[str, Any]]) -> None:
    """A process that would have drawn other numbers, or has no value to ask for, builds the whole
    model, and says why; others do not."""
    assert told[0]["plain"]["why"] == ""
    assert "random numbers" in told[0]["drawn"]["why"]
    assert told[0]["asking"]["why"]
    assert torch.equal(told[0]["drawn"]["noise"], told[1]["drawn"]["noise"])


def test_a_build_that_fails_fails_everywhere(told: list[dict[str, Any]]) -> None:
    assert [each["broken"] for each in told] == ["this cannot be built"] * 2


def test_nothing_is_left_of_the_file(told: list[dict[str, Any]]) -> None:
    """While both processes still live."""
    assert told[0]["left"] == told[1]["left"] == []


def test_tensors_lie_in_the_file_once(tmp_path: Path) -> None:
    """What lies there already is not copied again, and every type and shape comes back."""
    with WeightsFile(tmp_path) as file:
        for kind in (torch.bfloat16, torch.bool, torch.float64, torch.complex64):
            tensor = torch.ones(3, 2).to(kind)
            there = file.put(tensor)
            assert torch.equal(there, tensor)
            assert there.dtype == kind
            assert file.put(there) is there
            assert there.data_ptr() != tensor.data_ptr()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
