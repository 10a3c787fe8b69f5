"""Recipe -> torch optimizer, its parameter groups, and the learning rate at a step."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks as _global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as _global_pre_hooks

from ..errors import ComponentError, TrainError
from ..recipe.schema import Train

log = logging.getLogger("xrun")

_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")
_FUSED_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def build_optimizer(train: Train, objective: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; norms, biases and other 1-D ones get no
    weight decay.

    Raises:
        TrainError: torch has no such optimizer, or it refuses the arguments.
    """
    kind = optimizer_class(train.optimizer.name)
    options: dict[str, Any] = {"lr": train.optimizer.lr, **train.optimizer.args}
    groups = parameter_groups(objective, train.optimizer.weight_decay)
    if kind.__name__ in _FUSED and train.sharding == "none" and _may_be_fused(options, objective):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            # one kernel for all parameters instead of a Python loop over them
            return kind(groups, **options, fused=True)
    try:
        return kind(groups, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainError(
            f"train.optimizer: torch.optim.{kind.__name__} refuses its arguments: {error}."
        ) from error


def _may_be_fused(options: Mapping[str, Any], objective: nn.Module) -> bool:
    """Whether the recipe leaves that open, and torch's fused kernels take these parameters; that
    their gradients are dense the first ones show."""
    chosen = options.get("foreach") or options.get("differentiable") or "fused" in options
    sparse = any(getattr(module, "sparse", False) is True for module in objective.modules())
    trained = (p for p in objective.parameters() if p.requires_grad)
    return not chosen and not sparse and all(p.dtype in _FUSED_TYPES for p in trained)


def unfuse(optimizer: torch.optim.Optimizer) -> None:
    """Step as torch does by default, from now on: fused kernels take no sparse gradients, and with
    none of them no verdict gates a step."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # what a GradScaler asks
    vars(optimizer).pop("found_inf", None)
    for group in optimizer.param_groups:
        group.update({"fused": None} if group.get("fused") else {})


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class in torch.optim with this name in any case."""
    base = torch.optim.Optimizer
    known = {
        a: c
        for a, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, base) and c is not base
    }
    for attribute, found in known.items():
        if attribute.lower() == name.lower():
            return found
    raise TrainError(
        f"train.optimizer.name: torch.optim has no {name!r}.", f"It has {', '.join(sorted(known))}."
    )


def parameter_groups(objective: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay, each in the order of `named_parameters`; one if
    nothing is decayed."""
    exempt = undecayed_names(objective) if weight_decay else set[str]()
    named = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    if not named:
        raise TrainError("The model has no trainable parameter.")
    groups = [
        {"params": [p for name, p in named if name not in exempt], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def undecayed_names(objective: nn.Module) -> set[str]:
    """Names of the parameters that are not decayed: 1-D ones, all of a norm, and those that the
    model names itself."""
    names = {name for name, p in objective.named_parameters() if p.dim() < 2}
    for prefix, module in objective.named_modules():
        of_norm = "norm" in type(module).__name__.lower()
        own = set(module.no_weight_decay()) if hasattr(module, "no_weight_decay") else set()
        names |= {
            f"{prefix}.{n}".lstrip(".")
            for n, _ in module.named_parameters(recurse=False)
            if of_norm
        }
        names |= {f"{prefix}.{n}".lstrip(".") for n in own}
    return names


def learning_rate(train: Train, step: int, total: int) -> float:
    """The learning rate of the step after `step` finished ones: linear warm-up, then the schedule
    down to `final`."""
    schedule, lr = train.schedule, train.optimizer.lr
    if step < schedule.warmup_steps:
        return lr * (step + 1) / schedule.warmup_steps
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps))
    if schedule.name == "cosine":
        return lr * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2)
    if schedule.name == "linear":
        return lr * (1 - (1 - schedule.final) * done)
    return lr


def check_warmup(train: Train, last: int, begun: bool) -> None:
    """A warmup that does not end before the run does never reaches the peak rate; said where the
    recipe counts in epochs, whose steps only the dataset tells. A run that has `begun` goes on.

    Raises:
        ComponentError: it does not, and nothing is trained yet.
    """
    warmup = train.schedule.warmup_steps
    if not warmup or warmup < last:
        return
    what = (
        f"train.schedule.warmup_steps: the warmup of {warmup} steps does not end before the run"
        f" does, at step {last}, so the learning rate never reaches train.optimizer.lr."
    )
    if not begun:
        raise ComponentError(what, f"Take fewer than {last}, or more epochs.")
    log.warning("%s", what)


def rate_jump(train: Train, step: int, before: int, now: int) -> str:
    """The sentence about a run whose last step was `before` (0: nobody knows) and is `now`, where
    that changes the learning rate of the step after `step`; "" where it does not."""
    old, new = (learning_rate(train, step, total) for total in (before, now))
    if not before or not step or old == new:
        return ""
    last = learning_rate(train, step - 1, before)
    return (
        f"The run was to end at step {before} and now ends at step {now}, so its schedule is"
        f" another one: the learning rate is {last:.4g} at step {step} and {new:.4g} at step"
        f" {step + 1}. Its weights will not be those of {now} steps in one go, which --again"
        " begins."
    )


def plain_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """`optimizer.step` without the range around it that torch's profiler would show.

    With hooks, and where torch has no such range, it is `optimizer.step` itself. The range takes
    15 µs of each step (9 to 23; `python -m benchmarks 1`, 2 cores), where the whole loop adds 55 µs
    to torch's: the private names at the top of this file stay for as long as they save that much.
    """
    step = type(optimizer).step
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_pre_hooks,
        _global_post_hooks,
    )
    if any(hooks) or not getattr(step, "hooked", False) or "step" in vars(optimizer):
        return optimizer.step
    return functools.partial(step.__wrapped__, optimizer)  # type: ignore[attr-defined]  # functools.wraps has set it


def scaled_step(scaler: Any, step: Callable[[], Any], fault: float) -> None:
    """What a GradScaler's `step` and `update` do after its `unscale_`, where the host knows already
    whether a gradient is not finite (`fault`): `step` would wait for the device to tell it again,
    for every optimizer that is not fused."""
    if not fault:
        step()
    scaler.update()


def gate(optimizer: torch.optim.Optimizer, verdict: Tensor) -> bool:
    """Let the optimizer's own kernels look at `verdict` and leave everything as it is where that is
    1, as they do for a GradScaler; says whether they can.

    So the step is on its way before anybody has read whether it may be made. On processors, where
    reading costs nothing, nobody would gain by it.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    takes = getattr(optimizer, "_step_supports_amp_scaling", False)
    if not takes or verdict.is_cpu or any(hasattr(p, "to_local") for p in parameters):
        return False
    optimizer.found_inf = verdict  # type: ignore[attr-defined]  # where torch's fused kernels look for it
    return True


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients down to this norm; returns the norm that they had, on their device.

    As `clip_grad_norm_` does it, but where the norm is not finite what is finite becomes 0 and
    nothing else, so that it can still be told whose gradient it was.
    """
    trained = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    nn.utils.clip_grads_with_norm_(trained, largest, norm.nan_to_num(math.inf, math.inf))
    return norm


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
