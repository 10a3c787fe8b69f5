"""An exported model of one's own, loaded with one line wherever it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import xrun
from support.paths import RECIPES, ROOT
from xrun.component import load_build
from xrun.errors import ComponentError
from xrun.files import sha256_of
from xrun.recipe.load import load_recipe
from xrun.run.plan import Plan
from xrun.run.record import Finished
from xrun.training.export import write
from xrun.training.mapped import WeightsFile, built_in, placing

OWN = "from torch import nn\n\n\ndef build(width: int = 8):\n    return nn.Linear(width, 3)\n"


def exported(folder: Path, model: nn.Module, name: str, args: dict[str, object]) -> Plan:
    recipe = load_recipe(RECIPES / "digits_mlp.yaml").model_dump(mode="json")
    recipe["model"] = {"name": name, "args": args}
    plan = Plan("r-12345678", "0" * 64, {}, recipe, "r.yaml", str(folder / "p"), "/h", "me")
    write(folder / "r-12345678" / "model", model, plan, Finished(step=1))
    return plan


def test_a_shipped_model_loads_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluation mode, with every number, by the line that its card has."""
    args = {"vocab": 11, "context": 8, "width": 8, "depth": 1, "heads": 2, "dropout": 0.5}
    model = load_build("models", "gpt", ROOT)(**args).eval()
    exported(tmp_path, model, "gpt", args)
    monkeypatch.chdir(tmp_path)
    loaded = xrun.load_model("r-12345678/model")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), model(ids))
    assert not loaded.training
    assert loaded.lm_head.weight is loaded.tok.weight
    card = (tmp_path / "r-12345678" / "model" / "README.md").read_text()
    assert "model = xrun.load_model(FOLDER, project=PROJECT)" in card


def test_weights_in_a_file_are_exported_as_those_in_memory(tmp_path: Path) -> None:
    """Where a sharded model's whole weights lie: the same bytes, tied ones once, and nothing that
    makes the library copy all of them (a part of a larger tensor)."""
    args = {"vocab": 11, "context": 8, "width": 8, "depth": 1, "heads": 2}

    def build() -> nn.Module:
        torch.manual_seed(0)
        with placing():
            return load_build("models", "gpt", ROOT)(**args)

    with WeightsFile(tmp_path) as file:
        there = built_in(file, build)
    digests = []
    for name, model in {"memory": build(), "file": there}.items():
        exported(tmp_path / name, model, "gpt", args)
        weights = tmp_path / name / "r-12345678" / "model" / "model.safetensors"
        digests.append(sha256_of(weights))
    assert digests[0] == digests[1]
    for tensor in there.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_model_of_a_project_is_found_by_its_run_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's folder knows its project; a copy of the model is told it, or refused in a
    sentence."""
    (tmp_path / "p" / "models").mkdir(parents=True)
    (tmp_path / "p" / "models" / "mine.py").write_text(OWN)
    model = nn.Linear(5, 3)
    plan = exported(tmp_path, model, "mine", {"width": 5})
    folder = tmp_path / "r-12345678"
    (folder / "plan.json").write_text(plan.to_json())
    monkeypatch.chdir("/")
    assert torch.equal(xrun.load_model(folder / "model").weight, model.weight)
    shutil.copytree(folder / "model", tmp_path / "copy")
    with pytest.raises(ComponentError, match=r"there is no models/mine\.py"):
        xrun.load_model(tmp_path / "copy")
    assert torch.equal(
        xrun.load_model(tmp_path / "copy", project=tmp_path / "p").weight, model.weight
    )
    (tmp_path / "q" / "models").mkdir(parents=True)
    (tmp_path / "q" / "models" / "mine.py").write_text(OWN.replace("3)", "4)"))
    with pytest.raises(ComponentError, match=r"weight is \[3, 5\] in model.safetensors, \[4, 5\]"):
        xrun.load_model(tmp_path / "copy", project=tmp_path / "q")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="has no model that xrun, transformers"):
        xrun.load_model(tmp_path)
