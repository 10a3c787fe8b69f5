"""What `build` has put into evaluation mode stays there while the run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

from support.running import Project, record
from xrun.training.modes import Modes, begin_training, evaluating

FROZEN = """\
from torch import nn


class Own(nn.Module):
    \"\"\"Its author keeps the norm as it is by `train` itself, which returns nothing.\"\"\"

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()

    def forward(self, x):
        return self.norm(x)


def build():
    backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    backbone.requires_grad_(False).eval()
    return nn.Sequential(backbone, nn.BatchNorm1d(8), Own(), nn.Linear(8, 3))
"""


def a_model() -> Any:
    frozen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model = nn.Sequential(frozen, nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.Linear(2, 2))
    frozen.eval()
    frozen[1].train()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_module_keeps_its_mode() -> None:
    """Through the beginning of training, an evaluation, and back; one in another too."""
    model = a_model()
    before = modes(model)
    assert before == [True, False, False, True, True, True, True, True]
    begin_training(model)
    assert modes(model) == before
    kept = Modes.of(model)
    model.eval()
    model.train()
    kept.restore()
    assert modes(model) == before
    assert evaluating(model) == ["0 (Sequential)"]


def test_a_module_with_two_parents_keeps_its_mode() -> None:
    """One parent trains, the other evaluates, and it is what it was."""
    norm = nn.BatchNorm1d(2)
    model = nn.ModuleList([nn.Sequential(norm), nn.Sequential(norm).eval()])
    begin_training(model)
    assert not norm.training
    assert [module.training for module in model] == [True, False]


def test_train_is_called_as_torch_calls_it() -> None:
    """A module that does something when its mode changes does it."""

    class Merging(nn.Module):
        calls: list[bool]

        def train(self, mode: bool = True) -> None:  # type: ignore[override]  # as some write it
            self.calls = [*vars(self).get("calls", []), mode]
            super().train(mode)

    model: Any = nn.Sequential(Merging(), Merging())
    model[1].train(False)
    begin_training(model)
    assert (model[0].calls, model[1].calls) == ([True], [False, True, False])


def test_a_model_of_transformers_trains_as_its_docs_say() -> None:
    """`from_pretrained` leaves every model in evaluation mode: one that is to be trained trains;
    one that is frozen, or a part of one that trains, keeps its mode."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    loaded, frozen = (transformers.BertModel(config).eval() for _ in range(2))
    frozen.requires_grad_(False)
    model = nn.ModuleList([loaded, frozen])
    begin_training(model)
    assert (all(modes(loaded)), any(modes(frozen))) == (True, False)
    loaded.pooler.eval()
    begin_training(model)
    assert (loaded.pooler.training, loaded.embeddings.training) == (False, True)


def test_frozen_statistics_stay_through_a_run(tmp_path: Path) -> None:
    """With evaluations and a moving average between: what is frozen has the bits of `build`, what
    trains has moved, and people are told."""
    project = Project(tmp_path)
    project.write("models/frozen.py", FROZEN)
    overrides = ["model.name=frozen", "train.evaluate.every=5 steps", "train.ema=0.5"]
    done = project.attempt(*overrides, "train.precision=fp32")
    assert done.code == 0, done.err
    found = load_file(project.run.model / "model.safetensors")
    for norm in ("0.1", "2.norm"):
        assert int(found[f"{norm}.num_batches_tracked"]) == 0
        assert found[f"{norm}.running_mean"].tolist() == [0.0] * 8
    assert int(found["1.num_batches_tracked"]) == 78, "micro-batches of 20 steps"
    assert bool((found["1.running_mean"] != 0).any())
    said = (project.run.logs(record(project.run)["attempts"][0]["id"]) / "rank0.log").read_text()
    assert "in evaluation mode while the run trains: 0 (Sequential), 2.norm" in said + done.err
