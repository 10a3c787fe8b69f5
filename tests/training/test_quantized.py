"""A base in 4 and 8 bit under its adapter: the bytes that transformers makes of it, the adapter
that a loop of peft's ends with, and nothing of it in a checkpoint.

Attempts run in this process (`support.in_process`); one run of each kind is killed for real.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import xrun
from support.adapters import (
    ARGS,
    base_of,
    llama,
    plain_loop,
    project_with_llama,
    refuses_another_base,
)
from support.in_process import attempt, train
from support.running import Project
from xrun.errors import ComponentError
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.training import exported
from xrun.training.quantized import names_in, quantize, weights_apart

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")
KINDS = ("4bit", "8bit")
# A GPU's kernels say that they are slow with rows as short as these.
pytestmark = pytest.mark.filterwarnings("ignore:inner dimension")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project_with_llama(tmp_path_factory.mktemp("packed"))


def packs(kind: str, *more: str) -> list[str]:
    return [f"model.frozen={kind}", "train.precision=bf16", "train.evaluate.every=1 steps", *more]


def model_of(plan: Plan) -> Path:
    return RunFolder(plan.folder).model


def sha256(plan: Plan) -> str:
    return hashlib.sha256((model_of(plan) / "adapter_model.safetensors").read_bytes()).hexdigest()


def as_transformers_packs(project: Project, kind: str) -> Any:
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    how = {"load_in_4bit": True, **four} if kind == "4bit" else {"load_in_8bit": True}
    config = transformers.BitsAndBytesConfig(**how)
    options = {"dtype": torch.bfloat16, "device_map": "cpu"}
    return base_of(project, quantization_config=config, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_transformers_and_peft_ends_with_the_same_adapter(
    project: Project, kind: str
) -> None:
    """The base has the bytes that `from_pretrained(quantization_config=...)` makes, is in no
    commit, is left alone by training and evaluation, and the adapter is the loop's to the last
    bit."""
    plan = project.plan(*packs(kind), run=f"whole-{kind}")
    state = train(plan).state
    base = as_transformers_packs(project, kind)
    own = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in state.model.state_dict().items()
        if "lora_" not in name
    }
    theirs = base.state_dict()
    assert own.keys() == theirs.keys()
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == []
    assert state.outside is not None
    assert state.outside.moved() == set()
    trained = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    assert sum(t.nbytes for t in state.tensors().values() if t.dim()) == 3 * trained
    torch.set_num_threads(1)
    expected = peft.get_peft_model_state_dict(plain_loop(project, plan, base, bf16=True))
    found = load_file(model_of(plan) / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_attempt_that_comes_back_ends_with_the_same_adapter(project: Project, kind: str) -> None:
    """With an average, which has no copy of the packed weights, and the largest micro-batch."""
    more = packs(kind, "train.ema=0.5", "train.micro_batch=auto")
    whole, cut = (project.plan(*more, run=f"{name}-{kind}") for name in "ab")
    state = train(whole).state
    with attempt(cut, "a1") as training:
        training.steps = 2
        training.export = lambda *_: None
        training.run()
    train(cut, "a2")
    assert sha256(whole) == sha256(cut)
    assert state.ema is not None
    averaged = state.ema.get_submodule("module")
    names, ours, others = names_in(averaged), averaged.state_dict(), state.model.state_dict()
    made = ("weight_format", "nf4")  # anew each time that somebody asks
    assert names
    assert all(ours[n].data_ptr() == others[n].data_ptr() for n in names if not n.endswith(made))
    pairs = zip(weights_apart(averaged), weights_apart(state.model), strict=True)
    assert all(one is other for one, other in pairs)


@pytest.mark.gpu
@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_ends_with_the_same_adapter(project: Project, kind: str) -> None:
    """A real rank with a real SIGKILL after the commit of step 2, and the same command again."""
    overrides, run = packs(kind, "checkpoint.every=1 steps"), f"killed-{kind}"
    project.write("killed_at", "2")
    done = project.attempt(*overrides, run=run)
    assert (done.code, (project.root / "killed_at").exists()) == (75, False), done.err
    done = project.attempt(*overrides, run=run)
    assert done.code == 0, done.err
    whole = project.plan(*packs(kind), run=f"undisturbed-{kind}")
    train(whole)
    assert sha256(project.plan(*overrides, run=run)) == sha256(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_has_the_layout_of_its_base(project: Project, kind: str) -> None:
    """The adapter is merged into the base in bf16, as peft does it, not into packed layers."""
    plan = project.plan(*packs(kind, "model.adapter.merge=true"), run=f"merged-{kind}")
    state = train(plan).state
    adapter = project.plan(*packs(kind), run=f"apart-{kind}")
    train(adapter)
    base = base_of(project, dtype=torch.bfloat16)
    expected = peft.PeftModel.from_pretrained(base, model_of(adapter)).merge_and_unload()
    found = exported.load(plan)
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    loaded = load_file(model_of(plan) / "model.safetensors")
    assert [name for name in loaded if not torch.equal(loaded[name], theirs[name])] == []
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
    assert names_in(state.model)  # the trained one stays as it is


def test_a_base_that_changed_is_refused(tmp_path: Path) -> None:
    """Before a step, and the run goes on with the old one."""
    project = project_with_llama(tmp_path)
    plan = project.plan(*packs("4bit"))
    refuses_another_base(plan, tmp_path / "base")


OWN = """\
from torch import nn


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 3))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_own_modules_are_packed_too(tmp_path: Path, kind: str) -> None:
    """All but the last layer, with biases that keep their type, whatever the inputs have; and the
    adapter loads onto what the component builds."""
    project = Project(tmp_path)
    project.write("models/line.py", OWN)
    lora = "model.adapter={name: lora, args: {r: 2, target_modules: all-linear}}"
    plan = project.plan(lora, *packs(kind), "train.steps=3")
    state = train(plan).state
    assert {name.rpartition(".base_layer")[0] for name in names_in(state.model)} == {
        "base_model.model.0",
        "base_model.model.2",
    }
    assert state.outside is not None
    assert state.outside.moved() == set()
    loaded = xrun.load_model(model_of(plan), tmp_path)
    x = torch.randn(5, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loaded(x), state.model.eval()(x))


def test_heads_and_tied_weights_stay_as_they_are() -> None:
    """What an adapter trains whole, the output layer, and weights that two modules share."""
    model = llama(tie_word_embeddings=True)
    model.classifier = nn.ModuleDict({"dense": nn.Linear(4, 4), "out": nn.Linear(4, 4)})
    quantize(model, "8bit", ["layers.1", "v_proj"], "models/hub.py")
    packed = {name.rpartition(".")[0] for name in names_in(model)}
    inside = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj")
    assert packed == {f"model.layers.0.{name}" for name in (*inside, *attention)}


def test_a_base_without_linear_layers_is_refused() -> None:
    """The last layer is none that is packed, and in 4 bit no row of an odd length is."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(ComponentError, match=r"models/one\.py has no linear layer .* in 4bit"):
        quantize(model, "4bit", (), "models/one.py")
    quantize(model, "8bit", (), "models/one.py")
    assert names_in(model) == {"0.weight", "0.bias", "0.SCB", "0.weight_format"}


def test_a_trained_part_of_the_base_is_not_packed(project: Project) -> None:
    """`modules_to_save`: it is trained and committed in float32."""
    plan = project.plan(*packs("4bit", f"{ARGS}modules_to_save=[lm_head]"), run="head")
    trained = {n: t.dtype for n, t in train(plan).state.tensors().items() if "lm_head" in n}
    assert {kind for name, kind in trained.items() if name.startswith("model.")} == {torch.float32}
