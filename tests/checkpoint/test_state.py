"""TrainState: everything comes back bit by bit, into a process that never trained a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xrun.checkpoint.state import TrainState, local, rows
from xrun.checkpoint.tensor_file import TensorReader, bytes_of, header
from xrun.errors import CheckpointError, ComponentError, TrainError
from xrun.recipe.schema import Train
from xrun.training.average import Average
from xrun.training.objective import Objective
from xrun.training.optimizer import build_optimizer
from xrun.training.sharding import checkpoint_activations


class Model(nn.Module):
    """Blocks with running statistics, a tied head, a frozen layer, one that is never used, and a
    counter."""

    seen: Tensor

    def __init__(self, width: int = 6, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)) for _ in range(blocks)]
        )
        self.head = nn.Linear(width, 9, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.unused = nn.Linear(width, width)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        y = self.embed(x)
        for block in self.blocks:
            y = block(y)
        return self.head(self.frozen(y))


def make(
    optimizer: dict[str, Any] | None = None,
    seed: int = 0,
    ema: bool = False,
    wrap: bool = False,
    model: nn.Module | None = None,
) -> TrainState:
    torch.manual_seed(seed)
    objective = Objective(model or Model(), "classification")
    if wrap:
        checkpoint_activations(objective.model)
    average = Average(objective.model, 0.9) if ema else None
    options: Any = optimizer or {"weight_decay": 0.1}
    train = Train(steps=10, global_batch=4, optimizer=options)
    return TrainState(objective.model, build_optimizer(train, objective), average, micro_batch=4)


def inside(state: TrainState) -> Any:
    return state.model


def step(state: TrainState, number: int) -> None:
    x = torch.randint(0, 9, (8,), generator=torch.Generator().manual_seed(number))
    Objective(state.model, "classification")((x, x))["loss"].backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        average: Any = state.ema
        average.update()
    state.step += 1


def trained(**kind: Any) -> TrainState:
    state = make(**kind)
    for number in range(3):
        step(state, number)
    return state


def save(state: TrainState, path: Path) -> Path:
    tensors = {name: tensor.clone().contiguous() for name, tensor in state.tensors().items()}
    path.write_bytes(header(tensors, {}) + b"".join(map(bytes, map(bytes_of, tensors.values()))))
    return path


def load(state: TrainState, path: Path, made: Any = None) -> TrainState:
    reader = TensorReader([path])
    state.take_buffers(made or {}, reader.shapes())
    state.load_tensors(
        reader.names(), lambda name, tensor: reader.fill(name, local(tensor), rows(tensor))
    )
    return state


def same(left: TrainState, right: TrainState) -> bool:
    a, b = left.tensors(), right.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


OPTIMIZERS = [
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "adam", "args": {"amsgrad": True}},
    {"name": "sgd", "lr": 0.01},
    {"name": "sgd", "lr": 0.01, "args": {"momentum": 0.9, "nesterov": True}},
    {"name": "adafactor", "lr": 0.01},
    {"name": "radam"},
    {"name": "nadam"},
    {"name": "adagrad"},
    {"name": "rmsprop", "args": {"momentum": 0.9, "centered": True}},
    {"name": "asgd"},
    {"name": "rprop"},
    {"name": "adadelta"},
    {"name": "adamax"},
]


@pytest.mark.parametrize(
    "optimizer", OPTIMIZERS, ids=lambda value: "-".join([value["name"], *value.get("args", {})])
)
def test_any_optimizer_goes_on_bit_by_bit(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    """State of every shape that torch's optimizers keep is restored, and the steps after it are the
    same bits."""
    first = trained(optimizer=optimizer)
    second = load(make(optimizer, seed=1), save(first, tmp_path / "t"))
    assert same(first, second)
    for state in (first, second):
        step(state, 10)
        step(state, 11)
    assert same(first, second)


@pytest.mark.parametrize(
    ("optimizer", "small"), [({"name": "adamw"}, True), ({"name": "adafactor", "lr": 0.01}, False)]
)
def test_room_for_the_state_is_made_without_a_step(
    tmp_path: Path, optimizer: dict[str, Any], small: bool
) -> None:
    """Where the state is tensors like the parameters, the whole model takes no step before it is
    filled."""
    path = save(trained(optimizer=optimizer), tmp_path / "t")
    state = make(optimizer, seed=1)
    shapes: list[Any] = []
    state.optimizer.register_step_pre_hook(
        lambda own, *_: shapes.extend(p.shape for g in own.param_groups for p in g["params"])
    )
    load(state, path)
    assert (set(shapes) == {(2, 3)}) == small


def test_the_average_and_the_buffers_come_back(tmp_path: Path) -> None:
    """The moving average with its counter, running statistics and integer buffers are part of the
    state."""
    first = trained(ema=True)
    second = load(make(seed=1, ema=True), save(first, tmp_path / "t"))
    assert int(inside(second).seen) == 24
    assert int(second.tensors()["ema.n_averaged"]) == 3
    for state in (first, second):
        step(state, 10)
    assert same(first, second)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    """A weight of two layers has one name in the checkpoint, and after loading it is still one."""
    first = trained()
    assert "model.embed.weight" in first.tensors()
    assert "model.head.weight" not in first.tensors()
    model = inside(load(make(seed=1), save(first, tmp_path / "t")))
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, inside(first).embed.weight)


def test_only_trained_parameters_have_optimizer_state(tmp_path: Path) -> None:
    """Frozen parameters and those that no loss reaches have none, before saving and after
    loading."""
    first = trained()
    second = load(make(seed=1), save(first, tmp_path / "t"))
    for state in (first, second):
        named = {name for name in state.tensors() if name.startswith("optimizer.")}
        assert not any("frozen" in name or "unused" in name for name in named)
        assert "optimizer.embed.weight.exp_avg" in named


def test_a_state_of_step_0_loads(tmp_path: Path) -> None:
    """Before the first step there is no optimizer state, and loading makes none."""
    second = load(make(seed=1), save(make(), tmp_path / "t"))
    assert same(make(), second)
    assert not second.optimizer.state


def test_what_a_forward_pass_changes_and_what_nothing_changes_is_known() -> None:
    """Buffers are what forward may change, frozen parameters what no step changes; both by the
    names that are saved."""
    state = make()
    assert {"model.seen", "model.blocks.0.1.running_mean"} <= state.changing()
    assert not any(name.endswith("weight") for name in state.changing())
    assert state.frozen() == {"model.frozen.weight", "model.frozen.bias"}


def test_recomputing_activations_changes_no_name(tmp_path: Path) -> None:
    """A run goes on with `activation_checkpointing` switched on or off: names, buffers and frozen
    parameters are the same."""
    plain, wrapped = trained(), trained(wrap=True)
    assert wrapped.tensors().keys() == plain.tensors().keys()
    assert wrapped.changing() & set(wrapped.tensors()) == plain.changing() & set(plain.tensors())
    assert wrapped.frozen() == plain.frozen()
    assert same(load(make(seed=1, wrap=True), save(plain, tmp_path / "t")), plain)


@pytest.mark.parametrize("other", [Model(blocks=1), Model(blocks=3)])
def test_other_tensors_are_refused_by_name(tmp_path: Path, other: nn.Module) -> None:
    """A model that has gained or lost tensors since the checkpoint is refused with their names."""
    path = save(trained(), tmp_path / "t")
    with pytest.raises(
        CheckpointError, match=r"different tensors: .*blocks\.[12].* and \d+ more\..*--again"
    ):
        load(make(model=other), path)


def test_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    """A tensor whose shape has changed is refused with both shapes."""
    path = save(trained(), tmp_path / "t")
    with pytest.raises(
        CheckpointError, match=r"model\.embed\.weight has the shape \[9, 6\].*\[9, 8\]"
    ):
        load(make(model=Model(width=8)), path)


def test_state_that_is_no_tensor_is_refused() -> None:
    """What cannot be saved is named when the state is first looked at, not lost in silence."""

    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            """Never called."""

    with pytest.raises(TrainError, match=r"model\._extra_state: .*not a tensor \(dict\)"):
        make(model=Extra(2, 2)).tensors()


def test_the_numbers_come_back_through_json() -> None:
    """Every number of the state is in its JSON form and is restored from it."""
    import json

    first, second = make(), make()
    values = {
        "micro_batch": 2,
        "step": 7,
        "samples": 30,
        "evaluated": 5,
        "best": {"step": 5, "value": 0.1},
        "waited": 2,
        "seconds": 1.5,
        "stream": {"epoch": 1},
        "exact": False,
        "steps": 40,
    }
    for name, value in values.items():
        setattr(first, name, value)
    second.load_numbers(json.loads(json.dumps(first.numbers())))
    assert {name: getattr(second, name) for name in values} == values
    assert set(values) == set(TrainState.NUMBERS)
    older = make()
    older.load_numbers({name: value for name, value in values.items() if name != "exact"})
    assert older.exact, "what an older xrun did not save"


class Growing(nn.Module):
    """Buffers that a forward pass makes, shapes, turns into another type, and drops."""

    mean: Tensor
    late: Tensor | None
    scratch: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 9)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))
        self.register_buffer("scratch", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach().float()
        self.mean = seen if self.mean.numel() == 1 else 0.5 * self.mean + 0.5 * seen
        self.late = torch.zeros(3, dtype=torch.float64) if self.late is None else self.late + 1
        if not hasattr(self.line, "calls"):
            self.line.register_buffer("calls", torch.zeros(2, dtype=torch.complex128))
        self.line.calls = self.line.calls + 1j
        count = self.get_buffer("count")
        self.count = count.double() + 0.5
        self.scratch = None
        return self.line(x.float()[:, None] - self.mean[:, None])


@pytest.mark.parametrize("ema", [False, True])
def test_buffers_that_a_forward_pass_makes_come_back(tmp_path: Path, ema: bool) -> None:
    """A fresh model gets them with shape, type and values, and goes on with the same bits."""
    import json

    first = trained(model=Growing(), ema=ema)
    numbers = json.loads(json.dumps(first.numbers()))
    assert numbers["buffers"] == {
        "late": "float64",
        "line.calls": "complex128",
        "count": "float64",
        "scratch": None,
    }
    pairs = {name: local(tensor) for name, tensor in first.tensors().items()}
    path = tmp_path / "t"
    path.write_bytes(header(pairs, {}) + b"".join(map(bytes, map(bytes_of, pairs.values()))))
    second = load(make(model=Growing(), seed=1, ema=ema), path, numbers["buffers"])
    assert same(first, second)
    assert first.numbers()["buffers"] == second.numbers()["buffers"]
    for state in (first, second):
        step(state, 10)
    assert same(first, second)
    late: Any = second.tensors()["model.late"]
    assert late.tolist() == [3.0, 3.0, 3.0]


class Odd(nn.Module):
    """Trained complex weights and a complex buffer."""

    roots: Tensor

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, dtype=kind))
        self.register_buffer("roots", torch.randn(2, 2, dtype=kind).t())

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).abs() + self.roots.abs().sum()


@pytest.mark.parametrize("kind", [torch.complex64, torch.complex128])
def test_complex_numbers_come_back(tmp_path: Path, kind: torch.dtype) -> None:
    """Weights, what the optimizer keeps of them, and buffers, bit by bit, whether or not the file's
    format has such numbers."""
    states = [make(seed=seed, model=Odd(kind)) for seed in (0, 1)]
    for number in range(2):
        x = torch.tensor([0, 1, 2])
        Objective(states[0].model, "classification")((x + number, x))["loss"].backward()
        states[0].optimizer.step()
    tensors = {name: local(t).contiguous() for name, t in states[0].tensors().items()}
    path = tmp_path / "state.safetensors"
    path.write_bytes(header(tensors, {}) + b"".join(map(bytes, map(bytes_of, tensors.values()))))
    assert not same(*states)
    load(states[1], path)
    assert same(*states)
    assert states[1].model.get_parameter("weight").dtype == kind


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.eye(3).to_sparse(), "stored as torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "on the device meta"),
        (torch.zeros(2, dtype=torch.float8_e4m3fnuz), "the type torch.float8_e4m3fnuz"),
        (torch.zeros(2, dtype=torch.complex128).conj(), "a conjugated view"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(tensor: Tensor, what: str) -> None:
    """Before anything is written, with the reason and the way out; without being saved it may be
    there."""
    for persistent in (True, False):
        model = nn.Linear(2, 2)
        model.register_buffer("odd", tensor, persistent=persistent)
        state = make(model=model)
        if persistent:
            with pytest.raises(ComponentError, match=rf"model\.odd (is|has) {what}.*persistent"):
                state.tensors()
        else:
            assert set(state.tensors()) == {"model.weight", "model.bias"}
