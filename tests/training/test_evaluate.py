"""Evaluation on 1, 2 and 3 real processes: every sample once, the same numbers to the last bit.

The file is also the program that the processes run: `python test_evaluate.py FOLDER RANK`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from support.ranks import run_ranks
from support.running import DATASET, Project, record
from xrun.errors import ComponentError
from xrun.machine.stop import StopFlag
from xrun.recipe.schema import Train
from xrun.training.evaluate import Evaluation, check_validation
from xrun.training.objective import Objective
from xrun.training.tasks import IGNORED
from xrun.training.world import World

SIZES = (1, 2, 3)
SAMPLES, BATCH = 37, 4


class Classifier(nn.Module):
    """Normalises by running statistics and a flag, which differ on every process until they are
    broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("flags", torch.tensor([True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.linear(x))) * self.flags


class Counting(nn.Module):
    """A loss that is the samples' sum: each one counted once or the sum is wrong."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.mean(), "ones": torch.ones(())}


class Tokens(nn.Module):
    """A language model without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


def made(kind: type[nn.Module]) -> Any:
    torch.manual_seed(3)
    return kind()


def texts() -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 11, (SAMPLES, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(6) < 1 + torch.arange(SAMPLES)[:, None] % 6, ids, IGNORED)
    return [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]


def images(count: int = SAMPLES) -> TensorDataset:
    return TensorDataset(
        torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))[:count],
        torch.arange(count) % 3,
    )


class Numbers:
    """The samples 0, 1, 2, ... as a dict."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.tensor(float(index))}


def evaluation(model: nn.Module, task: str, split: Any, world: World, **fields: Any) -> Evaluation:
    train = Train(
        steps=10,
        global_batch=4,
        evaluate=fields.pop("evaluate", {}),
        num_workers=fields.pop("workers", 0),
    )
    return Evaluation(
        split,
        Objective(model, task),
        train,
        every=fields.pop("every", None),
        last=10,
        batch=BATCH,
        world=world,
        accelerator=Accelerator(cpu=True),
        replicated=world.size > 1,
        **fields,
    )


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    for size in SIZES:
        if rank >= size:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size
        )
        world = World(rank, size, dist.new_group(), dist.new_group())
        classifier = made(Classifier)
        classifier.norm.running_mean += rank  # as after local batches
        asked = StopFlag()
        if rank == size - 1:
            asked.set("notice")
        found = {
            "classes": evaluation(classifier, "classification", images(), world).run(lambda: False),
            "few": evaluation(made(Classifier), "classification", images(2), world).run(
                lambda: False
            ),
            "numbers": evaluation(Counting(), "model", Numbers(), world).run(lambda: False),
            "texts": evaluation(made(Tokens), "language_modeling", texts(), world).run(
                lambda: False
            ),
            "stopped": evaluation(made(Classifier), "classification", images(), world).run(
                asked.__bool__
            ),
        }
        (folder / f"{size}-{rank}.json").write_text(json.dumps(found))
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """What every rank of 1, 2 and 3 real processes found."""
    folder = tmp_path_factory.mktemp("evaluate")
    run_ranks(__file__, folder, max(SIZES))
    places = [(size, rank) for size in SIZES for rank in range(size)]
    return {
        (size, rank): json.loads((folder / f"{size}-{rank}.json").read_text())
        for size, rank in places
    }


@pytest.mark.parametrize("what", ["classes", "few", "numbers", "texts"])
def test_any_number_of_processes_finds_the_same_numbers(
    found: dict[tuple[int, int], Any], what: str
) -> None:
    """On 1, 2 and 3 processes every rank has exactly the metrics of one, also where most of them
    have no sample."""
    assert found[1, 0][what]
    assert all(numbers[what] == found[1, 0][what] for numbers in found.values())


def test_every_sample_counts_once(found: dict[tuple[int, int], Any]) -> None:
    """The mean over the samples 0..36 is 18, and the number of samples is not counted too high by a
    filled-up round."""
    assert all(numbers["numbers"] == {"loss": 18.0, "ones": 1.0} for numbers in found.values())


def test_a_metric_is_the_mean_over_all_samples(found: dict[tuple[int, int], Any]) -> None:
    """Loss and accuracy are those of one forward pass over the whole split, without dropout."""
    x, y = images().tensors
    logits = made(Classifier).eval()(x).detach()
    assert found[3, 0]["classes"]["loss"] == pytest.approx(
        float(nn.functional.cross_entropy(logits, y)), rel=1e-6
    )
    assert found[3, 0]["classes"]["accuracy"] == float((logits.argmax(-1) == y).sum()) / SAMPLES


def test_a_text_is_weighed_by_its_tokens(found: dict[tuple[int, int], Any]) -> None:
    """A language model's loss is the mean over predicted tokens of all texts, not over texts or
    batches."""
    ids = torch.stack([text["input_ids"] for text in texts()])
    labels = torch.stack([text["labels"] for text in texts()])
    logits = made(Tokens)(ids).detach()[:, :-1].flatten(0, 1)
    loss = float(nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED))
    assert found[2, 1]["texts"]["loss"] == pytest.approx(loss, rel=1e-6)


def test_all_processes_leave_together(found: dict[tuple[int, int], Any]) -> None:
    """If one process is asked to stop during an evaluation, all of them give it up."""
    assert [numbers["stopped"] for numbers in found.values()] == [None] * len(found)


@pytest.mark.parametrize(("seconds", "most"), [(3.0, 2), (0.25, 6)])
def test_a_slow_evaluation_is_left_in_time(seconds: float, most: int) -> None:
    """However long a batch takes, not much more than a second passes after somebody has asked, or
    one batch: a machine's notice leaves half a minute."""
    slow = made(Classifier)
    now = [0.0]
    slow.register_forward_hook(lambda *_: now.append(now[-1] + seconds))
    own = evaluation(slow, "classification", images(), World(), clock=lambda: now[-1])
    assert own.run(lambda: now[-1] > 2 * seconds) is None
    assert len(now) - 1 - 3 < most, "batches after it was asked"


def test_evaluating_changes_neither_mode_nor_weights() -> None:
    """Afterwards the model is in training mode again with the buffers that it had."""
    model = made(Classifier)
    own = evaluation(model, "classification", images(), World())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own.run(lambda: False)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_workers_change_no_number() -> None:
    """Evaluation with loader workers finds the same numbers as without."""
    runs = [
        evaluation(made(Classifier), "classification", images(), World(), workers=n).run(
            lambda: False
        )
        for n in (0, 1)
    ]
    assert runs[0] == runs[1]


class Whose:
    """The process that has fetched a sample."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.tensor(float(os.getpid()), dtype=torch.float64)}


def test_workers_live_on_through_evaluations() -> None:
    """Also through one that was given up, and each begins with the first sample again."""
    own = evaluation(Counting(), "model", Whose(), World(), workers=1)
    found = [own.run(lambda: False), own.run(lambda: True), own.run(lambda: False)]
    assert found[0] == found[2] != {"loss": float(os.getpid()), "ones": 1.0}
    assert found[1] is None


class Noisy(Classifier):
    """It draws random numbers in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(3)


def test_random_numbers_of_an_evaluation_follow_from_its_batches() -> None:
    """A model that draws in evaluation finds the same numbers with and without workers, and
    whatever was drawn before."""
    runs = []
    for workers, before in ((0, 0), (0, 3), (1, 7)):
        own = evaluation(made(Noisy), "classification", images(), World(), workers=workers)
        torch.rand(before)
        runs.append(own.run(lambda: False))
    assert runs[0] == runs[1] == runs[2]


def test_it_is_due_at_its_interval_and_at_the_end() -> None:
    """Every n steps and after the last step, never before the first, and never without a split."""
    own = evaluation(Counting(), "model", Numbers(), World(), every=4)
    assert [step for step in range(11) if own.due(step)] == [4, 8, 10]
    assert [
        step for step in range(11) if evaluation(Counting(), "model", Numbers(), World()).due(step)
    ] == [10]
    assert not evaluation(Counting(), "model", None, World(), every=4).due(4)


@pytest.mark.parametrize(
    ("metric", "old", "equal", "new"), [("loss", 2.0, 2.0, 1.0), ("accuracy", 0.5, 0.5, 0.6)]
)
def test_better_knows_the_metric_s_direction(
    metric: str, old: float, equal: float, new: float
) -> None:
    """Less loss and more accuracy are better, an equal value is not, and the first value always
    is."""
    own = evaluation(Counting(), "model", Numbers(), World(), evaluate={"metric": metric})
    best = {"step": 1, "value": old}
    assert [own.better({metric: value}, best) for value in (new, equal, 2 * old - new)] == [
        True,
        False,
        False,
    ]
    assert own.better({metric: old}, None)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("odd", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_never_the_best(mode: str, odd: str) -> None:
    """Neither first nor later, and any number beats what an older xrun took for the best."""
    evaluate = {"metric": "f1", "mode": mode}
    own = evaluation(Counting(), "model", Numbers(), World(), evaluate=evaluate)
    value = float(odd)
    assert not own.better({"f1": value}, None)
    assert not own.better({"f1": value}, {"step": 1, "value": 0.5})
    assert own.better({"f1": 0.5}, {"step": 1, "value": value})
    assert own.better({"f1": 0.5}, {"step": 1, "value": {"nan": "NaN"}.get(odd, value)})


def test_a_metric_that_is_not_there_is_refused() -> None:
    """The recipe's metric has to be one of the task's, and the error lists these."""
    own = evaluation(
        Counting(), "model", Numbers(), World(), evaluate={"metric": "f1", "mode": "max"}
    )
    with pytest.raises(ComponentError, match=r"no metric 'f1'.*loss, ones\. Or name it in"):
        own.better({"loss": 1.0, "ones": 1.0}, None)


OWN_LOSS = """\
from torch import nn


class Own(nn.Linear):
    def forward(self, x, y):
        logits = super().forward(x)
        hits = (logits.argmax(1) == y).float().mean().item()
        return {"loss": nn.functional.cross_entropy(logits, y), "hits": hits}


def build():
    return Own(4, 3)
"""


class Telling(nn.Module):
    """A model with a loss of its own and what people return beside it."""

    def forward(self, x: Any) -> dict[str, Any]:
        loss = x.float().mean().bfloat16()
        others = {"f1": "0.5", "rows": x}
        return {"loss": loss, "third": 1 / 3, "count_of": 7, "numpys": np.float32(0.1), **others}


def test_numbers_of_python_are_metrics() -> None:
    """A float, an int or a numpy number is one as a tensor is, in fp32 whatever the loss is; what
    is no number is said with its name and type."""
    own = evaluation(
        Telling(), "model", Numbers(), World(), evaluate={"metric": "f1", "mode": "max"}
    )
    found = own.run(lambda: False)
    assert found is not None
    assert found["third"] == pytest.approx(1 / 3, rel=1e-6)
    assert found["count_of"] == 7
    assert found["numpys"] == pytest.approx(0.1, rel=1e-6)
    with pytest.raises(ComponentError, match=r"returns something of the type str by that name"):
        own.better(found, None)
    assert own.objective.no_numbers["rows"].startswith("a tensor of the shape (")


def test_what_was_trained_is_kept_where_the_metric_is_missing(tmp_path: Path) -> None:
    """The first evaluation finds that the recipe's metric is none; its step is committed before the
    run ends, and the next attempt begins with that evaluation."""
    project = Project(tmp_path)
    given = (
        "train.evaluate={every: 10 steps, metric: f1, mode: max}",
        "checkpoint.every=1000 steps",
    )
    project.write("models/line.py", OWN_LOSS)
    done = project.attempt("task=model", *given)
    assert done.code == 2, done.err
    assert "there is no metric 'f1'" in done.err
    assert project.run.record().newest_step == 10
    right = given[0].replace("f1", "hits")
    assert project.attempt("task=model", right, given[1]).code == 0
    evaluated = [point["step"] for point in project.run.points() if "val/hits" in point]
    assert evaluated == [10, 20]


def test_a_streamed_validation_split_is_refused() -> None:
    """Without a length no sample can be counted once, so a stream is refused by its file."""
    with pytest.raises(ComponentError, match=r"datasets/d\.py: the split 'val' is streamed"):
        check_validation(iter([1]), "d")
    check_validation(None, "d")
    check_validation([1], "d")


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))


def test_a_split_without_a_label_that_counts_is_said(tmp_path: Path) -> None:
    """Instead of a metric that is not there."""
    project = Project(tmp_path)
    ignored = DATASET.replace(
        "return self.x[i] + 0.01 * torch.randn(4), int(self.y[i])",
        "return self.x[i], -100 if self.name == 'val' else int(self.y[i])",
    )
    project.write("datasets/points.py", ignored)
    done = project.attempt("train.evaluate.every=5 steps")
    assert done.code == 0, done.err
    points = list(project.run.points())
    assert [name for point in points for name in point if name.startswith("val/")] == []
    assert len([point for point in points if "train/loss" in point]) == 20
    assert record(project.run)["checkpoints"][-1]["numbers"]["best"] is None
    log = next((project.run.path / "logs").glob("*/rank0.log")).read_text()
    assert log.count("every label of the split 'val' is -100") == 4
