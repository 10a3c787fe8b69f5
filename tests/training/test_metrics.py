"""Metrics of a whole split against scikit-learn, at three batch sizes and on 1, 2 and 4 real
processes: the same numbers to the last bit. Covers `xrun.recipe.metrics`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from support.measuring import BATCHES, CLASSES, PROCESSES, some, splits, tops, work_together
from support.running import forkserver
from xrun.errors import ComponentError
from xrun.recipe.metrics import FURTHER, METRICS, better, is_measured, over_the_split
from xrun.training.metrics import Measured
from xrun.training.tasks import IGNORED
from xrun.training.world import World


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """What every process of every world found of each case, at every batch size."""
    folder = tmp_path_factory.mktemp("metrics")
    all_ranks = forkserver().Process(target=work_together, args=(str(folder),))
    all_ranks.start()
    all_ranks.join(240)
    assert all_ranks.exitcode == 0
    read = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert len(read) == sum(PROCESSES)
    return {
        case: [each[f"{case}/{batch}"] for each in read for batch in BATCHES] for case in splits()
    }


def of_classes(logits: Tensor, wanted: Tensor) -> dict[str, float]:
    """What scikit-learn says of all elements that count."""
    rows = logits.double().numpy()
    truth = wanted.numpy()
    said = rows.argmax(1)
    there = sorted(set(truth))
    scores = torch.softmax(logits.double(), 1).numpy()
    hot = np.eye(CLASSES)[truth]
    return {
        "accuracy": sk.accuracy_score(truth, said),
        "f1": sk.f1_score(truth, said, average="macro"),
        "f1_micro": sk.f1_score(truth, said, average="micro"),
        "f1_weighted": sk.f1_score(truth, said, average="weighted"),
        "precision": sk.precision_score(truth, said, average="macro", zero_division=0),
        "recall": sk.recall_score(truth, said, average="macro", zero_division=0),
        "miou": sk.jaccard_score(truth, said, average="macro"),
        "auroc": np.mean([sk.roc_auc_score(hot[:, c], scores[:, c]) for c in there]),
        "average_precision": np.mean(
            [sk.average_precision_score(hot[:, c], scores[:, c]) for c in there]
        ),
        "top2": sk.top_k_accuracy_score(truth, rows, k=2, labels=range(CLASSES)),
        "top5": sk.top_k_accuracy_score(truth, rows, k=5, labels=range(CLASSES)),
    }


def of_labels(logits: Tensor, wanted: Tensor) -> dict[str, float]:
    columns = []
    for score, truth in zip(logits.T, wanted.T, strict=True):
        counts = (truth == 0) | (truth == 1)
        columns.append((score[counts].double().numpy(), truth[counts].numpy()))
    said = np.concatenate([score > 0 for score, _ in columns])
    truth = np.concatenate([truth for _, truth in columns])
    weights = [truth.sum() for _, truth in columns]
    f1 = [sk.f1_score(truth, score > 0) for score, truth in columns]
    return {
        "accuracy": float(np.mean(said == truth)),
        "f1": np.mean(f1),
        "f1_micro": sk.f1_score(truth, said),
        "f1_weighted": np.average(f1, weights=weights),
        "precision": np.mean([sk.precision_score(truth, score > 0) for score, truth in columns]),
        "recall": np.mean([sk.recall_score(truth, score > 0) for score, truth in columns]),
        "auroc": np.mean([sk.roc_auc_score(truth, score) for score, truth in columns]),
        "average_precision": np.mean(
            [sk.average_precision_score(truth, score) for score, truth in columns]
        ),
    }


def of_numbers(said: Tensor, wanted: Tensor) -> dict[str, float]:
    there = ~torch.isnan(wanted)
    flat = said[there].double().numpy(), wanted[there].numpy()
    r2 = [
        sk.r2_score(y[t].numpy(), p[t].double().numpy())
        for p, y, t in zip(said.T, wanted.T, there.T, strict=True)
    ]
    return {
        "mae": sk.mean_absolute_error(*flat),
        "mse": sk.mean_squared_error(*flat),
        "rmse": sk.root_mean_squared_error(*flat),
        "r2": np.mean(r2),
    }


def by_scikit_learn(case: str) -> dict[str, float]:
    task, _, (said, wanted) = splits()[case]
    if task == "multi_label":
        return of_labels(said, wanted)
    if task == "regression":
        return of_numbers(said, wanted)
    last = said.flatten(0, -2) if task == "token_classification" else said.movedim(1, -1)
    counts = wanted.flatten() != IGNORED
    return of_classes(last.reshape(-1, CLASSES)[counts], wanted.flatten()[counts])


@pytest.mark.parametrize("case", list(splits()))
def test_metrics_are_scikit_learn_s_of_the_whole_split(
    found: dict[str, list[dict[str, float]]], case: str
) -> None:
    """At batch sizes 1, 7 and 64, on 1, 2 and 4 processes, every process has one and the same
    number, and it is the one of the whole split; elements that do not count are left out."""
    wanted, task = by_scikit_learn(case), splits()[case][0]
    named = {*FURTHER[task], *tops(task), *METRICS.get(task, ())} - {"loss"}
    named -= {"mae", "mse", "rmse", "r2", "miou"} if task == "model" else set()
    for name in sorted(named):
        values = [each[name] for each in found[case]]
        assert len(values) == sum(PROCESSES) * len(BATCHES)
        assert len(set(values)) == 1, name
        assert values[0] == pytest.approx(wanted[name], rel=1e-6), name


def test_the_one_that_decides_is_measured_without_being_named_again() -> None:
    """What the task has by itself is not computed twice, and what a model returns itself is its
    own."""
    assert over_the_split("classification", "f1", ("auroc", "accuracy")) == ("auroc", "f1")
    assert over_the_split("classification", "loss", ()) == ()
    assert over_the_split("model", "f1", ("mae",)) == ("mae",)


def test_every_name_tells_which_is_better() -> None:
    """Less of an error, more of everything else; and `top5` stands for every number of classes."""
    less = {"mae", "mse", "rmse"}
    names = {name for names in FURTHER.values() for name in names}
    assert {name for name in names if better(name) == "min"} == less
    assert {name for name in names if better(name) == "max"} == names - less
    assert is_measured("classification", "top3")
    assert not is_measured("classification", "top0")
    assert not is_measured("segmentation", "top3")


@pytest.mark.parametrize(
    ("name", "predictions", "targets"),
    [
        ("mae", torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)),
        ("f1", torch.zeros(4, 3), torch.zeros(4, 3)),
        ("miou", torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64)),
        ("f1", torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_predictions_that_a_metric_is_not_of_are_refused(
    name: str, predictions: Tensor, targets: Tensor
) -> None:
    """With the metric and the shapes."""
    with pytest.raises(ComponentError, match=rf"{name} is not measured of .*\(4"):
        Measured([name], "models/x.py").add(0, True, predictions, targets)


def test_more_classes_than_there_are_is_refused() -> None:
    """`top5` of three classes would be 1 whatever the model says."""
    with pytest.raises(ComponentError, match="top5 of 3 classes"):
        Measured(["top5"]).add(0, True, torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))


def test_what_has_no_value_is_not_a_number() -> None:
    """`auroc` where all samples are of one class, and `r2` of one sample."""
    ranked, spread = Measured(["auroc"]), Measured(["r2"])
    ranked.add(0, True, some(5, 3), torch.ones(5, dtype=torch.int64))
    spread.add(0, True, some(1, 1), some(1, 1))
    assert np.isnan(ranked.values(World())["auroc"])
    assert np.isnan(spread.values(World())["r2"])
