"""The plan of a rehearsal: what is made smaller, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.paths import RECIPES
from support.running import Project
from xrun.launcher.rehearsal.small import hidden_warmup, made_smaller, small_plan, unseen
from xrun.recipe.load import load_recipe
from xrun.run.plan import Plan, make_plan

pytestmark = pytest.mark.once


def plan_of(name: str) -> Plan:
    path = RECIPES / f"{name}.yaml"
    return make_plan(load_recipe(path), path, environ={})


def test_a_run_for_eight_gpus_is_made_small() -> None:
    """One process, two micro-batches of two samples, state and log here, nobody told; the model's
    arguments, the optimizer and the run's name stay."""
    plan = plan_of("gpt_h100")
    small = small_plan(plan, Path("/there"))
    train = small.load_recipe().train
    assert (train.micro_batch, train.global_batch, train.num_workers) == (2, 4, 1)
    assert (train.precision, train.compile, train.sharding) == ("bf16", False, "none")
    assert (train.schedule.name, train.schedule.warmup_steps) == ("cosine", 0)
    assert train.optimizer == plan.load_recipe().train.optimizer
    assert (small.processes, small.store, small.wandb, small.on_clouds) == (1, "", None, False)
    assert small.limits == small.limits.__class__()
    assert small.recipe["model"] == plan.recipe["model"]
    assert (small.run, small.digest) == (plan.run, plan.digest)
    assert (small.last_step(None), plan.last_step(None)) == (1, 19000)
    assert small.folder == Path("/there/runs") / plan.run
    assert small.project == "/there/project"
    assert made_smaller(plan, small) == ("steps of 4 instead of 512 samples, in micro-batches of 2")
    assert list(unseen(plan)) == [
        "CUDA",
        "a GPU's memory",
        "speed",
        "several processes",
        "torch.compile",
    ]


def test_files_that_only_a_machine_has_are_not_seen(tmp_path: Path) -> None:
    """Those that are here are."""
    (tmp_path / "here").mkdir()
    path = RECIPES / "digits_mlp.yaml"
    files = f"files={{/nowhere/data: s3://bucket/data, {tmp_path / 'here'}: s3://bucket/here}}"
    plan = make_plan(load_recipe(path, [files]), path, environ={})
    assert list(unseen(plan))[3:] == ["/nowhere/data of `files`"]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (["train.global_batch=1", "train.micro_batch=1"], (1, 1)),
        (["train.global_batch=2", "train.micro_batch=2"], (2, 2)),
        (["train.global_batch=3", "train.micro_batch=1"], (2, 1)),
        (["train.global_batch=1", "train.micro_batch=auto"], (1, 1)),
        (["train.global_batch=64", "train.micro_batch=auto"], (4, 2)),
    ],
    ids=str,
)
def test_a_step_has_a_whole_number_of_micro_batches(
    tmp_path: Path, settings: list[str], sizes: tuple[int, int]
) -> None:
    train = small_plan(Project(tmp_path).plan(*settings), tmp_path).load_recipe().train
    assert (train.global_batch, train.micro_batch) == sizes


def test_a_warmup_is_measured_by_the_whole_run(tmp_path: Path) -> None:
    """Over the data that the dataset has, by the recipe's own batch."""
    told = ("train.steps=null", "train.epochs=2", "train.schedule.warmup_steps=25")
    plan = Project(tmp_path).plan(*told)
    assert hidden_warmup(plan, 104) == ""  # 26 steps
    assert "at step 24: 96 samples are 12 steps an epoch" in hidden_warmup(plan, 96)
    assert hidden_warmup(Project(tmp_path).plan(), 1) == ""


def test_a_step_that_is_as_in_the_run_is_not_said_to_be_smaller(tmp_path: Path) -> None:
    plan = Project(tmp_path).plan("train.global_batch=4", "train.micro_batch=2")
    assert made_smaller(plan, small_plan(plan, tmp_path)) == ""
