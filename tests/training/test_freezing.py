"""Frozen modules and bases: built again in every attempt, refused where they are others, saved
where they move. The attempts run in this process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from support.in_process import attempt, train
from support.running import Project
from xrun.errors import CheckpointError, ComponentError, ExportError
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.run.record import RunRecord
from xrun.training.freezing import hold

MODEL = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, follows, late):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.late = late
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.head, self.follows = nn.Linear(8, 3), follows

    def forward(self, x):
        self.calls += self.training
        if self.training and self.follows and self.calls > self.late:
            with torch.no_grad():
                self.body[2].bias.lerp_(self.head.weight.mean(0), 0.1)
        return self.head(torch.relu(self.body(x)))


def build(follows: bool = False, late: int = 0):
    return Model(follows, late)
"""
BODY = "model.frozen_modules=[body]"
STEPS = "train.steps=6"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("models/line.py", MODEL)
    return project


def two_lives(plan: Plan) -> Any:
    """An attempt that ends after 3 steps, and one that goes on from there."""
    with attempt(plan, "a1") as training:
        training.steps = 3
        training.export = lambda *_: None
        training.run()
    return train(plan, "a2")


def final(plan: Plan) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(plan.folder).model / "model.safetensors")


@pytest.mark.parametrize("more", [(), ("model.frozen=bf16", "train.precision=bf16")])
def test_named_modules_stay_as_they_were_built(project: Project, more: tuple[str, ...]) -> None:
    """Their weights do not move and are not saved, their running statistics do and are; the run
    ends the same with and without a restart, held in bfloat16 but for the batch norm."""
    whole, cut = (project.plan(STEPS, BODY, *more, run=run) for run in ("whole", "cut"))
    state, other = train(whole).state, two_lives(cut).state
    ours, theirs = final(whole), final(cut)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    saved = {name.removeprefix("model.") for name in state.tensors() if name[:6] == "model."}
    assert saved == {"head.weight", "head.bias", "calls"} | {
        f"body.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    kinds = {name: tensor.dtype for name, tensor in ours.items()}
    held = torch.bfloat16 if more else torch.float32
    assert (kinds["body.0.weight"], kinds["body.1.weight"]) == (held, torch.float32)
    assert kinds["head.weight"] == torch.float32
    assert other.numbers()["frozen"] == state.numbers()["frozen"]


def test_a_teacher_that_follows_is_saved(project: Project) -> None:
    """What the forward pass moves is not frozen, whatever the recipe says: a restart brings it
    back, and the rest of its module is not saved."""
    follows = (STEPS, BODY, "model.args.follows=true")
    whole, cut = (project.plan(*follows, run=run) for run in ("whole", "cut"))
    state = train(whole).state
    two_lives(cut)
    ours, theirs = final(whole), final(cut)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert "model.body.2.bias" in state.tensors()
    assert "model.body.2.weight" not in state.tensors()


BEST = (
    "train.export=best",
    "train.evaluate={every: 1 steps, metric: loss, mode: max}",
    "checkpoint={every: 1 steps, keep: 8}",
)
"""The worst step, which is early, is taken for the best."""


@pytest.mark.parametrize("more", [(), ("train.ema=0.5",)], ids=["plain", "ema"])
def test_the_best_step_has_what_moved_after_it_as_it_was(
    project: Project, more: tuple[str, ...]
) -> None:
    """A teacher that begins to follow after the best step is exported as that step had it, from
    its source: the model of a run that ends there, bit by bit."""
    late = (BODY, *more, "model.args={follows: true, late: 16}")
    plan = project.plan(*BEST, *late, STEPS, run="whole")
    state = train(plan).state
    finished = RunRecord.of(RunFolder(plan.folder).head()).finished
    assert finished is not None
    assert finished.exported_step is not None
    assert finished.exported_step <= 16 // 4
    assert "model.body.2.bias" in state.tensors()
    short = project.plan(*BEST[1:], *late, f"train.steps={finished.exported_step}", run="short")
    train(short)
    ours, theirs = final(plan), final(short)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_another_source_is_not_mixed_into_the_best_step(project: Project, tmp_path: Path) -> None:
    """Where the file that the frozen weights came from has changed while the run trained, the
    export fails with the parameter's name, and the run is finished all the same."""
    torch.manual_seed(7)
    base = {"body.2.bias": torch.randn(8)}
    save_file(base, tmp_path / "base.safetensors")
    late = (BODY, "model.args={follows: true, late: 16}", "model.init_from=base.safetensors")
    plan = project.plan(*BEST, *late, STEPS)
    with attempt(plan, "a1") as training:
        save_file({"body.2.bias": base["body.2.bias"] + 1}, tmp_path / "base.safetensors")
        with pytest.raises(ExportError, match=r"body\.2\.bias is frozen, .*has changed since"):
            training.run()
    finished = RunRecord.of(RunFolder(plan.folder).head()).finished
    assert finished is not None
    assert "body.2.bias" in (finished.export_failed or "")


def test_weights_from_init_from_are_read_in_every_attempt(project: Project, tmp_path: Path) -> None:
    """The frozen ones come from the file again, what is trained from the checkpoint; another file
    is refused with what it means and what to type."""
    plan = project.plan(STEPS, BODY, "model.init_from=base.safetensors")
    torch.manual_seed(7)
    base = {f"body.{n}.weight": torch.randn(8, k) for n, k in ((0, 4), (2, 8))}
    save_file(base, tmp_path / "base.safetensors")
    shutil.copy(tmp_path / "base.safetensors", tmp_path / "kept.safetensors")
    with attempt(plan, "a1") as training:
        training.steps = 3
        training.export = lambda *_: None
        training.run()
    base["body.2.weight"][3, 3] += 1e-3
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="frozen weights are not those") as error:
        train(plan, "a2")
    assert (error.value.exit_code, "--again" in str(error.value)) == (5, True)
    shutil.copy(tmp_path / "kept.safetensors", tmp_path / "base.safetensors")
    train(plan, "a3")
    assert torch.equal(final(plan)["body.0.weight"], base["body.0.weight"])


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ("[bodi]", r"models/line\.py has no module 'bodi'\. Did you mean `body`\?"),
        ("[body, head]", "every weight of the model is frozen"),
    ],
)
def test_modules_that_cannot_be_frozen_are_refused(
    project: Project, modules: str, said: str
) -> None:
    """A name that the model does not have, and all of them."""
    with pytest.raises(ComponentError, match=said):
        train(project.plan(f"model.frozen_modules={modules}"))


def test_auto_does_not_try_a_frozen_weight_that_moves(project: Project) -> None:
    """The copy on which micro-batches are tried shares frozen weights, so that it must not move
    them."""
    plan = project.plan(BODY, "model.args.follows=true", "train.micro_batch=auto")
    with pytest.raises(ComponentError, match=r"train\.micro_batch: auto cannot try it"):
        train(plan)
    train(project.plan(STEPS, BODY, "train.micro_batch=auto"))


def test_a_transformer_of_torch_s_computes_when_it_is_held_in_bf16() -> None:
    """Layer norms on processors take no float32 inputs with bfloat16 weights, and theirs stay as
    they are; everything else is in bfloat16."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    hold(layer, "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, 8)).isfinite().all()
    kinds = {name: p.dtype for name, p in layer.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {
        name for name in kinds if name.startswith("norm")
    }


def test_two_processes_with_a_shard_each_save_no_frozen_weights(project: Project) -> None:
    """Sharded over two processes, the digest is that of one process, and the checkpoint has the
    head alone."""
    project.write("models/line.py", MODEL.replace("nn.BatchNorm1d(8)", "nn.GELU()"))
    more = ("train.sharding=fsdp", "train.steps=3", BODY)
    done = project.attempt(*more, processes=2, run="sharded")
    assert done.code == 0, done.err
    alone = project.plan(*more[1:], run="alone")
    train(alone)
    heads = [RunRecord.of(RunFolder(project.home / run).head()) for run in ("sharded", "alone")]
    frozen = [head.checkpoints[-1].numbers["frozen"] for head in heads]
    assert frozen[0] == frozen[1]
    paths = (project.home / "sharded" / "state" / "objects").rglob("*")
    names = [name for path in paths if path.is_file() for name in load_file(path)]
    assert {name.split(".")[1] for name in names} == {"head", "calls"}
    ours, theirs = final(project.plan(run="sharded")), final(alone)
    assert torch.equal(ours["body.0.weight"], theirs["body.0.weight"])
    assert torch.allclose(ours["head.weight"], theirs["head.weight"], atol=1e-6)


def test_whole_numbers_and_complex_ones_are_held_as_they_are() -> None:
    """Only real numbers have a precision to choose."""
    module = nn.Module()
    kinds = (torch.float64, torch.int8, torch.complex64)
    for kind in kinds:
        p = nn.Parameter(torch.ones(2, dtype=kind), requires_grad=False)
        module.register_parameter(str(kind)[6:], p)
    hold(module, "bf16")
    assert [p.dtype for p in module.parameters()] == [torch.bfloat16, *kinds[1:]]
