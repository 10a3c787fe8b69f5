"""Gradients of real processes: one and the same as one process's, and in `exact` to the last bit.

The file is also the program that the processes run: `python test_reduction.py FOLDER RANK`.

Covers `xrun.training.running_statistics`.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.ranks import run_ranks
from xrun.data.loader import Piece
from xrun.data.sampler import MicroBatch, Sampler
from xrun.errors import TrainError
from xrun.training.finite import FiniteGradients, read
from xrun.training.objective import Objective
from xrun.training.reduction import ExactReduction, FastReduction, Reduction, check_powers_of_two
from xrun.training.world import World

SIZES = (1, 2, 4)
SAMPLES, GLOBAL, MICRO = 35, 16, 2
STEPS = 6


class Branches(nn.Module):
    """A wide model whose gradients come in another order than its parameters were registered: more
    than 5 MB of them."""

    def __init__(self, width: int, norms: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(width, width) for _ in range(5)])
        self.unused = nn.Linear(2, 2)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(width), nn.BatchNorm1d(width, momentum=None)] if norms else []
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.parts[2], self.parts[4], self.parts[0], self.parts[3], self.parts[1]):
            x = x + part(x).tanh()
        for norm in [*self.norms, *self.norms[:1]]:
            x = checkpoint(norm, x, use_reentrant=False)  # called again in backward
        return self.head(x) + 0 * self.unused.weight.sum() + 0 * self.unused.bias.sum()


def objective(width: int, norms: bool = False) -> Objective:
    torch.manual_seed(0)
    return Objective(Branches(width, norms), "classification")


def data(step: int, rank: int, world: int, width: int) -> list[Piece]:
    """Two full batches and a short one with 3 samples, over and over."""
    x = torch.randn(SAMPLES, width, generator=torch.Generator().manual_seed(1))
    y = torch.arange(SAMPLES) % 3
    return [
        (p, (x[p.indices], y[p.indices]))
        for p in Sampler(SAMPLES, GLOBAL, MICRO, 0).step(step, rank, world)
    ]


def train(
    reduction: Reduction,
    model: Objective,
    world: World,
    steps: range,
    width: int,
    state: Any = None,
) -> Any:
    """As the loop does it; returns each step's gradients, the loss, and the state at each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if state is not None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    gradients, losses, states = [], [], []
    reduction.begin(optimizer)
    for step in steps:
        states.append(copied((model.state_dict(), optimizer.state_dict())))
        pieces = data(step, world.rank, world.size, width)
        found = []
        for piece, batch in pieces:
            with reduction.micro_batch(piece):
                loss = reduction.model(batch)["loss"] * piece.weight
                (loss * (reduction.scale / piece.total)).backward()
            found.append(loss.detach())
        reduction.finish(pieces)
        rows = world.everybody([float(loss) for loss in found])
        losses.append(reduction.loss(rows))
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        "gradients": gradients,
        "losses": losses,
        "states": states,
        "end": copied(model.state_dict()),
    }


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return type(value)(copied(part) for part in value) if isinstance(value, list | tuple) else value


class WithoutBegin(FastReduction):
    """What would be without the first backward pass over zeros."""

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing."""


def fast(
    world: World, kind: type[FastReduction], width: int, steps: range, state: Any = None
) -> Any:
    model = objective(width)
    replicas = (
        nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        if world.size > 1
        else model
    )
    return train(kind(replicas, world), model, world, steps, width, state)


def exact(world: World, norms: bool = False) -> Any:
    model = objective(16, norms)
    return train(
        ExactReduction(model, world, GLOBAL, GLOBAL // MICRO), model, world, range(STEPS), 16
    )


class Routed(nn.Module):
    """Experts of which a micro-batch uses one or none, by its samples, and one that nobody uses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])
        self.never = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = int(x[0, 0].abs() * 1000) % 6
        if chosen < len(self.experts):
            x = x + self.experts[chosen](x).tanh()
        return self.head(x)


def routed(world: World, kind: str, parts: int = 1) -> Any:
    """As the loop does it, with AdamW; which parameters had a gradient in each step, and the end.

    The whole batch is one short step in three, where some processes only fill up."""
    torch.manual_seed(0)
    model = Objective(Routed(8), "classification")
    replicas = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    reduction: Reduction = (
        ExactReduction(model, world, GLOBAL, GLOBAL // MICRO)
        if kind == "exact"
        else FastReduction(replicas if world.size > 1 else model, world)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    reduction.begin(optimizer)
    used = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        pieces = data(step, world.rank, world.size, 8)
        for piece, (x, y) in pieces:
            factor = reduction.scale * piece.weight / piece.total
            with reduction.micro_batch(piece):
                for number, (a, b) in enumerate(
                    zip(x.chunk(parts), y.chunk(parts), strict=True), 1
                ):
                    with reduction.part(last=number == parts):
                        (reduction.model((a, b))["loss"] * factor).backward()
        reduction.finish(pieces)
        if world.all_reduce_sum([len(reduction.unused)])[0]:
            reduction.drop_unused()
        used.append({name for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return {"used": used, "end": copied(model.state_dict())}


def plain() -> Any:
    """What a plain torch loop makes of it."""
    torch.manual_seed(0)
    model = Routed(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    used = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for piece, (x, y) in data(step, 0, 1, 8):
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
            (loss * piece.weight / piece.total).backward()
        used.append({f"model.{n}" for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return {"used": used, "end": {f"model.{n}": t for n, t in model.state_dict().items()}}


def gated(world: World) -> Any:
    """Weights that started at 1 after a step, and what each process has had of it: the last one's
    loss is no number. The optimizer looks at the verdict, as on a device."""
    last = world.rank == world.size - 1
    weights = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weights], lr=0.1, fused=True)
    finite = FiniteGradients([weights])
    optimizer.found_inf = finite.verdict  # type: ignore[attr-defined]  # where torch's fused kernels look for it
    weights.grad = torch.ones(4)
    every = finite.agreed([torch.tensor(math.nan if last else 2.0), torch.tensor(3.0)], world)
    optimizer.step()
    return weights.tolist(), read(every)


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    for size in SIZES:
        if rank >= size:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size
        )
        world = World(rank, size, dist.new_group(), dist.new_group())
        found = {
            "exact": exact(world),
            "norms": exact(world, norms=True),
            "fast": fast(world, FastReduction, 16, range(3)),
            "routed fast": routed(world, "fast"),
            "routed exact": routed(world, "exact"),
            "routed parts": routed(world, "fast", parts=2),
            "routed parts exact": routed(world, "exact", parts=2),
            "gated": gated(world),
        }
        if size == 4:
            for kind in (FastReduction, WithoutBegin):
                whole = fast(world, kind, 600, range(3))
                resumed = fast(world, kind, 600, range(1, 3), whole["states"][1])
                found[kind.__name__] = same(whole["end"], resumed["end"])
        if rank == 0:
            torch.save(found, folder / f"{size}.pt")
        dist.barrier()
        dist.destroy_process_group()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What 1, 2 and 4 real processes computed."""
    folder = tmp_path_factory.mktemp("reduction")
    run_ranks(__file__, folder, max(SIZES))
    return {size: torch.load(folder / f"{size}.pt") for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_what_one_process_may_not_step_on_nobody_does(found: dict[int, Any], size: int) -> None:
    """The verdict is the worst of all, and everybody knows everybody's losses."""
    weights, told = found[size]["gated"]
    assert weights == [1.0] * 4
    rows = [told[start : start + 3] for start in range(0, 3 * size, 3)]
    assert rows[:-1] == [[2.0, 3.0, 0.0]] * (size - 1)
    assert math.isnan(rows[-1][0])
    assert rows[-1][1:] == [3.0, 1.0]


@pytest.mark.parametrize("size", [2, 4])
def test_processes_have_the_gradient_of_one(found: dict[int, Any], size: int) -> None:
    """With accumulation, and where a process owns nothing of a short batch, the summed gradient is
    the single process's."""
    for one, many in zip(
        found[1]["fast"]["gradients"], found[size]["fast"]["gradients"], strict=True
    ):
        assert one.keys() == many.keys()
        assert all(torch.allclose(one[name], many[name], rtol=1e-4, atol=1e-6) for name in one)
    assert found[size]["fast"]["losses"] == pytest.approx(found[1]["fast"]["losses"], rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["fast", "exact"])
def test_a_parameter_that_is_not_used_is_left_alone(
    found: dict[int, Any], size: int, kind: str
) -> None:
    """As in a plain torch loop, on any number of processes: by steps and by processes, decay and
    moments too; what was never used is what it was."""
    known, own = plain(), found[size][f"routed {kind}"]
    assert own["used"] == known["used"]
    assert len({frozenset(used) for used in known["used"]}) > 1
    for name, tensor in known["end"].items():
        assert torch.allclose(own["end"][name], tensor, rtol=1e-3, atol=1e-5), name
    torch.manual_seed(0)
    never = Routed(8).never.weight
    assert torch.equal(own["end"]["model.never.weight"], never)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["parts", "parts exact"])
def test_parts_use_the_same_parameters_on_any_number_of_processes(
    found: dict[int, Any], size: int, kind: str
) -> None:
    """Where micro-batches are computed in parts, each of which may use others."""
    one, many = found[1][f"routed {kind}"], found[size][f"routed {kind}"]
    assert one["used"] == many["used"]
    for name, tensor in one["end"].items():
        assert torch.allclose(many["end"][name], tensor, rtol=1e-3, atol=1e-5), name


def test_the_gradient_is_that_of_the_whole_batch(found: dict[int, Any]) -> None:
    """Accumulated over micro-batches, the gradient is the one of the mean loss over the step's
    samples, short batch or not."""
    for step in (0, 2):
        model: Any = objective(16)
        model.load_state_dict(found[1]["fast"]["states"][step][0])
        pieces = data(step, 0, 1, 16)
        x, y = (torch.cat([batch[part] for _, batch in pieces]) for part in (0, 1))
        (model((x, y))["loss"] / len(x)).backward()
        assert len(x) == pieces[0][0].total
        gradients = found[1]["fast"]["gradients"][step]
        assert all(
            torch.allclose(gradients[name], p.grad, rtol=1e-4, atol=1e-6)
            for name, p in model.named_parameters()
        )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["exact", "norms"])
def test_exact_is_the_same_bits_on_any_number_of_processes(
    found: dict[int, Any], size: int, kind: str
) -> None:
    """Gradients, losses, weights and running statistics of 1, 2 and 4 processes are bitwise equal,
    in short batches too."""
    one, many = found[1][kind], found[size][kind]
    assert many["losses"] == one["losses"]
    assert all(same(a, b) for a, b in zip(one["gradients"], many["gradients"], strict=True))
    assert same(one["end"], many["end"])


def test_exact_is_the_right_gradient_too(found: dict[int, Any]) -> None:
    """The tree's sum is the library's but for rounding."""
    for one, other in zip(
        found[1]["fast"]["gradients"], found[4]["exact"]["gradients"], strict=False
    ):
        assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


def test_a_resumed_run_sums_in_the_same_order(found: dict[int, Any]) -> None:
    """On 4 processes with more than 5 MB of gradients an undisturbed run and a resumed one end with
    the same bits."""
    assert 4 * sum(p.numel() for p in Branches(600).parameters()) > 5 << 20
    assert found[4]["FastReduction"]


def test_without_the_first_pass_a_resumed_run_would_differ(found: dict[int, Any]) -> None:
    """The same comparison fails when DDP's buckets are laid out by the first real step: the promise
    above is not empty."""
    assert not found[4]["WithoutBegin"]


class Assigned(nn.Module):
    """Replaces its buffer in forward instead of changing it."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.linear(x)


class Counted(Assigned):
    """Changes its buffer in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


@pytest.mark.parametrize(("model", "buffer"), [(Counted(), "calls"), (Assigned(), "calls")])
def test_buffers_that_change_are_refused_by_name(model: nn.Module, buffer: str) -> None:
    """What a forward pass leaves behind, in place or replaced, would depend on the number of
    processes, so `exact` refuses it."""
    reduction = ExactReduction(Objective(model, "classification"), World(), 4, 2)
    piece = Sampler(4, 4, 2, 0).step(0, 0, 1)[0]
    with (
        pytest.raises(TrainError, match=f"buffer {buffer} changes in the forward pass"),
        reduction.micro_batch(piece),
    ):
        reduction.model((torch.randn(2, 4), torch.tensor([0, 1])))["loss"].backward()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_one_process(momentum: float | None) -> None:
    """After a step they are what torch itself makes of the same micro-batches one after the other;
    evaluation changes nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 3))
    plain, objective = copy.deepcopy(model), Objective(model, "classification")
    reduction, sampler = ExactReduction(objective, World(), 8, 4), Sampler(22, 8, 2, 0)
    for step in range(3):
        pieces = [
            (piece, (torch.randn(len(piece.indices), 4), piece_labels(piece)))
            for piece in sampler.step(step, 0, 1)
        ]
        for piece, batch in pieces:
            with reduction.micro_batch(piece):
                objective(batch)["loss"].backward()
            plain(batch[0])
        reduction.finish(pieces)
        objective.eval()
        objective(pieces[0][1])
        objective.train()
    assert model[0].momentum == momentum
    for name, value in plain[0].named_buffers():
        assert torch.allclose(value, model[0].get_buffer(name), rtol=1e-5), name


def piece_labels(piece: MicroBatch) -> Tensor:
    return torch.arange(len(piece.indices)) % 3


def test_buffers_that_stay_are_no_obstacle() -> None:
    """A batch norm in evaluation mode and constant buffers are allowed."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3).eval())
    reduction = ExactReduction(Objective(model, "classification"), World(), 4, 2)
    with reduction.micro_batch(Sampler(4, 4, 2, 0).step(0, 0, 1)[0]):
        reduction.model((torch.randn(2, 4), torch.tensor([0, 1])))["loss"].backward()


@pytest.mark.parametrize(
    ("processes", "slots", "what"), [(3, 8, "3 processes"), (2, 6, "6 micro-batches")]
)
def test_only_powers_of_two_make_a_tree(processes: int, slots: int, what: str) -> None:
    """Other numbers of processes or micro-batches are refused with the number and the way out."""
    with pytest.raises(TrainError, match=rf"{what}.*not a power of two.*reduction: fast"):
        check_powers_of_two(processes, slots)


def test_few_gradients_are_alive_at_once() -> None:
    """While a process sums 16 micro-batches it never holds more than log2(16) + 1 gradients."""
    reduction = ExactReduction(Objective(nn.Linear(4, 3), "classification"), World(), 32, 16)
    most = 0
    for piece in Sampler(32, 32, 2, 0).step(0, 0, 1):
        with reduction.micro_batch(piece):
            reduction.model((torch.ones(2, 4), torch.tensor([0, 1])))["loss"].backward()
        most = max(most, len(reduction._subtrees))
    assert most <= 4


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
