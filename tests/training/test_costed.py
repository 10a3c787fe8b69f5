"""What a step takes is known before anything is computed: bytes as on real tensors, FLOPs as
formulas have them. Covers `xrun.training.footprint`.

All shipped models at three sizes are in `python -m benchmarks quote`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from support.paths import ROOT
from support.running import Project
from xrun.components import use_project
from xrun.recipe.schema import Recipe
from xrun.run.cost import Cost
from xrun.run.folder import RunFolder
from xrun.training.costed import Batches, Costing, main, tried

_SPEC = importlib.util.spec_from_file_location("benchmarks", ROOT / "benchmarks" / "__init__.py")
assert _SPEC is not None  # by its path: with the root on sys.path `datasets` would mean ours
sys.modules.setdefault("benchmarks", importlib.util.module_from_spec(_SPEC))

from benchmarks.quote import (  # noqa: E402
    ADAPTED,
    CASES,
    GPT,
    LLAMA,
    TOKENS,
    VIT,
    Case,
    batch_of,
    predicted,
    real,
)

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def shipped() -> None:
    use_project(ROOT)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def cost_of(recipe: Recipe, batch: Any = None, samples: int = 2) -> Cost:
    return tried(recipe, ROOT, Batches({samples: batch_of(recipe) if batch is None else batch}, {}))


@pytest.mark.parametrize(
    "name", ["mlp", "vit, bf16", "gpt, activations computed again", "llama", "flow"]
)
def test_memory_is_what_memtracker_counts_on_real_tensors(name: str) -> None:
    recipe = CASES[name].recipe(2)
    batch = batch_of(recipe)
    assert predicted(recipe, batch)[0] == pytest.approx(real(recipe, batch), rel=0.10)


def test_a_gpts_flops_are_six_for_each_parameter_and_token_and_its_attention() -> None:
    """6 N D (Kaplan et al. 2020) over the weights that multiply, 12 of depth, width and context for
    attention; forward and backward are a third and two thirds."""
    recipe = Case("gpt", GPT, TOKENS, "language_modeling").recipe(2)
    cost = cost_of(recipe)
    width, depth, context, vocab = (GPT[name] for name in ("width", "depth", "context", "vocab"))
    products = 12 * depth * width**2 + vocab * width
    tokens = 2 * context
    attention = 12 * depth * width * context * tokens
    # The kernel of attention computes the product of queries and keys again in backward.
    again = 2 * depth * width * context * tokens
    assert cost.trials[0].flops == pytest.approx(
        6 * products * tokens + attention + again, rel=0.01
    )


def test_a_vits_flops_follow_from_its_patches() -> None:
    recipe = CASES["vit"].recipe(2)
    cost = cost_of(recipe)
    width, depth = VIT["width"], VIT["depth"]
    patches = (VIT["image_size"] // VIT["patch_size"]) ** 2
    tokens = 2 * patches
    products = 12 * depth * width**2
    patch = 2 * tokens * width * VIT["patch_size"] ** 2 * 3
    expected = 6 * products * tokens + 14 * depth * width * patches * tokens + 2 * patch
    assert cost.trials[0].flops == pytest.approx(expected, rel=0.03)


def test_flops_are_those_of_torchs_counter() -> None:
    """Of a model with convolutions, on real tensors."""
    recipe = CASES["flow"].recipe(2)
    batch = batch_of(recipe)
    objective = Costing.of(recipe, ROOT, batch, None).objective
    with FlopCounterMode(display=False) as counter:
        objective(batch, 2)["loss"].backward()
    assert predicted(recipe, batch)[1] == counter.get_total_flops()


def test_what_is_computed_again_costs_flops_and_no_memory() -> None:
    kept, again = (
        cost_of(CASES[name].recipe(2)) for name in ("gpt", "gpt, activations computed again")
    )
    assert again.trials[0].further < 0.6 * kept.trials[0].further
    # Each block once more, up to its last product; not what comes before and after them.
    assert 1.15 < again.trials[0].flops / kept.trials[0].flops < 4 / 3


def test_a_model_larger_than_this_machine_is_measured() -> None:
    """6.8 billion parameters, which would take 27 GB: none of it is there."""
    args = {"vocab": 256, "context": 16, "width": 16384, "depth": 2, "heads": 16}
    data = {"kind": "tokens", "shape": 16, "classes": 256}
    cost = cost_of(Case("gpt", args, data, "language_modeling").recipe(2))
    assert cost.parameters > 6e9
    assert cost.weights == pytest.approx(4 * cost.parameters, rel=0.001)
    assert cost.optimizer == pytest.approx(8 * cost.parameters, rel=0.001)
    assert cost.gradients == 4 * cost.parameters


def test_an_adapter_is_what_is_trained_and_saved() -> None:
    recipe = ADAPTED.recipe(2)
    cost = cost_of(recipe)
    whole = cost_of(Case("llama", LLAMA, TOKENS, "language_modeling").recipe(2))
    assert cost.trained == cost.parameters - whole.parameters
    assert cost.state == pytest.approx(3 * 4 * cost.trained, rel=0.01)
    assert cost.gradients == 4 * cost.trained


def test_a_base_in_4_bit_takes_a_quarter_of_its_linear_layers() -> None:
    """bitsandbytes is not asked: it could not pack what has no values."""
    recipe = ADAPTED.recipe(2)
    bits = recipe.model_copy(update={"model": recipe.model.model_copy(update={"frozen": "4bit"})})
    held = recipe.model_copy(update={"model": recipe.model.model_copy(update={"frozen": "bf16"})})
    packed, plain = cost_of(bits), cost_of(held)
    linear = 4 * (4 * LLAMA["width"] ** 2 + 3 * LLAMA["width"] * 352)
    assert plain.weights - packed.weights == int(linear * (2 - 0.5625))


def test_auto_is_tried_small_and_follows_a_line() -> None:
    """What four samples take is foreseen from one and two."""
    recipe = CASES["gpt"].recipe(4)
    batches = {n: batch_of(CASES["gpt"].recipe(n)) for n in (1, 2, 4)}
    two = tried(recipe, ROOT, Batches({n: batches[n] for n in (1, 2)}, {}))
    four = tried(recipe, ROOT, Batches({4: batches[4]}, {}))
    assert two.trial(4).further == pytest.approx(four.trial(4).further, rel=0.02)
    assert two.trial(4).flops == four.trial(4).flops


def test_a_base_from_the_hub_is_its_configuration(tmp_path: Path) -> None:
    """There are no weights in the folder, and none are asked for."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertConfig(vocab_size=64, intermediate_size=64, **small).save_pretrained(tmp_path / "bert")
    args = {"name": str(tmp_path / "bert"), "auto_class": "AutoModelForMaskedLM"}
    recipe = Case("hub", args, TOKENS | {"classes": 64}, "token_classification").recipe(2)
    cost = cost_of(recipe)
    assert cost.trained == cost.parameters > 10_000


NUMBERS = """
import torch
from torch import nn


class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.bound = torch.linspace(0, 1, 3).tolist()[-1]

    def forward(self, x):
        return self.layer(x) * (2.0 if float(x.sum()) > self.bound else 1.0)


def build(width=3):
    return Asks()
"""


def measured(project: Project, *overrides: str) -> dict[str, Any]:
    """What the process of a plan writes."""
    plan = replace(project.plan(*overrides), rehearsal=1)
    run = RunFolder(plan.folder)
    run.path.mkdir(parents=True)
    run.write_plan(plan)
    assert main(str(run.plan_file)) == 0
    found: dict[str, Any] = json.loads(run.cost.read_text())
    return found


def test_a_model_that_asks_for_its_numbers_is_tried_with_them(project: Project) -> None:
    (project.root / "models" / "line.py").write_text(NUMBERS)
    cost = Cost.from_json(measured(project, "model.args={}")["cost"])
    assert cost.parameters == 15
    assert cost.train_samples
    assert not cost.estimated


def test_a_model_that_cannot_be_built_is_a_sentence(project: Project) -> None:
    (project.root / "models" / "line.py").write_text("def build(width=3):\n    return 1 / 0\n")
    told = measured(project, "model.args={}")
    assert "models/line.py: build() failed: ZeroDivisionError" in told["lacks"]


def test_dropout_in_attention_keeps_nothing() -> None:
    """As on GPUs, whose kernels draw it again in backward."""
    plain, dropped = (
        cost_of(Case("gpt", GPT | {"dropout": p}, TOKENS, "language_modeling").recipe(2))
        for p in (0.0, 0.1)
    )
    scores = 4 * 2 * GPT["heads"] * GPT["context"] ** 2 * GPT["depth"]
    assert dropped.trials[0].first - plain.trials[0].first < 1.5 * scores
    assert torch.is_grad_enabled()
