"""Evaluations of data that say what is predicted, by processes that are warm: every task, at every
batch size, on every number of processes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from xrun.recipe.metrics import FURTHER
from xrun.recipe.schema import Train
from xrun.training.evaluate import Evaluation
from xrun.training.objective import Objective
from xrun.training.tasks import IGNORED
from xrun.training.world import World

PROCESSES, BATCHES = (1, 2, 4), (1, 7, 64)
SAMPLES, CLASSES = 133, 6


class Given(nn.Module):
    """Returns what the dataset says, so that no batch size changes a bit of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Own(nn.Module):
    """A model with a loss of its own, and predictions where it is evaluated."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(x, y)
        return {"loss": loss} if self.training else {"loss": loss, "preds": x, "target": y}


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, ignored: bool = False) -> Tensor:
    """Classes of which the last one is rare and the one before never there."""
    drawn = torch.randint(0, CLASSES - 2, shape, generator=torch.Generator().manual_seed(5))
    drawn.view(-1)[::41] = CLASSES - 1
    if ignored:
        drawn.view(-1)[3::7] = IGNORED
    return drawn


def labels() -> Tensor:
    drawn = (some(SAMPLES, 4, seed=2) > 0.4).float()
    drawn[::9, 1], drawn[4::11, 2] = float("nan"), IGNORED
    return drawn


def numbers() -> Tensor:
    drawn = some(SAMPLES, 3, seed=3).double() * 7 + 2
    drawn[::10, 0] = float("nan")
    return drawn


def splits() -> dict[str, tuple[str, nn.Module, tuple[Tensor, Tensor]]]:
    """Of each case: the task, the model, and what the dataset holds."""
    given = Given()
    dense = 2 * nn.functional.one_hot(classes(SAMPLES, 5).clamp(0), CLASSES)
    return {
        "classification": (
            "classification",
            given,
            (
                some(SAMPLES, CLASSES) + nn.functional.one_hot(classes(SAMPLES), CLASSES),
                classes(SAMPLES, ignored=True),
            ),
        ),
        "token_classification": (
            "token_classification",
            given,
            (some(SAMPLES, 5, CLASSES) + dense, classes(SAMPLES, 5, ignored=True)),
        ),
        "segmentation": (
            "segmentation",
            given,
            (some(SAMPLES, CLASSES, 4, 3), classes(SAMPLES, 4, 3, ignored=True)),
        ),
        "multi_label": ("multi_label", given, (some(SAMPLES, 4) * 0.6 + 0.3, labels())),
        "regression": ("regression", given, (some(SAMPLES, 3, seed=3) * 6 + 2, numbers())),
        "model": ("model", Own(), (some(SAMPLES, CLASSES), classes(SAMPLES))),
    }


def found_by(case: str, world: World, batch: int) -> dict[str, float]:
    task, model, tensors = splits()[case]
    names = [name for name in FURTHER[task] if name not in ("mae", "mse", "rmse", "r2", "miou")]
    names = list(FURTHER[task]) if task in ("regression", "segmentation") else names
    train = Train(steps=1, global_batch=4, evaluate={"metrics": [*names, *tops(task)]})
    accelerator = Accelerator(cpu=True)
    own = Evaluation(
        TensorDataset(*tensors), Objective(model, task), train, None, 1, batch, world, accelerator
    )
    found = own.run(lambda: False)
    assert found is not None
    return found


def tops(task: str) -> list[str]:
    return ["top2"] if "top5" in FURTHER[task] else []


def work_together(folder: str) -> None:
    """A process for each rank, with what takes seconds to import in it already."""
    import torchmetrics.classification  # noqa: F401

    multiprocessing.set_start_method("fork", force=True)
    ranks = [
        multiprocessing.Process(target=work, args=(folder, rank), daemon=True) for rank in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * len(ranks)


def work(folder: str, rank: int) -> None:
    """A process that belongs to worlds of several sizes, one after the other."""
    torch.set_num_threads(1)
    for size in PROCESSES:
        if rank >= size:
            continue
        meet = f"file://{folder}/meet-{size}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
        world = World(rank, size, dist.new_group(), dist.new_group())
        found = {
            f"{case}/{batch}": found_by(case, world, batch)
            for case in splits()
            for batch in BATCHES
        }
        Path(folder, f"{size}-{rank}.json").write_text(json.dumps(found))
        dist.barrier()
        dist.destroy_process_group()
