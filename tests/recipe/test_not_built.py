"""What is not built is refused by name, where it is written, with what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from xrun.errors import RecipeError
from xrun.recipe.diagnostics import all_keys
from xrun.recipe.load import load_recipe
from xrun.recipe.not_built import OTHER_NAMES
from xrun.recipe.schema import Recipe

TEXT = """\
name: x
model: {name: mlp, args: {inputs: 10, classes: 2}}
dataset: {name: digits}
task: classification
hardware: local
train: {steps: 10, global_batch: 4}
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("classification", "preference", "4:7: task:", "no preference tuning (DPO"),
        ("classification", "DPO", "4:7: task:", "no preference tuning (DPO"),
        ("classification", "reward_modeling", "4:7: task:", "`task: language_modeling` trains"),
        ("classification", "gan", "4:7: task:", "GANs and others that take turns are not built"),
        ("4}", "4, optimizers: [{name: sgd}]}", "6:37: train.optimizers:", "one optimizer for"),
        ("4}", "4, optimizer: [{name: sgd}]}", "6:48: train.optimizer:", "one optimizer for"),
        ("4}", "4, optimizer: {critic: {}}}", "6:49: train.optimizer.critic:", "one optimizer for"),
        ("4}", "4, sharding: hsdp}", "6:47: train.sharding:", "within nodes alone (HSDP)"),
        ("4}", "4, cpu_offload: true}", "6:37: train.cpu_offload:", "offload to the"),
        ("digits", "webdataset", "3:17: dataset.name:", "datasets/image_folder reads pictures"),
        ("digits", "wds", "3:17: dataset.name:", "no WebDataset shards"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    old: str, new: str, place: str, said: str, tmp_path: Path
) -> None:
    """Whatever a person would type for it: one sentence at file, line and column."""
    path = tmp_path / "r.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    (problem,) = error.value.problems
    assert str(problem).startswith(f"{path}:{place}")
    assert said in problem.hint


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("loss", "`task` says which loss is computed"),
        ("train.loss", "`task` says which loss is computed"),
        ("gpus", "`hardware: {any_of: [{accelerators: A100:2}]}` on a cloud"),
        ("script", "xrun runs no script"),
        ("batch_size", "Did you mean `train.global_batch`?"),
        ("train.batch_size", "Did you mean `train.global_batch`?"),
        ("learning_rate", "Did you mean `train.optimizer.lr`?"),
        ("lr", "Did you mean `train.optimizer.lr`?"),
        ("epochs", "Did you mean `train.epochs`?"),
        ("seed", "Did you mean `train.seed`?"),
        ("steps", "Did you mean `train.steps`?"),
        ("args", "Known here: version, name"),
    ],
)
def test_a_key_by_another_name_leads_to_xruns_own(key: str, hint: str, tmp_path: Path) -> None:
    """What it is called elsewhere, and one that stands at the wrong place, whatever is near."""
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [f"{key}=1"])
    (problem,) = error.value.problems
    assert problem.what == "there is no such key"
    assert hint in problem.hint


def test_every_other_name_leads_to_a_key() -> None:
    assert set(OTHER_NAMES.values()) <= set(all_keys(Recipe))
    assert not OTHER_NAMES.keys() & {key.rpartition(".")[2] for key in all_keys(Recipe)}


@pytest.mark.parametrize(("old", "new"), [("classification", "classify"), ("digits", "digit")])
def test_other_mistakes_keep_their_own_hint(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert "Did you mean" in error.value.problems[0].hint
