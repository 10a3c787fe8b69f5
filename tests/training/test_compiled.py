"""`train.compile`: what is compiled, how often, and into which graphs.

A backend that keeps graphs, and computes them as they are, stands where torch's own needs a
compiler.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from support.running import Project, curve, record, weights
from xrun.data.batch import Batch
from xrun.errors import TrainError
from xrun.training.compiled import GRAPHS, Compiled
from xrun.training.objective import Objective

COUNTING = """
    def collate(self, items):
        from torch._dynamo.utils import counters
        graphs = dict(counters["stats"]).get("unique_graphs", 0)
        with (PROJECT / f"graphs-{self.name}-{os.getpid()}").open("a") as file:
            file.write(f"{len(items)} {graphs}\\n")
"""


class Graphs:
    """A backend that keeps what it was given: each graph's code and the shapes that go in."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __call__(self, module: Any, inputs: list[Any]) -> Any:
        shapes = tuple(tuple(each.shape) if isinstance(each, Tensor) else each for each in inputs)
        self.seen.append((module.code, shapes))
        return module.forward


class Blocks(nn.Module):
    """Calls what it keeps in a list; `sizes` are those of the batches that were not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.sizes.append(len(x))
        for block in self.blocks:
            x = block(x).relu()
        return x


class Counting(nn.Module):
    """Counts its calls in Python and computes with the number."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.calls = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.line(x) * self.calls


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.GELU()), nn.Linear(8, 3))


def batch(samples: int) -> Batch:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 4, generator=generator), torch.zeros(samples, dtype=torch.int64)


def objective_of(model: nn.Module, backend: Any) -> Objective:
    torch._dynamo.reset()
    objective = Objective(model, "classification")
    objective.compiled = Compiled(backend)
    return objective


def compute(objective: Objective, samples: int, whole: bool = True, train: bool = True) -> Tensor:
    objective.train(train)
    objective.whole = whole
    with torch.set_grad_enabled(train):
        return objective(batch(samples))["loss"]


@pytest.mark.parametrize(
    "build", [nested, Blocks, lambda: nn.Linear(4, 3)], ids=["sequential", "list", "one layer"]
)
def test_every_model_is_compiled_as_one_graph(build: Any) -> None:
    """Also one that is torch's own module, for which `Module.compile` does nothing; and it computes
    what it computes without."""
    graphs, model = Graphs(), build()
    loss = compute(objective_of(model, graphs), 8)
    assert len(graphs.seen) == 1
    assert loss.item() == compute(Objective(model, "classification"), 8).item()


def test_a_short_batch_is_neither_compiled_nor_padded() -> None:
    """It runs as it is: no graph, and the model sees so many samples."""
    graphs, model = Graphs(), Blocks()
    objective = objective_of(model, graphs)
    for samples, whole in ((8, True), (5, False), (8, True), (9, False)):
        compute(objective, samples, whole)
    assert len(graphs.seen) == 1
    assert model.sizes == [5, 9]


def test_a_graph_follows_from_its_batch_alone() -> None:
    """Training, evaluation, another length: in whatever order they were compiled, each has the
    graph that it has when it comes first, with every size in it a number."""
    calls = [(8, True), (5, False), (6, True), (8, False), (5, True)]
    alone = []
    for samples, train in calls:
        graphs = Graphs()
        compute(objective_of(nested(), graphs), samples, train=train)
        alone += graphs.seen
    for order in (calls, calls[::-1], calls[2:] + calls[:2]):
        graphs = Graphs()
        objective = objective_of(nested(), graphs)
        for samples, train in [*order, *order]:
            compute(objective, samples, train=train)
        assert sorted(graphs.seen) == sorted(alone)
    assert not any(
        isinstance(size, torch.SymInt) for _, shapes in alone for size in sum(shapes, ())
    )


def test_a_model_that_would_be_compiled_for_ever_is_refused() -> None:
    """torch would stop compiling somewhere, an attempt that resumes somewhere else."""
    graphs = Graphs()
    objective = objective_of(Counting(), graphs)
    for _ in range(GRAPHS):
        compute(objective, 8)
    with pytest.raises(TrainError, match=r"train\.compile: Counting was compiled 16 times"):
        compute(objective, 8)
    assert len(graphs.seen) == GRAPHS == 16


@pytest.mark.e2e  # torch's own backend calls a C++ compiler
def test_a_resumed_attempt_has_the_graphs_of_an_undisturbed_one(tmp_path: Any) -> None:
    """With a short last batch in each epoch and in each evaluation: two graphs in the whole run,
    two in the attempt that resumes behind all that, and the same bits."""
    overrides = ("train.compile=true", "train.steps=24", "train.evaluate.every=4 steps")
    overrides += ("dataset.args={n: 27}", "train.evaluate.batch=9")
    one, other = Project(tmp_path / "one"), Project(tmp_path / "other")
    for project in (one, other):
        path = project.root / "datasets" / "points.py"
        path.write_text(path.read_text().replace("\n    def collate(self, items):\n", COUNTING))
    assert one.attempt(*overrides).code == 0
    other.trap("SIGKILL", call=46, committed=10, paced=True)
    assert other.attempt(*overrides).code == 75
    done = other.attempt(*overrides)
    assert done.code == 0, done.err
    assert record(other.run)["attempts"][-1]["resumed_step"] >= 10
    assert (curve(other.run), weights(other.run)) == (curve(one.run), weights(one.run))
    for project in (one, other):
        for path in project.root.glob("graphs-*"):
            lines = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
            assert max(graphs for _, graphs in lines) == 2
            assert {size for size, _ in lines} >= ({2, 3} if "train" in path.name else {9, 5})
