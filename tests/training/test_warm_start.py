"""Warm starts from real safetensors files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from xrun.errors import TrainError
from xrun.training.warm_start import warm_start


def model(width: int = 3, classes: int = 2) -> Any:
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, classes))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("where", ["weights.safetensors", "folder", "absolute"])
def test_all_weights_are_taken(tmp_path: Path, where: str) -> None:
    """A file or a folder, relative to the project or absolute, gives the model all of its
    weights."""
    source, target = model(), model()
    (tmp_path / "folder").mkdir()
    save_model(source, str(tmp_path / "weights.safetensors"))
    save_model(source, str(tmp_path / "folder" / "model.safetensors"))
    warm_start(target, str(tmp_path / "folder") if where == "absolute" else where, tmp_path)
    assert same(source, target)


def test_weights_in_several_files_are_put_together(tmp_path: Path) -> None:
    """A folder whose weights are cut into several files is read whole."""
    source, target = model(), model()
    for number, name in enumerate(source.state_dict()):
        save_file(
            {name: source.state_dict()[name].clone()}, tmp_path / f"model-{number}.safetensors"
        )
    warm_start(target, str(tmp_path), tmp_path)
    assert same(source, target)


def test_what_fits_is_taken_and_the_rest_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights of another shape keep their first values, bit by bit, and are named."""
    source, target = model(classes=10), model(classes=2)
    before = values(target)
    save_model(source, str(tmp_path / "w.safetensors"))
    with caplog.at_level(logging.INFO, "xrun"):
        warm_start(target, "w.safetensors", tmp_path)
    assert torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[1].weight, before["1.weight"])
    assert [record.getMessage() for record in caplog.records] == [
        "Warm start from w.safetensors: 2 weights, not 1.bias, 1.weight."
    ]


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    """A file for another model is refused with names from both, and the model stays as it was."""
    target = model()
    before = values(target)
    save_file({"encoder.weight": torch.zeros(4, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(
        TrainError, match=r"none of the 1 weights in w\.safetensors.*0\.weight.*encoder\.weight"
    ):
        warm_start(target, "w.safetensors", tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_folder_without_safetensors_is_an_error(tmp_path: Path) -> None:
    """A pickle is not weights: only safetensors are looked at."""
    torch.save(model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TrainError, match=r"holds no \.safetensors file\. Only safetensors"):
        warm_start(model(), str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "source", ["weights/best.safetensors", "no/such/path/at/all", "owner/name@main", "nothing"]
)
def test_a_source_that_is_not_there_is_an_error(tmp_path: Path, source: str) -> None:
    """What is neither a path nor a repository that can be read is refused by its name."""
    with pytest.raises(
        TrainError, match=rf"model\.init_from: {source} is neither a local path nor a repository"
    ):
        warm_start(model(), source, tmp_path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    """A file that is cut off is refused by its path."""
    save_model(model(), str(tmp_path / "w.safetensors"))
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-7])
    with pytest.raises(TrainError, match=r"w\.safetensors is damaged"):
        warm_start(model(), "w.safetensors", tmp_path)
