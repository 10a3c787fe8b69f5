"""The recipe's optimizer, its parameter groups, and the learning rate at every corner."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from xrun.errors import ComponentError, TrainError
from xrun.recipe.rules import OPTIMIZERS, WITHOUT_DECAY
from xrun.recipe.schema import Train
from xrun.training.finite import FiniteGradients
from xrun.training.objective import Objective
from xrun.training.optimizer import (
    _FUSED,
    build_optimizer,
    check_warmup,
    clip,
    gate,
    learning_rate,
    optimizer_class,
    plain_step,
    rate_jump,
    scaled_step,
    set_learning_rate,
    unfuse,
)


class RMSNorm(nn.Module):
    """A norm of somebody's own, with a 2-D weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4))


class Model(nn.Module):
    """Matrices, norms, biases, an embedding that asks not to be decayed, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.own = RMSNorm()
        self.gain = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def no_weight_decay(self) -> list[str]:
        return ["table.weight"]


def recipe(optimizer: dict[str, Any] | None = None, **train: Any) -> Train:
    return Train(**{"steps": 10, "global_batch": 4, "optimizer": optimizer or {}, **train})


def names_by_decay(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[float, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}
        for group in optimizer.param_groups
    }


def test_only_matrices_are_decayed() -> None:
    """Norms of any class, biases, scalars and what the model names are not decayed; frozen
    parameters are left out."""
    model = Model()
    groups = names_by_decay(
        build_optimizer(recipe({"weight_decay": 0.1}), Objective(model, "classification")), model
    )
    assert groups == {
        0.1: {"linear.weight"},
        0.0: {"table.weight", "linear.bias", "norm.weight", "norm.bias", "own.scale", "gain"},
    }


def test_the_order_of_parameters_is_the_model_s() -> None:
    """Each group has its parameters in the order of `named_parameters`, so that two attempts
    agree."""
    model = Model()
    order = {id(p): number for number, p in enumerate(model.parameters())}
    for group in build_optimizer(recipe(), Objective(model, "classification")).param_groups:
        numbers = [order[id(p)] for p in group["params"]]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("name", ["adamw", "AdamW", "ADAMW"])
def test_an_optimizer_goes_by_its_name_in_any_case(name: str) -> None:
    """The class of torch.optim is found however its name is written."""
    assert optimizer_class(name) is torch.optim.AdamW
    assert optimizer_class("sgd") is torch.optim.SGD


@pytest.mark.parametrize("name", ["adamx", "lr_scheduler", "optimizer", "Any"])
def test_an_unknown_optimizer_is_refused(name: str) -> None:
    """A name that is no optimizer of torch.optim is refused with those that are."""
    with pytest.raises(TrainError, match=rf"no '{name}'.*AdamW") as refused:
        optimizer_class(name)
    assert "Optimizer," not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("adamw", {"beta": 0.9}),
        ("adamw", {"betas": [1.5, 0.9]}),
        ("adamw", {"foreach": True, "fused": True}),
        ("muon", {}),
    ],
)
def test_wrong_arguments_are_one_sentence(name: str, args: dict[str, Any]) -> None:
    """What torch says of arguments that it does not take becomes a TrainError that names the
    optimizer."""
    with pytest.raises(
        TrainError, match=r"train\.optimizer: torch\.optim\.\w+ refuses its arguments"
    ):
        build_optimizer(recipe({"name": name, "args": args}), Objective(Model(), "classification"))


@pytest.mark.parametrize("args", [{"foreach": True}, {"fused": False}, {"differentiable": True}])
def test_a_choice_of_implementation_in_the_recipe_wins(args: dict[str, bool]) -> None:
    """`fused` is only xrun's choice where the recipe makes none."""
    groups = build_optimizer(
        recipe({"args": args}), Objective(Model(), "classification")
    ).param_groups
    assert all(group[name] == value for group in groups for name, value in args.items())
    assert not groups[0]["fused"]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_what_torch_fuses_is_fused(name: str) -> None:
    """Dense real weights are; complex ones, and an embedding with sparse gradients, of which its
    kernels take none, are stepped on as well."""
    line, table = nn.Linear(2, 2), nn.Embedding(3, 2, sparse=True)
    spectral = nn.ParameterList([torch.ones(2, dtype=torch.complex64)])
    for model, fused in ((line, True), (spectral, None), (table, None)):
        optimizer = build_optimizer(recipe({"name": name}), Objective(model, "model"))
        assert (optimizer.defaults["fused"] or None) is fused
        if model is not table or name == "sgd":
            (p,) = list(model.parameters())[:1]
            before = p.detach().clone()
            out = model(torch.tensor([1])) if model is table else p
            out.abs().sum().backward()
            optimizer.step()
            assert not torch.equal(p, before)


def test_sparse_gradients_are_stepped_on_as_torch_does_it() -> None:
    """What only the first gradient shows: afterwards the optimizer is torch's default, for a
    GradScaler too."""
    ends = []
    for ours in (True, False):
        table = nn.ParameterList([torch.ones(5, 2)])
        optimizer: Any = (
            build_optimizer(recipe({"name": "sgd", "lr": 0.1}), Objective(table, "model"))
            if ours
            else torch.optim.SGD(table.parameters(), lr=0.1)
        )
        for _ in range(2):
            nn.functional.embedding(torch.tensor([1, 3]), table[0], sparse=True).sum().backward()
            if ours:
                unfuse(optimizer)
                assert not optimizer._step_supports_amp_scaling
            optimizer.step()
        ends.append(table[0].detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("fused", [True, False])
def test_a_scaled_step_is_a_gradscalers_and_reads_nothing(fused: bool) -> None:
    """Weights, moments and scale, over steps whose gradients overflow and steps whose do not; with
    the verdict at hand nothing is asked of the device, where torch asks once a step."""
    ends: list[list[torch.Tensor]] = []
    reads: list[int] = []
    faults: list[float] = []
    for ours in (True, False):
        weight = nn.Parameter(torch.linspace(-1, 1, 8))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
        finite = FiniteGradients([weight])
        scales = []
        for _ in range(8):
            optimizer.zero_grad()
            scaler.scale((weight * 3).square().sum()).backward()
            fault = finite.found().item()
            finite.verdict.zero_()
            scaler.unscale_(optimizer)
            with torch.profiler.profile() as seen:
                if ours:
                    scaled_step(scaler, plain_step(optimizer), fault)
                else:
                    scaler.step(optimizer)
                    scaler.update()
            names = [e.name for e in seen.events()]
            reads.append(names.count("aten::item"))
            faults.append(fault)
            scales.append(scaler.get_scale())
        state = optimizer.state[weight]
        ends.append([weight.detach(), state["exp_avg"], state["exp_avg_sq"], torch.tensor(scales)])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    assert set(faults) == {0.0, 1.0}
    assert not any(count for count, fault in zip(reads[:8], faults[:8], strict=True) if fault)
    if not fused:
        assert [theirs - own for own, theirs in zip(reads[:8], reads[8:], strict=True)] == [1] * 8


def test_a_model_without_trainable_parameters_is_refused() -> None:
    """There is nothing to optimize, and that is said."""
    with pytest.raises(TrainError, match="no trainable parameter"):
        build_optimizer(recipe(), Objective(Model().requires_grad_(False), "classification"))


def rates(name: str, warmup: int, final: float, total: int = 10) -> list[float]:
    train = recipe({"lr": 2.0}, schedule={"name": name, "warmup_steps": warmup, "final": final})
    return [learning_rate(train, step, total) for step in range(total + 2)]


def test_the_warmup_rises_linearly_to_the_peak() -> None:
    """The first step has 1/n of the rate, the last one of the warmup has all of it."""
    assert rates("constant", 4, 0.0)[:6] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(("name", "middle"), [("linear", 1.1), ("cosine", 1.1), ("constant", 2.0)])
def test_a_schedule_goes_from_the_peak_to_its_end(name: str, middle: float) -> None:
    """It begins at `lr`, is half-way at half the steps, and stays at `final` once the steps are
    done."""
    found = rates(name, 0, 0.1)
    end = 2.0 if name == "constant" else 0.2
    assert (found[0], found[5], found[10], found[11]) == pytest.approx((2.0, middle, end, end))
    assert found[:11] == sorted(found[:11], reverse=True)


def test_a_schedule_after_a_warmup_covers_what_is_left() -> None:
    """The decay begins where the warmup ended, at the peak."""
    found = rates("linear", 5, 0.0)
    assert found[4:11] == pytest.approx([2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.0])


@pytest.mark.parametrize("total", [1, 3, 4])
def test_a_run_no_longer_than_its_warmup_has_rates(total: int) -> None:
    """A warmup that takes all the steps leaves nothing to divide by, and still every rate is
    right."""
    assert rates("cosine", 4, 0.0, total)[:total] == pytest.approx([0.5, 1.0, 1.5, 2.0][:total])


def test_a_warmup_that_never_ends_is_refused_before_training() -> None:
    """Where the recipe counts in epochs only the dataset tells; a run that has begun goes on."""
    train = recipe(schedule={"name": "cosine", "warmup_steps": 5}, steps=None, epochs=1)
    check_warmup(train, 6, begun=False)
    check_warmup(train, 5, begun=True)
    with pytest.raises(ComponentError, match=r"warmup_steps: the warmup of 5 steps .* at step 5"):
        check_warmup(train, 5, begun=False)


@pytest.mark.parametrize(
    ("name", "step", "before", "now", "rates"),
    [
        ("cosine", 10, 10, 20, "0.04894 at step 10 and 1 at step 11"),
        ("linear", 5, 10, 20, "1.2 at step 5 and 1.5 at step 6"),
        ("linear", 5, 10, 8, "1.2 at step 5 and 0.75 at step 6"),
        ("constant", 10, 10, 20, ""),
        ("cosine", 10, 10, 10, ""),
        ("cosine", 10, 0, 20, ""),
        ("cosine", 0, 10, 20, ""),
    ],
)
def test_a_rate_that_jumps_is_said(name: str, step: int, before: int, now: int, rates: str) -> None:
    """Both rates stand in the sentence; nothing is said where nothing changes, or nobody knows."""
    said = rate_jump(recipe({"lr": 2.0}, schedule={"name": name}), step, before, now)
    assert bool(said) == bool(rates)
    assert rates in said


def test_decay_that_would_change_nothing_is_known() -> None:
    """The recipe's rule names those of torch's optimizers that have no weight decay."""
    without = {
        name.lower()
        for name in OPTIMIZERS
        if "weight_decay" not in inspect.signature(getattr(torch.optim, name)).parameters
    }
    assert without == {*WITHOUT_DECAY, "lbfgs"}


def test_the_rate_reaches_every_group() -> None:
    """Setting the rate sets it for decayed and undecayed parameters."""
    optimizer = build_optimizer(recipe({"weight_decay": 0.1}), Objective(Model(), "classification"))
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "adafactor"])
def test_a_plain_step_is_the_library_s(name: str) -> None:
    """The same bits as `optimizer.step`, and no gradient is recorded."""
    weights = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = Objective(Model(), "classification")
        optimizer = build_optimizer(recipe({"name": name, "lr": 0.1}), model)
        step = plain_step(optimizer) if plain else optimizer.step
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p) if p.requires_grad else None
            step()
        assert torch.is_grad_enabled()
        weights.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_a_plain_step_leaves_no_hook_out() -> None:
    """An optimizer on which somebody has registered something steps as the library does."""
    calls: list[str] = []
    optimizer = build_optimizer(recipe(), Objective(Model(), "classification"))
    assert plain_step(optimizer) != optimizer.step
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    plain_step(optimizer)()
    assert calls == ["hook"]


@pytest.mark.parametrize("name", _FUSED)
def test_a_fused_step_is_left_out_on_its_device(name: str) -> None:
    """Weights and the optimizer's state stay as they are once the verdict is 1, and are what they
    would be without one while it is 0. On a processor the verdict is read, so nothing is gated."""
    gated, plain = ([torch.nn.Parameter(torch.arange(6.0))] for _ in range(2))
    optimizers = [getattr(torch.optim, name)(each, lr=0.1, fused=True) for each in (gated, plain)]
    verdict = torch.zeros(())
    assert not gate(optimizers[0], verdict)
    optimizers[0].found_inf = verdict
    for _ in range(2):
        for optimizer, (parameter,) in zip(optimizers, (gated, plain), strict=True):
            parameter.grad = torch.linspace(-1, 1, 6)
            optimizer.step()
    before = copy.deepcopy(optimizers[0].state_dict())
    assert str(before) == str(optimizers[1].state_dict())
    assert torch.equal(gated[0], plain[0])
    verdict.fill_(1)
    gated[0].grad = torch.full((6,), float("nan"))
    optimizers[0].step()
    assert torch.equal(gated[0], plain[0])
    assert str(before) == str(optimizers[0].state_dict())


def test_clipping_is_torchs() -> None:
    """To the last bit, with the norm that torch says."""
    torch.manual_seed(0)
    gradients = [torch.randn(7, 5), torch.randn(3), torch.randn(11, 2).bfloat16()]
    ours, theirs = ([nn.Parameter(torch.zeros_like(each)) for each in gradients] for _ in range(2))
    for each, other, gradient in zip(ours, theirs, gradients, strict=True):
        each.grad, other.grad = gradient.clone(), gradient.clone()
    assert torch.equal(clip(ours, 0.5), nn.utils.clip_grad_norm_(theirs, 0.5))
    for each, other in zip(ours, theirs, strict=True):
        assert torch.equal(each.grad, other.grad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_spoils_no_other_gradient(bad: float) -> None:
    """Afterwards the parameter whose gradient it was can be named."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = torch.ones(2), torch.tensor([bad, 1.0])
    assert not torch.isfinite(clip(parameters, 0.5))
    assert torch.equal(parameters[0].grad, torch.zeros(2))
    assert not torch.isfinite(parameters[1].grad).all()
