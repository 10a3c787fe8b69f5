"""What a rehearsal makes smaller of a run, and that everything else stays."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from support.running import Project
from xrun.files import read_json
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.training.instances import build_model, splits_of
from xrun.training.miniature import LAYERS, ROWS, SAMPLES, Few, Miniature, parameters

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


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GPT2Config", {"n_embd": 512, "n_layer": 16, "n_head": 8, "vocab_size": 8192}),
        ("BertConfig", {"hidden_size": 576, "num_hidden_layers": 16, "vocab_size": 8192}),
        ("Qwen3Config", {"hidden_size": 512, "num_hidden_layers": 16, "vocab_size": 8192}),
    ],
)
def test_a_large_base_has_few_layers(tmp_path: Path, kind: str, settings: dict[str, int]) -> None:
    """Built from its configuration, without weights, which are not even there."""
    getattr(transformers, kind)(**settings).save_pretrained(tmp_path / "base")
    plan = Project(tmp_path).plan(f"model={{name: hub, args: {{name: {tmp_path / 'base'}}}}}")
    RunFolder(plan.folder).write_plan(plan)
    recipe = Miniature(rehearsed(plan)).recipe()
    model = build_model(recipe, tmp_path)
    assert model.config.num_hidden_layers == LAYERS
    assert f"its configuration with {LAYERS} of 16 layers" in told(plan)[0]
    assert sum(p.numel() for p in model.parameters()) == parameters(recipe.model, tmp_path)


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
