"""What `xrun check` says about `model.adapter`, `model.frozen` and `model.frozen_modules`."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipes import TRAIN, problems, write
from xrun.libraries import what_is_missing
from xrun.recipe.load import load_recipe
from xrun.recipe.needs import needs
from xrun.run.identity import identity

MLP = "{name: mlp, args: {inputs: 64, hidden: 128, depth: 2, classes: 10}"
REST = "dataset: {name: digits}\ntask: classification\n"


def recipe(model: str, train: str = TRAIN) -> str:
    return f"name: small\nmodel: {MLP}, {model}}}\n{REST}{train}"


LORA_AND = "adapter: {name: lora, args: {%s}}, frozen: fp32"
ONE_OF_TWO = " Set `train.precision: bf16`, or `model.frozen: fp32`."
NO_BF16 = "frozen weights are held in bf16, and `train.precision: fp32` computes in fp32."
BASE = "not available: it changes the base's own weights, which no checkpoint holds"
WRONG = {
    LORA_AND % "rr: 4": (
        "4}",
        "model.adapter.args.rr: peft's LoraConfig has no such argument. Did you mean `r`?",
    ),
    LORA_AND % "r: many": (
        "many",
        "model.adapter.args.r: peft's LoraConfig takes `int` (got many).",
    ),
    LORA_AND % "init_lora_weights: pissa": (
        "pissa",
        (
            f"model.adapter.args.init_lora_weights: {BASE} (got pissa)."
            " Use true, false, gaussian or orthogonal."
        ),
    ),
    LORA_AND % "revision: main": (
        "main",
        "model.adapter.args.revision: not available: xrun sets it. Remove it.",
    ),
    "adapter: {name: lora}": ("{name: lora}", f"model.adapter: {NO_BF16}{ONE_OF_TWO}"),
    "adapter: {name: lora}, frozen: bf16": ("bf16", f"model.frozen: {NO_BF16}{ONE_OF_TWO}"),
    "adapter: {name: lora}, frozen: 4bit": (
        "4bit",
        (
            "model.frozen: the base is held in bf16 where it is not packed, and `train.precision:"
            " fp32` computes in fp32 (got 4bit). Set `train.precision: bf16`."
        ),
    ),
    "frozen: 4bit": (
        "4bit",
        (
            "model.frozen: nothing is frozen (got 4bit). Add `model.adapter` or"
            " `model.frozen_modules`, or remove it."
        ),
    ),
    "frozen: bf16": (
        "bf16",
        (
            "model.frozen: nothing is frozen (got bf16). Add `model.adapter` or"
            " `model.frozen_modules`, or remove it."
        ),
    ),
    "adapter: {name: lora}, frozen: fp32, frozen_modules: [head]": (
        "[head]",
        (
            "model.frozen_modules: under an adapter the whole model is frozen. Remove it;"
            " `exclude_modules` in `model.adapter.args` leaves modules without one."
        ),
    ),
}


@pytest.mark.parametrize("model", WRONG)
def test_what_does_not_work_is_refused_at_its_place(tmp_path: Path, model: str) -> None:
    """One problem, at the key or the value that is wrong, with the way out."""
    where, said = WRONG[model]
    column = recipe(model).splitlines()[1].index(where) + 1
    assert problems(tmp_path, recipe(model)) == [f"2:{column}: {said}"]


PACKED = {
    "frozen_modules: ['0'], frozen: 8bit": (
        "precision: bf16",
        (
            "model.frozen: only the base under an adapter is packed (got 8bit). Use `bf16`, or add"
            " `model.adapter`."
        ),
    ),
    "adapter: {name: lora, args: {bias: all}}, frozen: 8bit": (
        "precision: bf16",
        (
            "model.adapter.args.bias: it trains a part of a layer that `model.frozen: 8bit` has"
            " packed (got all). Remove it, or set `model.frozen: bf16`."
        ),
    ),
    "adapter: {name: lora}, frozen: 8bit": (
        "precision: bf16, sharding: fsdp, micro_batch: 1",
        (
            "train.sharding: FSDP cannot cut the weights that `model.frozen: 8bit` has packed (got"
            " fsdp). Remove it, or set `model.frozen: bf16`."
        ),
    ),
    "adapter: {name: lora}, frozen: 4bit": (
        "precision: bf16, compile: true",
        (
            "train.compile: it is not tested over a base in `model.frozen: 4bit` (got true)."
            " Remove it, or set `model.frozen: bf16`."
        ),
    ),
}


@pytest.mark.parametrize("model", PACKED)
def test_what_a_packed_base_cannot_do_is_refused(tmp_path: Path, model: str) -> None:
    """One problem, with the way out."""
    more, said = PACKED[model]
    train = TRAIN.replace("steps", f"{more}, steps")
    (found,) = problems(tmp_path, recipe(model, train))
    assert found.partition(": ")[2] == said


@pytest.mark.once
def test_a_packed_base_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bitsandbytes is not installed: one sentence with what to type."""
    monkeypatch.setattr("xrun.libraries.is_here", lambda module: module != "bitsandbytes")
    train = TRAIN.replace("steps", "precision: bf16, steps")
    text = recipe("adapter: {name: lora}, frozen: 4bit", train)
    assert what_is_missing(*needs(load_recipe(write(tmp_path, text)))) == (
        "`model.frozen` in 4 or 8 bit needs bitsandbytes, which is not installed here."
        " Install with: pip install 'xrun[quantized]'"
    )


def test_another_method_is_refused_by_name(tmp_path: Path) -> None:
    """An adapter of another kind."""
    train = TRAIN.replace("steps", "precision: bf16, steps")
    (said,) = problems(tmp_path, recipe("adapter: {name: prefix}", train))
    assert "must be" in said
    assert "prefix" in said


def test_the_base_is_held_in_bf16_by_default(tmp_path: Path) -> None:
    """Under an adapter, where the arithmetic says so too."""
    train = TRAIN.replace("steps", "precision: bf16, steps")
    assert load_recipe(write(tmp_path, recipe("adapter: {name: lora}", train))).model.held == "bf16"


def test_what_is_frozen_counts_and_how_it_is_exported_does_not(tmp_path: Path) -> None:
    """Adapter, its arguments and the precision of the base make another run; `merge` does not; a
    recipe without them has the digest that it has always had."""
    plain = f"name: small\nmodel: {MLP}}}\n{REST}{TRAIN}"
    lora = "adapter: {name: lora, args: {r: 4}%s}, frozen: fp32"
    texts = [
        plain,
        recipe(lora % ""),
        recipe(lora.replace("4", "8") % ""),
        recipe("frozen_modules: ['0']"),
        recipe("frozen_modules: ['0'], frozen: fp32"),
        recipe(lora % ", merge: true"),
    ]
    made = [identity(load_recipe(write(tmp_path, text)), tmp_path) for text in texts]
    digests = [each.digest for each in made if each]
    assert len(set(digests[:5])) == 5
    assert digests[5] == digests[1]
    assert made[0] is not None
    assert made[0].mathematics["model"].keys() == {"name", "args"}
