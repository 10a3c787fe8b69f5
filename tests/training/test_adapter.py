"""LoRA runs beside peft's own: a loop of a few lines ends with the same weights, what was exported
loads as people load it, and what has no place in an adapter is refused.

Covers `xrun.training.adapter_folder`.

Attempts run in this process (`support.in_process`); one run is killed for real.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import xrun
from support.adapters import (
    ARGS,
    base_of,
    plain_loop,
    project_with_llama,
    refuses_another_base,
)
from support.in_process import attempt, train
from support.running import Project
from xrun.component import load_build
from xrun.data.randomness import INIT, seed_generators
from xrun.errors import ComponentError, TrainError
from xrun.recipe.adapters import _REFUSED, LORA
from xrun.recipe.schema import Adapter, ModelRef
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.training import exported
from xrun.training.adapter import _source_of
from xrun.training.freezing import hold
from xrun.training.instances import build_ref
from xrun.training.loop import Training

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
BF16 = ("model.frozen=bf16", "train.precision=bf16")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project_with_llama(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def plan(project: Project) -> Plan:
    return project.plan()


@pytest.fixture(scope="module")
def trained(plan: Plan) -> Training:
    return train(plan)


def folder_of(plan: Plan) -> Path:
    return RunFolder(plan.folder).model


def adapter_of(plan: Plan) -> dict[str, Tensor]:
    return load_file(folder_of(plan) / "adapter_model.safetensors")


def sha256(plan: Plan) -> str:
    return hashlib.sha256((folder_of(plan) / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("overrides", [(), BF16, (*BF16, f"{ARGS}use_dora=true")])
def test_a_loop_of_torch_and_peft_ends_with_the_same_adapter(
    project: Project, overrides: tuple[str, ...]
) -> None:
    """Same samples, same seeds, a base in float32 or in bfloat16: the same adapter to the last
    bit, and not the one that it began with."""
    plan, bf16 = project.plan(*overrides), bool(overrides)
    training = train(plan) if overrides else None
    if training is None and not folder_of(plan).exists():
        train(plan)
    base = base_of(project, dtype=torch.bfloat16 if bf16 else torch.float32)
    torch.set_num_threads(1)
    loop = plain_loop(project, plan, base, bf16)
    expected = peft.get_peft_model_state_dict(loop)
    found = adapter_of(plan)
    assert found.keys() == expected.keys()
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(found[name].any() for name in found)


def test_a_commit_holds_the_adapter_three_times(plan: Plan, trained: Training) -> None:
    """Weights and Adam's two moments, within 2 % and a header; nothing of the base."""
    weights = sum(t.nbytes for t in adapter_of(plan).values())
    state = trained.state
    steps = 4 * sum(name.endswith(".step") for name in state.tensors())
    assert sum(t.nbytes for t in state.tensors().values()) == 3 * weights + steps
    newest = trained.checkpointer.lease.record.checkpoints[-1]
    headers = 4096 * len(newest.files) + 220 * len(state.tensors())
    written = sum(file.size for file in newest.files.values())
    assert 3 * weights <= written <= 3 * weights + steps + headers
    assert state.outside is not None
    assert newest.numbers["frozen"] == state.outside.digest
    assert not any(name.startswith("frozen") for name in newest.files)


def test_peft_loads_the_adapter_from_its_folder_alone(
    project: Project, plan: Plan, trained: Training
) -> None:
    """The folder names its base, and what AutoPeftModelForCausalLM makes of it computes what the
    run's model computes."""
    config = json.loads((folder_of(plan) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(project.root / "base")
    assert (config["r"], config["task_type"], config["revision"]) == (4, "CAUSAL_LM", None)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(folder_of(plan))
    words = torch.arange(10).reshape(2, 5)
    own = trained.state.model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=words).logits, own(input_ids=words).logits)
        assert not torch.equal(base_of(project)(words).logits, own(input_ids=words).logits)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_base_is_never_there_in_float32(kind: torch.dtype, tmp_path: Path) -> None:
    """Each weight of a base that is held in bf16 becomes so while it is read, whatever the file's
    type; what the file lacks, a new head, is drawn as ever. The bits are those of a base that is
    read in float32 and held in bf16 afterwards."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16, vocab_size=30)
    transformers.BertForMaskedLM(config).to(kind).save_pretrained(tmp_path)
    args = {"name": str(tmp_path), "config": {"num_labels": 3}}
    args["auto_class"] = "AutoModelForSequenceClassification"
    early, late = (
        ModelRef(name="hub", args=args, adapter=Adapter(name="lora"), frozen=frozen)
        for frozen in ("bf16", "fp32")
    )
    base, plain = build_ref(early, 0, tmp_path), build_ref(late, 0, tmp_path)
    floats = {n for n, p in base.named_parameters() if p.dtype == torch.float32}
    assert {n for n in floats if "LayerNorm" not in n and "pooler" not in n} == {
        "classifier.weight", "classifier.bias",
    }  # fmt: skip
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    hold(base, "bf16")
    hold(plain, "bf16")
    ours, theirs = (
        {**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (base, plain)
    )
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n].dtype != theirs[n].dtype] == []
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


@pytest.mark.parametrize("overrides", [(), BF16])
def test_merged_weights_are_those_that_peft_merges(
    project: Project, overrides: tuple[str, ...]
) -> None:
    """`merge: true` trains the same run, and exports a plain transformers model in the base's own
    layout and precision."""
    alone = project.plan(*overrides)
    merged = project.plan(*overrides, "model.adapter.merge=true")
    assert merged.digest == alone.digest
    if not (folder_of(alone) / "adapter_model.safetensors").exists():
        train(alone)
    kind = torch.bfloat16 if overrides else torch.float32
    base = base_of(project, dtype=kind)
    expected = peft.PeftModel.from_pretrained(base, folder_of(alone)).merge_and_unload()
    merged = project.plan(
        *overrides, "model.adapter.merge=true", run="merged-" + kind.__repr__()[6:]
    )
    train(merged)
    found = transformers.AutoModelForCausalLM.from_pretrained(folder_of(merged), dtype="auto")
    assert not (folder_of(merged) / "adapter_config.json").exists()
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert {tensor.dtype for tensor in ours.values()} == {kind}


def test_the_average_is_of_the_adapter_alone(project: Project) -> None:
    """The average shares the base's memory with the model, its adapter is torch's own average of
    the adapters, and a commit holds the adapter four times."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    with attempt(project.plan("train.ema=0.5"), "a1") as training:
        state = training.state
        oracle = AveragedModel(
            nn.ParameterList(_trainable(state.model)), multi_avg_fn=get_ema_multi_avg_fn(0.5)
        )
        training.state.optimizer.register_step_post_hook(
            lambda *_: oracle.update_parameters(nn.ParameterList(_trainable(state.model)))
        )
        training.run()
    assert state.ema is not None
    averaged = state.ema.get_submodule("module")
    frozen = {id(p) for p in state.model.parameters() if not p.requires_grad}
    assert {id(p) for p in averaged.parameters() if not p.requires_grad} == frozen
    theirs = list(oracle.module.parameters())
    pairs = zip(_trainable(averaged), theirs, strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)
    trained = sum(p.nbytes for p in _trainable(state.model))
    moments = [t for n, t in state.tensors().items() if not n.endswith((".step", "n_averaged"))]
    assert sum(t.nbytes for t in moments) == 4 * trained


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.reduction=exact", "train.ema=0.9", f"{ARGS}use_rslora=true"),
        (f"{ARGS}modules_to_save=[lm_head]", f"{ARGS}trainable_token_indices=[1, 2]"),
        (
            f"{ARGS}target_parameters=[mlp.gate_proj.weight]",
            f"{ARGS}target_modules=[q_proj]",
            f"{ARGS}lora_dropout=0.0",
        ),
        ("train.activation_checkpointing=true", f"{ARGS}layer_replication=[[0, 2], [1, 2]]"),
    ],
)
def test_an_attempt_that_comes_back_ends_with_the_same_adapter(
    project: Project, overrides: tuple[str, ...]
) -> None:
    """Whatever the adapter is: an attempt that begins at the checkpoint of step 2 ends with the
    weights of an undisturbed run, and the commit has what is trained three times and no more."""
    whole, cut = (project.plan(*overrides, run=f"{name}-{abs(hash(overrides))}") for name in "ab")
    state = train(whole).state
    with attempt(cut, "a1") as training:
        training.steps = 2
        training.export = lambda *_: None
        training.run()
    train(cut, "a2")
    assert sha256(whole) == sha256(cut)
    trained = sum(p.nbytes for p in _trainable(state.model))
    own = [t for n, t in state.tensors().items() if n.startswith(("model.", "optimizer."))]
    assert sum(t.nbytes for t in own if t.dim()) == 3 * trained


@pytest.mark.once
def test_an_adapter_on_a_sharded_base_is_the_same_one(
    project: Project, plan: Plan, trained: Training
) -> None:
    """Two processes that hold a shard each of the base and of the adapter export what one does, up
    to the order of sums; with a moving average as well."""
    fsdp, ema = "train.sharding=fsdp", "train.ema=0.5"
    assert project.attempt(ema, run="averaged").code == 0
    pairs = [((), plan), ((ema,), project.plan(ema, run="averaged"))]
    for number, (more, unsharded) in enumerate(pairs):
        run = f"sharded{number}"
        done = project.attempt(fsdp, *more, processes=2, run=run)
        assert done.code == 0, done.err
        sharded = adapter_of(project.plan(fsdp, *more, processes=2, run=run))
        alone = adapter_of(unsharded)
        assert sharded.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(sharded[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.once
def test_a_run_that_is_killed_ends_with_the_same_adapter(
    project: Project, plan: Plan, trained: Training
) -> None:
    """A real rank with a real SIGKILL after the commit of step 2, and the same command again."""
    overrides = ["checkpoint.every=1 steps"]
    project.write("killed_at", "2")
    done = project.attempt(*overrides, run="killed")
    assert (done.code, (project.root / "killed_at").exists()) == (75, False), done.err
    done = project.attempt(*overrides, run="killed")
    assert done.code == 0, done.err
    killed = project.plan(*overrides, run="killed")
    assert sha256(killed) == sha256(plan)


def test_a_base_that_changed_is_refused(tmp_path: Path) -> None:
    """Other weights in the base's folder: the attempt ends before a step, and says what to type."""
    project = project_with_llama(tmp_path)
    plan = project.plan()
    refuses_another_base(plan, tmp_path / "base")


def test_init_from_puts_an_adapter_onto_the_adapter(
    project: Project, plan: Plan, trained: Training
) -> None:
    """An adapter's folder: the run begins with its weights, and another adapter's are refused."""
    warm = project.plan(f"model.init_from={folder_of(plan)}")
    with attempt(warm, "a1") as training:
        found = peft.get_peft_model_state_dict(training.state.model)
        expected = adapter_of(plan)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    other = project.plan(f"model.init_from={folder_of(plan)}", f"{ARGS}r=2")
    with pytest.raises(TrainError, match=r"model\.init_from: .* does not fit the adapter"):
        train(other)


def test_the_arguments_are_those_of_peft() -> None:
    """Every field of the installed LoraConfig is taken or refused by name, and of those that are
    taken each has peft's own annotation."""
    own = {each.name for each in fields(peft.LoraConfig)}
    assert own == {*LORA, *_REFUSED}
    tree = ast.parse(Path(inspect.getsourcefile(peft.LoraConfig) or "").read_text())
    config = next(n for n in tree.body if getattr(n, "name", "") == "LoraConfig")
    told = {
        ast.unparse(each.target): ast.unparse(each.annotation)
        for each in ast.walk(config)
        if isinstance(each, ast.AnnAssign)
    }
    narrower = {"init_lora_weights", "task_type"}
    assert {n: told[n] for n in LORA if n not in narrower} == {
        n: text for n, text in LORA.items() if n not in narrower
    }


def test_the_base_is_named_as_people_find_it(tmp_path: Path) -> None:
    """A repository at the commit that was downloaded, else at the recipe's revision; a folder by
    its whole path; a component's own model not at all."""
    base = nn.Module()
    ref = ModelRef(name="hub", args={"name": "owner/base", "revision": "main"})
    assert _source_of(base, ref) == ("owner/base", "main")
    base.config = transformers.LlamaConfig()
    base.config._commit_hash = "0123abc"
    assert _source_of(base, ref) == ("owner/base", "0123abc")
    here = ModelRef(name="hub", args={"name": str(tmp_path)})
    assert _source_of(base, here) == (str(tmp_path), None)
    assert _source_of(base, ModelRef(name="gpt")) == (None, None)


def test_what_was_exported_loads_where_a_rehearsal_loads_it(plan: Plan, trained: Training) -> None:
    """The adapter on the base that the recipe names."""
    words = torch.arange(10).reshape(2, 5)
    with torch.no_grad():
        loaded = exported.load(plan).eval()(input_ids=words).logits
        assert torch.equal(loaded, trained.state.model.eval()(input_ids=words).logits)


OWN = """\
from torch import nn


def build(norm: bool = False, eval: bool = False):
    middle = nn.BatchNorm1d(8) if norm else nn.GELU()
    model = nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, 3))
    if eval:
        model[1].eval()
    return model
"""


@pytest.fixture
def own(tmp_path: Path) -> Project:
    """A project with a module of its own."""
    project = Project(tmp_path)
    project.write("models/line.py", OWN)
    return project


ONTO = ("model.adapter={name: lora, args: {r: 2, target_modules: all-linear}}", "model.frozen=fp32")


def test_own_modules_take_an_adapter(own: Project) -> None:
    """A module that is nobody's: what was exported goes onto what the component builds."""
    plan = own.plan(*ONTO, "train.steps=3")
    state = train(plan).state
    seed_generators(0, INIT, 0)
    base = load_build("models", "line", own.root)()
    loaded = peft.PeftModel.from_pretrained(base, folder_of(plan)).eval()
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), state.model.eval()(x))


def test_an_adapter_of_ones_own_module_loads_with_one_line(own: Project) -> None:
    """On the base that the component builds from the run's seed, held as in training; another one
    is refused."""
    plan = own.plan(*ONTO[:1], "train.precision=bf16", "train.steps=3", "train.seed=7")
    state = train(plan).state
    loaded = xrun.load_model(folder_of(plan), own.root)
    x = torch.randn(5, 4, dtype=torch.bfloat16)
    assert torch.equal(loaded(x), state.model.eval()(x))
    assert "model = xrun.load_model(FOLDER, project=PROJECT)" in card_of(plan)
    config = json.loads((folder_of(plan) / "config.json").read_text())
    assert (config["seed"], config["model"]["name"]) == (7, "line")
    (folder_of(plan) / "config.json").write_text(json.dumps({**config, "seed": 8}))
    with pytest.raises(ComponentError, match=r"models/line\.py does not build the base weights"):
        xrun.load_model(folder_of(plan), own.root)


def card_of(plan: Plan) -> str:
    return (folder_of(plan) / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("model.args.norm=true",),
            r"models/line\.py has 1, whose running statistics move",
        ),
        (
            (f"{ARGS}target_modules=[query]",),
            r"peft cannot put it onto models/line\.py: .*query",
        ),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(
    own: Project, overrides: tuple[str, ...], said: str
) -> None:
    """Before the first step, with the module's name."""
    with pytest.raises(ComponentError, match=said):
        train(own.plan(*ONTO, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [("model.args.eval=true",), (f"{ARGS}modules_to_save=['1']",), ("model.adapter.merge=true",)],
)
def test_running_statistics_that_have_a_place_are_exported(
    own: Project, overrides: tuple[str, ...]
) -> None:
    """In evaluation mode, in modules_to_save, or merged: what was exported computes what the run's
    model computes."""
    plan = own.plan(*ONTO, "model.args.norm=true", *overrides, "train.steps=3")
    state = train(plan).state
    seed_generators(0, INIT, 0)
    loaded = load_build("models", "line", own.root)(norm=True)
    x = torch.randn(5, 4)
    if "merge" in overrides[0]:
        loaded.load_state_dict(load_file(folder_of(plan) / "model.safetensors"))
        own_model = state.model.get_base_model()  # merged in its place
    else:
        loaded = peft.PeftModel.from_pretrained(loaded, folder_of(plan))
        own_model = state.model
    assert torch.equal(loaded.eval()(x), own_model.eval()(x))
