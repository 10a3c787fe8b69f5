"""What a rehearsal makes smaller of a run, and that everything else stays.

Covers `xrun.training.narrowed`.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from support.running import Project
from xrun.files import read_json
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.training.instances import build_model, splits_of
from xrun.training.miniature import ROWS, SAMPLES, Few, Miniature
from xrun.training.narrowed import LAYERS, computes

FROM_THE_HUB = """\
from datasets import load_dataset


def build(folder: str):
    rows = load_dataset("json", data_files=folder + "/rows.jsonl", split="train[:50%]")
    return {"train": rows, "val": rows}
"""


class Numbers:
    """A split that knows more than a list."""

    revision = "r1"

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return index * index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [self[index] for index in indices]


def rehearsed(plan: Plan) -> Plan:
    return replace(plan, rehearsal=1)


def told(plan: Plan) -> list[str]:
    return list((read_json(RunFolder(plan.folder).smaller, dict) or {"smaller": []})["smaller"])


def test_few_samples_are_the_split_itself() -> None:
    """In its first samples, and in what else it offers, also in a worker's process."""
    few: Few = pickle.loads(pickle.dumps(Few(Numbers())))  # noqa: S301  our own
    assert (len(few), few[7], few.revision) == (SAMPLES, 49, "r1")
    assert few.__getitems__([1, 2]) == [1, 4]
    assert not hasattr(few, "weights")


def test_few_samples_are_evaluated_in_a_rehearsal_only(tmp_path: Path) -> None:
    """Training's samples stay: a step takes few of them anyway, from anywhere in the data."""
    plan = Project(tmp_path).plan()
    RunFolder(plan.folder).write_plan(plan)
    assert [len(split) for split in splits_of(plan).values()] == [100, 41]
    assert told(plan) == []
    assert [len(split) for split in splits_of(rehearsed(plan)).values()] == [100, SAMPLES]
    assert told(plan) == [f"evaluation on {SAMPLES} of 41 samples"]


def test_rows_that_would_be_downloaded_whole_are_streamed(tmp_path: Path) -> None:
    """The first of them, whatever part of them the component asks for; nothing is prepared on
    disk. Afterwards the library does what it does."""
    project = Project(tmp_path)
    project.write("datasets/rows.py", FROM_THE_HUB)
    project.write("rows.jsonl", "".join(f'{{"x": {i}}}\n' for i in range(1000)))
    plan = project.plan(f"dataset={{name: rows, args: {{folder: {json.dumps(str(tmp_path))}}}}}")
    RunFolder(plan.folder).write_plan(plan)
    splits = splits_of(rehearsed(plan))
    assert [len(splits["train"]), splits["train"][5]["x"], len(splits["val"])] == [ROWS, 5, SAMPLES]
    assert f"the first {ROWS} rows of json, streamed" in told(plan)
    assert len(splits_of(plan)["train"]) == 500


BASES = {
    "LlamaConfig": ("CausalLM", {"num_key_value_heads": 8}),
    "MistralConfig": ("CausalLM", {}),
    "Qwen2Config": (
        "CausalLM",
        {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4},
    ),
    "Qwen3Config": ("CausalLM", {}),
    "Gemma2Config": ("CausalLM", {}),
    "GPT2Config": ("CausalLM", {"n_embd": 1600, "n_head": 25, "n_layer": 48}),
    "GPTNeoXConfig": ("CausalLM", {}),
    "FalconConfig": ("CausalLM", {}),
    "T5Config": ("Seq2SeqLM", {"d_model": 1024, "d_ff": 4096, "num_layers": 24}),
    "BertConfig": ("SequenceClassification", {}),
    "ViTConfig": ("ImageClassification", {}),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_large_base_is_narrow_and_has_few_layers(tmp_path: Path, kind: str) -> None:
    """Built from its configuration, without weights, which are not even there: it computes, has the
    same words, and every module by its name."""
    auto, settings = BASES[kind]
    config = getattr(transformers, kind)(**settings)
    config.save_pretrained(tmp_path / "base")
    args = f"{{name: {tmp_path / 'base'}, auto_class: AutoModelFor{auto}}}"
    plan = Project(tmp_path).plan(f"model={{name: hub, args: {args}}}")
    RunFolder(plan.folder).write_plan(plan)
    recipe = Miniature(rehearsed(plan)).recipe()
    model = build_model(recipe, tmp_path)
    assert (model.config.num_hidden_layers, computes(model)) == (LAYERS, True)
    assert getattr(model.config, "vocab_size", 0) == getattr(config, "vocab_size", 0)
    assert sum(p.numel() for p in model.parameters()) < 40e6
    with torch.device("meta"):
        whole = getattr(transformers, f"AutoModelFor{auto}").from_config(config)
    assert targets(model) == targets(whole)
    width = f"a width of {model.config.hidden_size} instead of {config.hidden_size}"
    assert f"{LAYERS} of {config.num_hidden_layers} layers and {width}" in told(plan)[0]


def targets(model: nn.Module) -> set[str]:
    """What `target_modules` of an adapter may name."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return {name for name in names if not name.isdigit()}


def test_layers_that_the_recipe_names_are_there(tmp_path: Path) -> None:
    """A base whose layers are named by their numbers keeps all of them."""
    transformers.BertConfig(vocab_size=64000).save_pretrained(tmp_path / "base")
    model = f"{{name: hub, args: {{name: {tmp_path / 'base'}}}, frozen_modules: [encoder.layer.9]}}"
    plan = Project(tmp_path).plan(f"model={model}", "model.init_from=owner/weights")
    RunFolder(plan.folder).write_plan(plan)
    recipe = Miniature(rehearsed(plan)).recipe()
    assert build_model(recipe, tmp_path).config.num_hidden_layers == 12
    assert recipe.model.init_from is None
    assert "configuration with a width of 32 instead of 768 (" in told(plan)[0]
    assert told(plan)[0].endswith("model.init_from and its weights not loaded")


def test_a_step_of_a_large_language_model_is_one_sample(tmp_path: Path) -> None:
    """A sample's logits over all its words alone are gigabytes."""
    transformers.LlamaConfig().save_pretrained(tmp_path / "base")
    args = f"{{name: {tmp_path / 'base'}, auto_class: AutoModelForCausalLM}}"
    plan = Project(tmp_path).plan(f"model={{name: hub, args: {args}}}", "task=language_modeling")
    RunFolder(plan.folder).write_plan(plan)
    train = Miniature(rehearsed(plan)).recipe().train
    assert (train.global_batch, train.micro_batch) == (1, 1)
    assert told(plan)[1] == "a step is one sample, for the base knows many words"


def test_a_small_base_stays_as_it_is(tmp_path: Path) -> None:
    transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2).save_pretrained(tmp_path / "base")
    plan = Project(tmp_path).plan(f"model={{name: hub, args: {{name: {tmp_path / 'base'}}}}}")
    assert Miniature(rehearsed(plan)).recipe() == plan.load_recipe()


def test_a_step_of_a_large_model_of_ones_own_is_one_micro_batch(tmp_path: Path) -> None:
    """The step is what takes longest."""
    micro = ("train.global_batch=4", "train.micro_batch=2")
    model = "model={name: mlp, args: {inputs: 4, hidden: 8000, depth: 2, classes: 3}}"
    plan = Project(tmp_path).plan(model, *micro)
    RunFolder(plan.folder).write_plan(plan)
    train = Miniature(rehearsed(plan)).recipe().train
    assert (train.global_batch, train.micro_batch) == (2, 2)
    assert told(plan) == ["a step is one micro-batch of 2, for the model is large"]
