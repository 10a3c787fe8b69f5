"""The folder with the final weights, read by the libraries that people use."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from support.hub_store import REPO
from support.paths import RECIPES
from support.worlds import FolderWorld, hub_world
from xrun.errors import ComponentError
from xrun.files import sha256_of
from xrun.recipe.load import load_recipe
from xrun.run.plan import Plan
from xrun.run.record import Finished
from xrun.store.hub.store import HubStore
from xrun.training.export import in_one_order, say_wait, write
from xrun.training.warm_start import warm_start

FINISHED = Finished(step=10, samples=80, metrics={"val/loss": 0.5}, data_revision="r1")


class Tied(nn.Module):
    """A model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    tied = {"name": "tied", "args": {"width": 4}}
    recipe = load_recipe(RECIPES / "digits_mlp.yaml").model_dump(mode="json") | {"model": tied}
    return Plan(
        "r-12345678",
        "0" * 64,
        {"sources": {"models/tied.py": "ab"}},
        recipe,
        "r.yaml",
        "/p",
        "/h",
        "me",
        version="0.1",
    )


def test_the_weights_load_with_the_safetensors_library(tmp_path: Path, plan: Plan) -> None:
    """model.safetensors has every weight of an ordinary module, and the returned SHA-256 is the
    file's."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    sha256 = write(tmp_path / "model", model, plan, FINISHED)
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert sha256 == sha256_of(tmp_path / "model" / "model.safetensors")


def test_all_files_have_the_mode_that_the_umask_gives(tmp_path: Path, plan: Plan) -> None:
    """Weights that a library writes for their owner only can be read like the card."""
    model = nn.Linear(2, 2)
    write(tmp_path / "model", model, plan, FINISHED)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in files}
    assert (len(files) > 2, modes) == (True, {(tmp_path / "plain").stat().st_mode})


def test_tied_weights_are_stored_once_and_load_tied(tmp_path: Path, plan: Plan) -> None:
    """A weight that two layers share is one tensor in the file, and a new model gets it back in
    both."""
    model, fresh = Tied(), Tied()
    write(tmp_path / "model", model, plan, FINISHED)
    path = tmp_path / "model" / "model.safetensors"
    assert len(load_file(path)) == 1
    load_model(fresh, path)
    assert torch.equal(fresh.embed.weight, model.embed.weight)
    assert fresh.head.weight is fresh.embed.weight


class ManyNames(nn.Module):
    """Two modules under three names each."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.encoder = self.first = self.body
        self.classifier = self.last = self.head


class Published(ManyNames, PyTorchModelHubMixin):
    """Saved by its own `save_pretrained`."""


@pytest.mark.parametrize("kind", [ManyNames, Published])
def test_equal_weights_are_equal_files(tmp_path: Path, plan: Plan, kind: type[nn.Module]) -> None:
    """Twenty exports of the same tensors have one SHA-256, and the file loads with every name."""
    torch.manual_seed(0)
    model, fresh = kind(), kind()
    hashes = {write(tmp_path / "model", model, plan, FINISHED) for _ in range(20)}
    assert len(hashes) == 1
    path = tmp_path / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == [
            "body.bias",
            "body.weight",
            "classifier.bias",
            "classifier.weight",
        ]
        named = {name: kept for name, kept in file.metadata().items() if "." in name}
    assert named["encoder.weight"] == named["first.weight"] == "body.weight"
    assert named["head.bias"] == named["last.bias"] == "classifier.bias"
    load_model(fresh, path)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True)
    )


def test_a_header_is_only_sorted(tmp_path: Path) -> None:
    """Texts with anything in them stay what they were, and so does every tensor."""
    texts = {f'näme {n} "\\\n\x01': f"→ {n}" for n in range(9)}
    tensors = {f"t{n}": torch.full((n + 1,), float(n)) for n in range(5)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata=texts)
    in_one_order(path)
    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert list(json.loads(header[8 : 8 + size])["__metadata__"]) == sorted(texts)
    with safe_open(path, "pt") as file:
        assert file.metadata() == texts
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)


def test_parts_of_a_larger_tensor_are_exported(tmp_path: Path, plan: Plan) -> None:
    """The library refuses weights that are slices of something without a name; the run is not lost
    at its end."""
    whole, model = torch.randn(6, 2), nn.Module()
    model.upper, model.lower = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])
    model.register_buffer("turned", torch.randn(3, 4).t()[1:])
    write(tmp_path / "model", model, plan, FINISHED)
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(torch.cat([found["upper"], found["lower"]]), whole)
    assert torch.equal(found["turned"], model.turned)


def test_the_config_and_the_card_say_what_it_is(tmp_path: Path, plan: Plan) -> None:
    """config.json names the component and its arguments, README.md the run, the metrics, the data
    and the weights' hash."""
    sha256 = write(tmp_path / "model", Tied(), plan, FINISHED)
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {
        "model_type": "xrun",
        "component": "tied",
        "args": {"width": 4},
        "task": "classification",
    }
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: pytorch\n")
    assert all(
        text in card
        for text in (
            "# r-12345678",
            "| val/loss | 0.5 |",
            sha256,
            "Data revision: r1",
            "models/tied.py",
        )
    )


def test_the_folder_is_replaced_as_a_whole(tmp_path: Path, plan: Plan) -> None:
    """A second export leaves nothing of the first one, and nothing beside the folder."""
    write(tmp_path / "model", Tied(), plan, FINISHED)
    (tmp_path / "model" / "old-file").write_text("")
    second = nn.Linear(2, 2)
    write(tmp_path / "model", second, plan, FINISHED)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "xrun",
    }
    assert torch.equal(load_file(tmp_path / "model" / "model.safetensors")["weight"], second.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_behind_does_not_matter(tmp_path: Path, plan: Plan) -> None:
    """Half-written and half-replaced folders of killed exports are no obstacle."""
    for name in (".model.old", f".model.{os.getpid()}"):
        (tmp_path / name / "deep").mkdir(parents=True)
    write(tmp_path / "model", Tied(), plan, FINISHED)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_fails_leaves_the_old_folder(tmp_path: Path, plan: Plan) -> None:
    """If the new weights cannot be written the ones before stay, whole."""
    old = write(tmp_path / "model", Tied(), plan, FINISHED)

    class Broken(nn.Linear):
        def save_pretrained(self, folder: Path, **options: Any) -> None:
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "model", Broken(2, 2), plan, FINISHED)
    assert sha256_of(tmp_path / "model" / "model.safetensors") == old


def test_a_transformers_model_loads_with_from_pretrained(tmp_path: Path, plan: Plan) -> None:
    """A model of transformers, tied weights included, comes back from its folder with the same
    outputs, bit by bit."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    ).eval()
    write(tmp_path / "model", model, plan, FINISHED)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (tmp_path / "model" / "README.md").exists()


class Sharded(nn.Sequential):
    """Saved in two files by its own way, with an index."""

    def save_pretrained(self, folder: Path) -> None:
        for number, (name, tensor) in enumerate(sorted(self.state_dict().items())):
            save_file({name: tensor}, Path(folder) / f"part-{number}.safetensors")
        (Path(folder) / "model.safetensors.index.json").write_text("{}")


def test_several_files_have_one_digest(tmp_path: Path, plan: Plan) -> None:
    """It is what `sha256sum` says of what `sha256sum` says of them, as the card has it."""
    sha256 = write(tmp_path / "model", Sharded(nn.Linear(3, 2)), plan, FINISHED)
    card = (tmp_path / "model" / "README.md").read_text()
    command = "sha256sum part-0.safetensors part-1.safetensors | sha256sum"
    assert f"`{command}` is `{sha256}`" in card
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path / "model", capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == sha256


def test_a_model_without_weights_is_no_model(tmp_path: Path, plan: Plan) -> None:
    """A `save_pretrained` that writes none is told what it has written."""

    class Empty(nn.Linear):
        def save_pretrained(self, folder: Path, max_shard_size: str) -> None:
            (Path(folder) / "notes.txt").write_text(max_shard_size)

    with pytest.raises(ComponentError, match=r"tied\.py: save_pretrained has written no weights"):
        write(tmp_path / "model", Empty(2, 2), plan, FINISHED)
    assert not (tmp_path / "model").exists()


def test_complex_weights_are_exported_and_begun_from(tmp_path: Path, plan: Plan) -> None:
    """Those that safetensors has no name for are pairs of real numbers there, and `init_from` puts
    them together again."""
    models = [nn.ParameterList([torch.randn(3, dtype=torch.complex128)]) for _ in range(2)]
    write(tmp_path / "model", models[0], plan, FINISHED)
    (stored,) = load_file(tmp_path / "model" / "model.safetensors").values()
    assert (stored.dtype, tuple(stored.shape)) == (torch.float64, (3, 2))
    warm_start(models[1], str(tmp_path / "model"), tmp_path)
    assert torch.equal(models[0][0], models[1][0])


def test_who_waits_for_a_store_is_told_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Hub takes a commit in 30 s, and no step goes by meanwhile; a folder takes it at once."""
    caplog.set_level("INFO", logger="xrun")
    with hub_world(tmp_path, "hub", monkeypatch) as world:
        options = {"token": world.hub.token("alice"), "clock": world.clock}
        store = HubStore(
            f"hub://{REPO}", "digits-1", "a1", "me", tmp_path / "c", **options, spacing=30
        )
        say_wait(store, "The model is made")
        assert caplog.messages == []
        store.commit({}, store.head())
        say_wait(store, "The model is made")
    say_wait(FolderWorld(tmp_path).open("a1"), "The model is made")
    assert caplog.messages == ["The model is made when the store takes its next commit, in 30 s."]
