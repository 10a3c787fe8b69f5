"""Frozen weights that are not saved: one digest of them, and what counts as moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xrun.checkpoint.frozen import Frozen, digest_of, lines_of
from xrun.checkpoint.state import TrainState


def model() -> nn.Sequential:
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(4, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))
    built[0].requires_grad_(False)
    return built


def state_of(built: nn.Sequential) -> TrainState:
    frozen = {f"0.{name}": p for name, p in built[0].state_dict(keep_vars=True).items()}
    trained = [p for p in built.parameters() if p.requires_grad]
    outside = Frozen(built, lines_of(frozen))
    return TrainState(built, torch.optim.SGD(trained), outside=outside)


def test_the_digest_is_of_names_types_shapes_and_bytes() -> None:
    """It does not depend on the order, and each of the four changes it."""
    a, b = torch.arange(6.0), torch.ones(2, 3, dtype=torch.bfloat16)
    digest = digest_of(lines_of({"a": a, "b": b}))
    assert digest == digest_of(lines_of({"b": b, "a": a}))
    assert digest == digest_of(lines_of({"a": a.clone(), "b": b.t().contiguous().t()}))
    others = [
        {"a": b, "b": a},
        {"a": a.double(), "b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": torch.nextafter(a, a + 1), "b": b},
        {"a": a},
        {"a": a, "b": b, "c": b},
    ]
    assert len({digest, *(digest_of(lines_of(each)) for each in others)}) == 7


def test_frozen_weights_are_no_part_of_the_state() -> None:
    """Its tensors are what is trained and the buffers; its numbers have the digest."""
    state = state_of(model())
    assert {name.partition(".")[2].partition(".")[0] for name in state.tensors()} == {"1", "2"}
    assert state.frozen() == set()
    assert state.outside is not None
    assert state.numbers()["frozen"] == state.outside.digest


@pytest.mark.parametrize("how", ["in place", "by .data", "one element"])
def test_what_moves_all_the_same_becomes_state(how: str) -> None:
    """A teacher that follows its student is saved from then on, copied before the next forward
    pass; the rest stays outside."""
    built = model()
    state = state_of(built)
    with torch.no_grad():
        if how == "by .data":
            built[0].weight.data.mul_(0.5)
        elif how == "in place":
            built[0].weight.lerp_(torch.zeros(40, 4), 0.1)
        else:
            built[0].weight[7, 3] = 5.0
    assert "model.0.weight" in state.tensors()
    assert "model.0.weight" in state.changing()
    assert "model.0.bias" not in state.tensors()


def test_what_is_written_with_its_own_bytes_has_not_moved() -> None:
    """peft takes a parameter away and puts it back in each call; this is no movement."""
    built = model()
    state = state_of(built)
    with torch.no_grad():
        built[0].weight.copy_(built[0].weight.clone())
    assert "model.0.weight" not in state.tensors()
    assert "model.0.weight" not in state.changing()


def test_a_checkpoint_with_moved_weights_is_loaded_with_them() -> None:
    """They had moved before it was made, so that they are state in the next attempt as well."""
    saved = state_of(model())
    with torch.no_grad():
        saved.model.get_parameter("0.weight").fill_(3.0)
    tensors = {name: tensor.clone() for name, tensor in saved.tensors().items()}
    fresh = state_of(model())
    fresh.load_tensors(set(tensors), lambda name, target: target.copy_(tensors[name]))
    assert torch.equal(fresh.model.get_parameter("0.weight"), torch.full((40, 4), 3.0))
    assert fresh.tensors().keys() == tensors.keys()
