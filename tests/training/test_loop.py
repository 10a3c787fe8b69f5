"""End-to-end properties of training: real ranks, real kills, compared to the last bit.

Covers `xrun.training.accelerator`, `xrun.training.build`, `xrun.training.conditions`,
`xrun.training.instances` and `xrun.training.start`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from support.in_process import attempt
from support.running import (
    PER_STEP,
    READS,
    RECIPE,
    STEPS,
    Project,
    curve,
    record,
    steps_of,
    until,
    weights,
)

OWN_LOSS = """\
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 2)

    def forward(self, x, y):
        logits = self.line(x)
        loss = nn.functional.cross_entropy(logits, y)
        margin = (logits[:, 1] - logits[:, 0]).abs().mean().detach()
        return {"loss": loss, "margin": margin, "logits": logits}


def build():
    return Own()
"""
STREAMED = '''\
import torch

from xrun.components.datasets.points import spring


class Stream:
    """Seven shards of unequal length."""

    num_shards = 7
    shuffle_block = 10
    calls = 0

    def shard(self, i):
        return [(i, j) for j in range(5 + i)]

    def transform(self, example):
        self.calls += 1
        spring("stream", self.calls)
        i, j = example
        return torch.tensor([i, j, 1.0, torch.rand(())]), i % 2


def build():
    return {"train": Stream()}
'''
BLOCKS = """\
from torch import nn


def build():
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.1))
    return nn.Sequential(*[block() for _ in range(3)], nn.Linear(4, 2))
"""
NORMS = """\
from torch import nn


def build():
    norms = nn.BatchNorm1d(8), nn.BatchNorm1d(3)
    return nn.Sequential(nn.Linear(4, 8), norms[0], nn.GELU(), nn.Linear(8, 3), norms[1])
"""

TURNED = """\
import torch
from torch import nn


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).t())
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)

    def forward(self, x):
        return x @ self.weight + self.conv(x.reshape(-1, 2, 2, 1).expand(-1, -1, -1, 2)).flatten(1)


def build():
    return Turned()
"""
MIXED = """\
import torch
from torch import nn


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.turn = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.long = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, x):
        return (self.line(x) * self.turn).abs() + self.long.float()


def build():
    return Mixed()
"""

FEATURES = {
    "ema": ["train.ema=0.9"],
    "activation_checkpointing": ["model.name=blocks", "train.activation_checkpointing=true"],
    "bf16": ["train.precision=bf16"],
    "clip": ["train.clip_grad_norm=0.1"],
    "sgd": ["train.optimizer.name=sgd", "train.optimizer.args={momentum: 0.9}"],
    "weighted": ["dataset.args={weighted: true}"],
    "own loss": ["task=model", "model.name=own"],
    "exact": ["train.reduction=exact"],
    "workers": ["train.num_workers=2"],
    "stream": ["dataset.name=streamed"],
    "schedule": ["train.schedule={name: cosine, warmup_steps: 3}"],
    "compile": ["train.compile=true"],
    "micro_batch auto": ["train.micro_batch=auto"],
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def new(recipe: str = RECIPE) -> Project:
        project = Project(tmp_path_factory.mktemp("project"), recipe)
        project.write("models/own.py", OWN_LOSS)
        project.write("models/blocks.py", BLOCKS)
        project.write("models/norms.py", NORMS)
        project.write("models/turned.py", TURNED)
        project.write("models/mixed.py", MIXED)
        project.write("datasets/streamed.py", STREAMED)
        return project

    return new


@pytest.fixture(scope="module")
def undisturbed(make: Any) -> Project:
    """One run from 0 to the last step without anything happening."""
    project = make()
    assert project.attempt().code == 0
    return project


@pytest.mark.parametrize(
    "feature",
    [
        *(name for name in FEATURES if name != "compile"),
        pytest.param("compile", marks=pytest.mark.e2e),  # it calls a C++ compiler
    ],
)
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(make: Any, feature: str) -> None:
    """With every feature: killed at step 8 and resumed from step 5, or from one or two later where
    the first save was still on its way then, losses, metrics and weights are the same to the last
    bit."""
    overrides = [*FEATURES[feature], "train.steps=12", "checkpoint.every=5 steps"]
    one, other = make(), make()
    done = one.attempt(*overrides)
    assert done.code == 0, done.err
    split = "stream" if feature == "stream" else "train"
    per_step = (
        8
        if feature == "stream"
        else 1
        if feature == "micro_batch auto"
        else 2
        if feature == "workers"
        else PER_STEP
    )
    other.trap("SIGKILL", call=7 * per_step + 1, split=split, committed=5)
    # A loader's worker that is gone is no reason to give the machine up.
    assert other.attempt(*overrides).code == (0 if feature == "workers" else 75)
    assert not (other.root / "trap.json").exists(), "the kill did not happen"
    done = other.attempt(*overrides)
    assert done.code == 0, done.err
    assert curve(other.run) == curve(one.run)
    assert weights(other.run) == weights(one.run)
    first, *more = record(other.run)["attempts"]
    resumed = [first] if feature == "workers" else more
    assert [5 <= attempt["resumed_step"] < 8 for attempt in resumed] == [True]


def test_each_step_is_logged_once(make: Any, undisturbed: Project) -> None:
    """metrics.jsonl has every step exactly once, in order, after a run was killed three times."""
    project = make()
    for call in (3, 8 * PER_STEP, 13 * PER_STEP):
        project.trap("SIGKILL", call=call)
        assert project.attempt().code == 75
    assert project.attempt().code == 0
    trained = [point["step"] for point in project.run.points() if "train/loss" in point]
    assert trained == list(range(1, STEPS + 1))
    assert curve(project.run) == curve(undisturbed.run)
    assert weights(project.run) == weights(undisturbed.run)


def test_more_steps_continue_a_finished_run(make: Any, undisturbed: Project) -> None:
    """With a constant schedule, 12 steps and then 20 give the same weights as 20 from the start."""
    project = make()
    assert project.attempt("train.steps=12").code == 0
    shorter = weights(project.run)
    done = project.attempt()
    assert done.code == 0
    assert "Going on from step 12." in done.err
    assert shorter != weights(project.run) == weights(undisturbed.run)
    assert curve(project.run) == curve(undisturbed.run)


def test_a_schedule_that_is_continued_is_said(make: Any) -> None:
    """Before a step is trained, with both rates; an attempt that has no more steps says nothing."""
    project, cosine = make(), "train.schedule={name: cosine}"
    assert project.attempt(cosine, "train.steps=6").code == 0
    done = project.attempt(cosine, "train.steps=12")
    assert done.code == 0
    rates = {step: point["train/lr"] for step, point in curve(project.run).items()}
    assert rates[6] < rates[7] / 5
    assert f"the learning rate is {rates[6]:.4g} at step 6 and {rates[7]:.4g} at step 7" in done.err
    assert "schedule is another one" not in project.attempt(cosine, "train.steps=12").err


def test_a_warmup_longer_than_its_epochs_is_refused_before_training(make: Any) -> None:
    """By the steps that the dataset makes of them; nothing is committed."""
    project = make()
    done = project.attempt(
        "train.steps=null", "train.epochs=2", "train.schedule={name: cosine, warmup_steps: 26}"
    )
    assert done.code == 2
    assert "train.schedule.warmup_steps: the warmup of 26 steps" in done.err
    assert "at step 26" in done.err
    assert steps_of(project.run) == []


@pytest.mark.parametrize("processes", [2, 4])
def test_samples_do_not_depend_on_processes(
    make: Any, undisturbed: Project, processes: int
) -> None:
    """Every step trains on the same samples on 1, 2 and 4 processes, and its loss is the same but
    for the order of sums."""
    project = make()
    assert project.attempt("train.steps=6", processes=processes).code == 0
    expected = {step: point for step, point in curve(undisturbed.run).items() if step <= 6}
    same_samples_and_losses(curve(project.run), expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_do_not_depend_on_workers(make: Any, undisturbed: Project, workers: int) -> None:
    """Every step is the same to the last bit with 0, 1 and 3 loader workers."""
    project = make()
    assert project.attempt("train.steps=6", f"train.num_workers={workers}").code == 0
    assert curve(project.run) == {
        step: point for step, point in curve(undisturbed.run).items() if step <= 6
    }


def test_looking_ahead_changes_no_bit(make: Any, undisturbed: Project) -> None:
    """As where a device computes meanwhile: a run that is cut after step 5 and goes on has the
    samples, the losses and the weights of one that fetches each step's data when it wants them."""
    project = make()
    plan = project.plan()
    for name, steps in (("a1", 5), ("a2", 20)):
        with attempt(plan, name) as training:
            assert not training.ahead, "nothing computes beside a processor"
            training.ahead, training.steps = True, steps
            if name == "a1":
                training.export = lambda *_: None
            training.run()
    assert curve(project.run) == curve(undisturbed.run)
    assert weights(project.run) == weights(undisturbed.run)


TELLING = """\
from pathlib import Path

from torch import distributed, nn


class Model(nn.Linear):
    def forward(self, x):
        Path(__file__).with_name("told").write_text(str(distributed.is_initialized()))
        return super().forward(x)


def build():
    return Model(4, 3)
"""


@pytest.mark.parametrize(("processes", "reads"), [(1, PER_STEP + 2), (2, 1)])
def test_a_step_reads_nothing_but_its_results(tmp_path: Path, processes: int, reads: int) -> None:
    """Numbers are taken from tensors where `finite.read` takes them, which on a device is one
    transfer, and nowhere else: the losses, the norm and the verdict of one process, of several the
    norm beside the table of what each of them has. The dataset reads its own labels, on the host.
    """
    project = Project(tmp_path)
    project.write("models/line.py", READS.replace("CALLS", str(PER_STEP // processes)))
    overrides = ["task=model", "train.clip_grad_norm=0.1", "checkpoint.every=1000 steps"]
    assert project.attempt(*overrides, "train.steps=12", processes=processes).code == 0
    seen = json.loads((tmp_path / "models" / "reads.json").read_text())
    assert seen["aten::item"] == reads + 8 / processes


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_is_replicated_for_several_processes_only(tmp_path: Path, processes: int) -> None:
    """One process has no process group, and its model no replica's copies, buckets and sums."""
    project = Project(tmp_path)
    project.write("models/line.py", TELLING)
    assert project.attempt("train.steps=2", processes=processes).code == 0
    assert (tmp_path / "models" / "told").read_text() == str(processes > 1)


def test_a_run_goes_on_with_other_numbers_of_processes(make: Any, undisturbed: Project) -> None:
    """A run resumed on 4, then 2, then 1 processes trains on the same samples, and says from which
    step on bits may differ."""
    project = make()
    assert project.attempt("train.steps=6", processes=4).code == 0
    done = project.attempt("train.steps=12", processes=2)
    assert done.code == 0
    assert "From step 6 on bits may differ from an undisturbed run: processes 4 -> 2." in done.err
    assert project.attempt().code == 0
    same_samples_and_losses(curve(project.run), curve(undisturbed.run))


@pytest.mark.parametrize("model", ["line", "norms", "turned", "mixed"])
def test_exact_reduction_has_the_same_bits_on_any_number_of_processes(
    make: Any, model: str
) -> None:
    """With `reduction: exact` a run that changes from 4 to 2 to 1 to 4 processes ends with the bits
    of one on 1 process."""
    overrides = ["train.reduction=exact", f"model.name={model}"]
    one, other = make(), make()
    assert one.attempt(*overrides, "train.steps=16").code == 0
    for steps, processes in ((4, 4), (8, 2), (12, 1), (16, 4)):
        done = other.attempt(*overrides, f"train.steps={steps}", processes=processes)
        assert done.code == 0, done.err
    assert curve(one.run) == curve(other.run)
    assert weights(one.run) == weights(other.run)


def test_processes_train_parameters_of_any_kind_of_number(make: Any) -> None:
    """Complex and 64-bit parameters on 2 processes: the losses of one process, but for rounding."""
    one, two = make(), make()
    overrides = ["model.name=mixed", "train.steps=4", "train.optimizer.name=sgd"]
    assert one.attempt(*overrides).code == 0
    done = two.attempt(*overrides, processes=2)
    assert done.code == 0, done.err
    same_samples_and_losses(curve(two.run), curve(one.run))


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["train.ema=0.5", "train.accumulate=whole", "train.precision=bf16", "train.gather=bf16"],
    ],
    ids=["plain", "all"],
)
def test_a_sharded_run_goes_on_with_any_number_of_processes(make: Any, more: list[str]) -> None:
    """FSDP on 2 processes, killed: resumed on 2 the bits are the same, resumed on 1 all but
    rounding; with a moving average, gradients that are summed once a step and weights that are
    gathered in bf16 as well."""
    overrides = ["train.sharding=fsdp", "train.steps=10", *more]
    one = make()
    done = one.attempt(*overrides, processes=2)
    assert done.code == 0, done.err
    for processes in (2,) if more else (2, 1):
        other = make()
        other.trap("SIGKILL", call=7 * PER_STEP // 2 + 1, rank=1, committed=5)
        assert other.attempt(*overrides, processes=2).code == 75
        done = other.attempt(*overrides, processes=processes)
        assert done.code == 0, done.err
        if processes == 2:
            assert curve(other.run) == curve(one.run)
            assert weights(other.run) == weights(one.run)
        same_samples_and_losses(curve(other.run), curve(one.run))


def test_the_best_checkpoint_is_kept(make: Any) -> None:
    """The checkpoint of the best evaluation stays although newer ones push the others out."""
    project = make()
    overrides = [
        "train.evaluate={every: 1 steps, metric: loss, mode: max}",
        "train.optimizer.lr=0.05",
        "checkpoint.keep=2",
    ]
    project.trap("nothing", call=1, stays=True, paced=True)
    assert project.attempt(*overrides).code == 0
    losses = {
        point["step"]: point["val/loss"] for point in project.run.points() if "val/loss" in point
    }
    best = max(losses, key=lambda step: losses[step])
    assert best < 15, "the loss must fall for this test to say something"
    assert steps_of(project.run)[0] == best


LEAST = "train.evaluate={every: 5 steps, metric: accuracy, mode: min}"
MOST = "train.evaluate={every: 5 steps, metric: loss, mode: max}"


def test_another_metric_finds_its_own_best(make: Any) -> None:
    """A run that goes on by another metric compares nothing with the best value of the old one, nor
    takes the old best state for its model."""
    project = make()
    project.trap("nothing", call=1, stays=True, paced=True)
    assert project.attempt(LEAST, "train.steps=10").code == 0
    before = record(project.run)["checkpoints"][-1]["numbers"]["best"]
    assert (before["metric"], before["mode"]) == ("accuracy", "min")
    assert project.attempt(MOST, "train.export=best").code == 0
    losses = {
        point["step"]: point["val/loss"] for point in project.run.points() if "val/loss" in point
    }
    own = max((15, 20), key=lambda step: losses[step])
    best = record(project.run)["checkpoints"][-1]["numbers"]["best"]
    assert best == {"step": own, "value": losses[own], "metric": "loss", "mode": "max"}
    assert record(project.run)["finished"]["exported_step"] == own


def test_a_fork_finds_its_own_best(make: Any) -> None:
    """The best step of the run that it begins at is none of its own checkpoints, however good."""
    project = make()
    assert project.attempt(MOST).code == 0
    source = project.run.run
    more = ("-s", MOST, "-s", "train.steps=30", "-s", "train.export=best")
    done = project.xrun("recipes/tiny.yaml", "--fork", source, *more)
    assert done.code == 0, done.err
    assert project.run.run != source
    assert record(project.run)["checkpoints"][-1]["numbers"]["best"]["step"] in (25, 30)
    assert record(project.run)["finished"]["exported_step"] in (25, 30)
    assert "is not among the committed ones" not in done.err


def test_a_metric_that_does_not_exist_is_named(make: Any) -> None:
    """`train.evaluate.metric` that the task does not have is the recipe's mistake: it ends with 2,
    the list of those that it has, and the way on."""
    project = make()
    project.write("models/own.py", OWN_LOSS)
    done = project.attempt(
        "task=model",
        "model.name=own",
        "train.evaluate.metric=f1",
        "train.evaluate.mode=max",
        "train.steps=2",
    )
    assert done.code == 2, done.err
    assert "margin" in done.err
    assert "The same command goes on from what is committed." in done.err


def test_own_loss_logs_its_metrics(make: Any) -> None:
    """A model with a loss of its own has every scalar that it returns as a metric of the
    evaluation."""
    project = make()
    assert project.attempt("task=model", "model.name=own", "train.steps=2").code == 0
    assert {"val/loss", "val/margin"} <= set(project.run.report().metrics)


def test_the_average_is_what_is_evaluated_and_exported(make: Any) -> None:
    """With ema the final weights are the average, not the last step's weights."""
    plain, averaged = make(), make()
    assert plain.attempt("train.steps=8").code == 0
    assert averaged.attempt("train.steps=8", "train.ema=0.9").code == 0
    assert curve(plain.run) == curve(averaged.run)
    assert weights(plain.run) != weights(averaged.run)


def test_a_non_finite_loss_is_not_stepped_on(make: Any) -> None:
    """A NaN at step 8 ends with 6 and names the step; the last commit stands, and going on from it
    gives the undisturbed bits."""
    project = make()
    project.trap("nan", call=7 * PER_STEP + 2, stays=True, paced=True)
    done = project.attempt()
    assert done.code == 6
    assert "The loss of step 8 is nan" in done.err
    assert steps_of(project.run) == [0, 5]
    assert max(curve(project.run)) == 7
    (project.root / "trap.json").unlink()
    assert project.attempt().code == 0
    reference = make()
    assert reference.attempt().code == 0
    assert weights(project.run) == weights(reference.run)


ROOT = """\
import os
from pathlib import Path

from torch import nn

PLACE = Path(__file__).with_name("place")  # in which process, at which micro-batch


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.other = nn.Linear(4, 3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x, y):
        loss = nn.functional.cross_entropy(self.other(self.net(x)), y)
        self.calls += self.training
        here = [os.environ.get("RANK", "0"), str(self.calls)]
        if self.training and PLACE.exists() and PLACE.read_text().split() == here:
            return loss + (self.net.weight * 0).sum().square().sqrt()
        return loss


def build():
    return Root()
"""


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        ([], 1),
        (["train.clip_grad_norm=1.0", "train.optimizer={name: rmsprop, lr: 0.01}"], 1),
        ([], 2),
        (["train.reduction=exact"], 2),
        (["train.sharding=fsdp"], 2),
    ],
)
def test_a_non_finite_gradient_is_not_stepped_on(
    make: Any, overrides: list[str], processes: int
) -> None:
    """A NaN in one process's gradient, under a loss that is a number, ends with 6 on all of them;
    the newest checkpoint is finite, and going on from it gives the undisturbed bits."""
    kind = ["task=model", "model.name=root", *overrides]
    project, reference = make(), make()
    for each in (project, reference):
        each.write("models/root.py", ROOT)
    place = project.write("models/place", f"{processes - 1} {7 * PER_STEP // processes + 1}")
    project.trap("nothing", call=1, stays=True, paced=True)
    done = project.attempt(*kind, processes=processes)
    assert done.code == 6, done.err
    assert "The loss of step 8 is" in done.err
    assert "the gradient of net.weight is not finite" in done.err
    assert max(curve(project.run)) == 7
    newest = steps_of(project.run)[-1]
    assert newest in ((5,) if processes == 1 else (0, 5))
    place.unlink()
    done = project.attempt(*kind, processes=processes)
    assert done.code == 0, done.err
    assert record(project.run)["attempts"][-1]["resumed_step"] == newest
    assert reference.attempt(*kind, processes=processes).code == 0
    assert curve(project.run) == curve(reference.run)
    assert weights(project.run) == weights(reference.run)


@pytest.mark.parametrize(
    ("overrides", "processes"), [([], 1), ([], 2), (["train.sharding=fsdp"], 2)]
)
def test_weights_that_the_last_step_ruins_are_not_exported(
    make: Any, overrides: list[str], processes: int
) -> None:
    """Finite gradients times an absurd learning rate are no weights: the run ends with 6, without a
    model, and with its last checkpoint as it was."""
    project = make()
    ruin = ["train.optimizer={name: sgd, lr: 1e38, weight_decay: 1e3}", "train.steps=1"]
    done = project.attempt(*ruin, *overrides, processes=processes)
    assert done.code == 6, done.err
    assert "is not finite after step 1; this state is neither saved nor exported" in done.err
    assert steps_of(project.run) == [0]
    assert not project.run.model.exists()


def test_a_stream_cannot_count_epochs(make: Any) -> None:
    """A streamed dataset with `epochs` ends with 2 and asks for steps."""
    project = make(RECIPE.replace("  steps: 20\n", "  epochs: 2\n"))
    done = project.attempt("dataset.name=streamed")
    assert done.code == 2
    assert "Give train.steps." in done.err


def test_an_empty_stream_is_exhausted(make: Any) -> None:
    """A stream without examples ends with 6, not with an endless loop."""
    project = make()
    project.write("datasets/streamed.py", STREAMED.replace("range(5 + i)", "range(0)"))
    done = project.attempt("dataset.name=streamed")
    assert done.code == 6
    assert "empty" in done.err


def test_the_budget_ends_a_run_that_is_committed(make: Any) -> None:
    """budget.hours ends with 7 at the step where it was spent, which is committed; a raised budget
    goes on to the same bits."""
    project, reference = make(), make()
    done = project.attempt("budget.hours=0.0000001")
    assert done.code == 7
    assert "budget.hours" in done.err
    at = max(steps_of(project.run))
    assert 0 < at < STEPS
    assert max(curve(project.run)) == at
    assert project.attempt("budget.hours=1.0").code == 0
    assert reference.attempt().code == 0
    assert weights(project.run) == weights(reference.run)


def test_a_full_disk_loses_a_save_and_nothing_else(make: Any, small_disk: Path) -> None:
    """Training goes on over a disk that is full, says so and what to do, keeps the old checkpoint
    whole, and saves again once there is room."""
    project = make()
    ballast, held = small_disk / "ballast", project.root / "held"
    seen: dict[str, list[int]] = {}
    told: list[str] = []
    said = io.StringIO()
    overrides = [f"checkpoint.store={small_disk}", "train.steps=30"]
    project.home = small_disk
    project.trap("hold", call=2 * PER_STEP)
    disk = os.statvfs(small_disk)

    def fill() -> None:
        until(held.exists, "the first hold")
        until(lambda: steps_of(project.run)[-1:] == [0], "the commit of step 0")
        # Step 5's save begins before the next batch is asked for.
        project.trap("hold", call=6 * PER_STEP)
        held.unlink()
        (project.root / "go").touch()
        until(held.exists, "the hold")
        until(lambda: steps_of(project.run)[-1:] == [5], "the commit of step 5")
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for _ in range(disk.f_blocks):
                file.write(bytes(disk.f_bsize))
        seen["kept"] = steps_of(project.run)
        project.trap("hold", call=22 * PER_STEP)
        held.unlink()
        (project.root / "go").touch()
        until(held.exists, "the last hold")
        seen["still"] = steps_of(project.run)
        told.append(project.run.lacks_room())
        # Who shows it looks a few times a second.
        until(lambda: told[0] in said.getvalue(), "the sentence about the full disk")
        ballast.unlink()
        told.append(project.run.lacks_room(1 << 40))
        told.append(project.run.lacks_room())
        (project.root / "go").touch()

    thread = threading.Thread(target=fill)
    thread.start()
    done = project.attempt(*overrides, said=said)
    thread.join()
    assert "Disk full" in done.err
    assert "Training goes on." in done.err
    assert done.code == 0, done.err
    full = f"The disk of {project.run.path} is full: training goes on, what it logs waits in memory"
    assert told[0].startswith(full)
    assert done.err.count(told[0]) == 1
    assert "MB left, and a save takes 1.1e+06 MB: training goes on, its saves fail." in told[1]
    assert not told[2]
    assert seen["still"] == seen["kept"] == [0, 5]
    assert steps_of(project.run)[-1] == 30
    assert sorted(curve(project.run)) == list(range(1, 31))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A filesystem of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small filesystem needs rights that are not there")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def same_samples_and_losses(
    one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]
) -> None:
    """The same steps, the same samples in each, and losses that differ by rounding only."""
    assert one.keys() == other.keys()
    for step, point in one.items():
        assert point["train/samples"] == other[step]["train/samples"], step
        assert point["train/loss"] == pytest.approx(other[step]["train/loss"], rel=1e-5), step
