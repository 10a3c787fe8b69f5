"""TrainState: everything a run resumes from; what is saved and what is loaded stand side by side,
to be compared by eye."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import CheckpointError, ComponentError, TrainError
from . import tensor_file
from .frozen import Frozen
from .share import Share

Fill = Callable[[str, Tensor], None]
"""Writes the saved values of the named tensor into the one given, in place."""
_PAIRS = (torch.complex128, torch.complex32)
"""What safetensors has no name for; saved as pairs of real numbers."""
_SMALL = (2, 3)
"""A parameter's shape that nothing else has by chance."""


@dataclass
class TrainState:
    """The run's state between two steps: tensors in the modules, numbers here.

    `step` counts finished optimizer steps and `samples` the samples they trained on; `evaluated` is
    the step of the last evaluation; `best` is `{"step", "value", "metric", "mode"}` of the best one
    (the last two are not in older ones), and `waited` how many in a row after it were no better;
    `seconds` is training time so far; `stream` is the position of a streaming dataset; `exact` is
    whether every step was computed as the recipe says, no micro-batch in parts; `steps` is the last
    step, by which the learning rate goes (0: an older xrun did not say). `outside` are the frozen
    weights that are not part of it, but for a digest.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module | None = None
    scaler: Any = None
    micro_batch: int = 0
    step: int = 0
    samples: int = 0
    evaluated: int = -1
    best: dict[str, Any] | None = None
    waited: int = 0
    seconds: float = 0.0
    stream: dict[str, Any] | None = None
    exact: bool = True
    steps: int = 0
    outside: Frozen | None = None
    _names: dict[int, str] = field(default_factory=dict, repr=False)
    _built: dict[str, str] = field(init=False, repr=False)

    NUMBERS = (
        *("micro_batch", "step", "samples", "evaluated"),
        *("best", "waited", "seconds", "stream", "exact", "steps"),
    )

    def __post_init__(self) -> None:
        self._built = _buffer_kinds(self.model)

    def numbers(self) -> dict[str, Any]:
        """Everything that is not a tensor, as JSON."""
        scaler = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        made = self._made_buffers()
        buffers = {"buffers": made} if made else {}
        frozen = {} if self.outside is None else {"frozen": self.outside.digest}
        own = {name: getattr(self, name) for name in self.NUMBERS}
        return {**own, **buffers, **frozen, **scaler}

    def load_numbers(self, numbers: dict[str, Any]) -> None:
        """The inverse of `numbers`; what an older xrun did not save stays as it is."""
        for name in self.NUMBERS:
            setattr(self, name, numbers.get(name, getattr(self, name)))
        if self.scaler is not None and "scaler" in numbers:
            self.scaler.load_state_dict(numbers["scaler"])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the checkpoint; tied ones once, under their first name."""
        named = dict(_module_tensors("model", self.model))
        named |= _optimizer_tensors(self.optimizer, self.parameter_names())
        named |= dict(_module_tensors("ema", self.ema)) if self.ema is not None else {}
        left = self._left_out()
        return {name: tensor for name, tensor in named.items() if name not in left}

    def load_tensors(self, names: set[str], fill: Fill) -> None:
        """The inverse of `tensors`: `fill` is called once for each tensor that the state now has,
        `names` are the saved ones."""
        self._make_optimizer_state(names)
        if self.outside is not None:
            self.outside.add(names)
        wanted = self.tensors()
        if missing := sorted(set(wanted) ^ names):
            raise CheckpointError(
                f"The checkpoint and the model have different tensors: {', '.join(missing[:5])}"
                + (f" and {len(missing) - 5} more." if len(missing) > 5 else "."),
                "The model's code has changed since this run began; start another run with"
                " --again.",
            )
        with ThreadPoolExecutor(
            torch.get_num_threads()
        ) as threads:  # fresh memory comes page by page, which takes longest
            list(threads.map(fill, wanted.keys(), wanted.values()))

    def take_buffers(self, made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give the model, and its average, the buffers that were saved, in the shapes that they
        had: a forward pass may have made, changed and dropped some. `made` is what `numbers` says
        of that; their values are to be loaded."""
        for prefix, module in self._copies():
            now = _buffer_kinds(module)
            for name, kind in made.items():
                if now.get(name) != kind:
                    _set_buffer(module, name, kind, shapes.get(f"{prefix}.{name}", ()))
            for name, buffer in _buffers(module).items():
                shape = shapes.get(f"{prefix}.{name}")
                if shape is not None and rows(buffer)[1] != shape:
                    buffer.data = torch.zeros(
                        _own_shape(shape, buffer.dtype), dtype=buffer.dtype, device=buffer.device
                    )

    def _copies(self) -> list[tuple[str, nn.Module]]:
        """The model and its average, by what their tensors' names begin with."""
        average = [] if self.ema is None else [("ema.module", self.ema.get_submodule("module"))]
        return [("model", self.model), *average]

    def _made_buffers(self) -> dict[str, str | None]:
        """The buffers that are not as `build` made them; None is one that is gone."""
        now = _buffer_kinds(self.model)
        made = {name: kind for name, kind in now.items() if self._built.get(name) != kind}
        return {**made, **dict.fromkeys(self._built.keys() - now.keys())}

    def changing(self) -> set[str]:
        """Names of the tensors that a forward pass may change (buffers, and what had moved although
        it is frozen when `tensors` was asked); all others change in `optimizer.step()` only."""
        moved = set() if self.outside is None else self.outside.known
        return {f"model.{name}" for name in _buffers(self.model)} | moved

    def frozen(self) -> set[str]:
        """Names of the saved tensors that no step changes."""
        frozen = {
            f"model.{name}"
            for name, p in self._saved()
            if isinstance(p, nn.Parameter) and not p.requires_grad
        }
        return frozen if self.outside is None else frozen - self.outside.names

    def _left_out(self) -> set[str]:
        """Names of what a checkpoint does not hold: it is built again, and nothing has moved it.
        The average shares it with the model."""
        if self.outside is None:
            return set()
        names = self.outside.names - self.outside.moved()
        return names | {f"ema.module.{name.removeprefix('model.')}" for name in names}

    def trained(self) -> set[str]:
        """Names of the tensors that the optimizer's step changes."""
        names = self.parameter_names()
        groups = self.optimizer.param_groups
        return {f"model.{names[id(p)]}" for group in groups for p in group["params"]}

    def _saved(self) -> list[tuple[str, Any]]:
        """The model's own tensors by the names of its state_dict, which wrappers around its blocks
        do not change."""
        return list(self.model.state_dict(keep_vars=True).items())

    def parameter_names(self) -> dict[int, str]:
        """The model's tensors by identity: their names in its state_dict."""
        if not self._names:
            self._names = {
                id(p): name for name, p in reversed(self._saved())
            }  # of tied ones the first name
        return self._names

    def _make_optimizer_state(self, names: set[str]) -> None:
        """Give a fresh optimizer the tensors that the saved one had, so that they can be filled.

        Optimizers make their state in the first step. A step for one small parameter shows what
        that is; where it is more than tensors like the parameter and scalars, a step on zero
        gradients makes it as the library does. What that step does to the weights is overwritten by
        the load that follows.
        """
        saved = {
            name.removeprefix("optimizer.").rpartition(".")[0]
            for name in names
            if name.startswith("optimizer.")
        }
        if self.optimizer.state or not saved:
            return
        made = self._empty_state(saved)
        if made is not None:
            self.optimizer.state.update(made)
            return
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if self.parameter_names()[id(p)] in saved else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _empty_state(self, saved: set[str]) -> dict[Tensor, dict[str, Tensor]] | None:
        """Room for each parameter's state, if a small parameter's state shows what it is."""
        examples: dict[Any, dict[str, Any]] = {}
        made: dict[Tensor, dict[str, Tensor]] = {}
        for group in self.optimizer.param_groups:
            for p in (p for p in group["params"] if self.parameter_names()[id(p)] in saved):
                kind = id(group), p.dtype, p.device
                if kind not in examples:
                    examples[kind] = self._example(group, p)
                if not all(_is_plain(value) for value in examples[kind].values()):
                    return None
                made[p] = {
                    key: torch.empty_like(p if value.dim() else value)
                    for key, value in examples[kind].items()
                }
        return made

    def _example(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """The state after a step of the optimizer for a small parameter of this group."""
        small = torch.zeros(_SMALL, dtype=p.dtype, device=p.device, requires_grad=True)
        small.grad = torch.zeros_like(small)
        groups, self.optimizer.param_groups = (
            self.optimizer.param_groups,
            [{**group, "params": [small]}],
        )
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        return dict(self.optimizer.state.pop(small, {}))


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that its state_dict has, by their names there, which wrappers around blocks do
    not change."""
    buffers = {id(buffer) for buffer in module.buffers()}
    saved = module.state_dict(keep_vars=True).items()
    return {name: tensor for name, tensor in saved if id(tensor) in buffers}


def _buffer_kinds(module: nn.Module) -> dict[str, str]:
    """The type of each of them, as `float32`."""
    kinds = {name: str(buffer.dtype) for name, buffer in _buffers(module).items()}
    return {name: kind.removeprefix("torch.") for name, kind in kinds.items()}


def _set_buffer(model: nn.Module, name: str, kind: str | None, shape: tuple[int, ...]) -> None:
    """Make a buffer of this type, or take one away."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    module = getattr(module, "_checkpoint_wrapped_module", module)  # what torch wraps around blocks
    if kind is None:
        module._buffers[own] = None
        return
    dtype, device = getattr(torch, kind), next(model.parameters()).device
    module.register_buffer(own, torch.zeros(_own_shape(shape, dtype), dtype=dtype, device=device))


def _own_shape(saved: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    return saved[:-1] if dtype in _PAIRS else saved


def check_own_tensors(model: nn.Module, name: str, outside: Set[str] = frozenset()) -> None:
    """What the model's state_dict holds is what the model computes with, so that a checkpoint can
    bring it back; but for the names of what is `outside` of every checkpoint.

    Raises:
        ComponentError: it lacks a trainable parameter, or holds a copy of something, or a tensor
            that no checkpoint can hold.
    """
    once, again = (model.state_dict(keep_vars=True) for _ in range(2))
    for each, tensor in once.items():
        if isinstance(tensor, Tensor):
            _check(f"model.{each}", tensor)
    _check_elements(model, name)
    there = {id(tensor) for tensor in once.values()}
    apart = (n for n, p in model.named_parameters() if p.requires_grad and id(p) not in there)
    copies = (n for n in once if n not in outside and _is_copy(once[n], again.get(n)))
    wrong = next(apart, None) or next(copies, None)
    if wrong is not None:
        raise ComponentError(
            f"{name}: the model's state_dict leaves out {wrong}, or holds a copy of it, so no"
            " checkpoint could restore it.",
            "Remove the state_dict hook or method that changes it; weights in another form can be"
            " made from the final model.",
        )


def _check_elements(model: nn.Module, name: str) -> None:
    """Raises ComponentError where a step would change several elements of a parameter at once."""
    for own, p in model.named_parameters():
        if isinstance(p, UninitializedParameter) or not p.requires_grad:
            continue
        if any(size > 1 and not step for size, step in zip(p.shape, p.stride(), strict=True)):
            raise ComponentError(
                f"{name}: several elements of the parameter {own} share one place in memory, so a"
                " step would change it once for each of them.",
                "Give it memory of its own (`.expand(...).clone()`), or expand it in forward().",
            )


def _is_copy(one: Any, other: Any) -> bool:
    """Whether a state_dict makes this tensor anew each time it is asked."""
    if one is other or not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    return one.numel() > 0 and one.data_ptr() != other.data_ptr()


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, whose import takes half a second."""
    return hasattr(tensor, "to_local")


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor like a small parameter, or a scalar."""
    return isinstance(value, Tensor) and tuple(value.shape) in (_SMALL, ())


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, as a file holds it: all of it, or its shard where the model
    is sharded; pairs of real numbers where the file's format has no such complex ones."""
    own = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor's method
    return torch.view_as_real(own) if own.dtype in _PAIRS else own


def rows(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where this process's part, as `local` gives it, starts in the first dimension, and the whole
    tensor's shape."""
    shape = (*tensor.shape, 2) if tensor.dtype in _PAIRS else tuple(tensor.shape)
    if not hasattr(tensor, "device_mesh"):
        return 0, shape
    mesh = tensor.device_mesh
    return Share(mesh.get_local_rank(), mesh.size()).rows(shape[0])[0], shape


def _check(name: str, tensor: Tensor) -> None:
    """Raises ComponentError where a checkpoint cannot hold such a tensor."""
    if tensor.layout != torch.strided:
        what = f"is stored as {tensor.layout}"
    elif tensor.device.type == "meta":
        what = "is on the device meta and has no values"
    elif tensor.dtype not in (*tensor_file.KINDS, *_PAIRS):
        what = f"has the type {tensor.dtype}"
    elif tensor.dtype in _PAIRS and tensor.is_conj():
        what = "is a conjugated view of another tensor"
    else:
        return
    raise ComponentError(
        f"{name} {what}, which a checkpoint cannot hold.",
        "Give the model a dense tensor of a common type, or make it in build() and register it with"
        " persistent=False.",
    )


def _module_tensors(prefix: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TrainError(
                f"{prefix}.{name}: a module keeps state that is not a tensor"
                f" ({type(tensor).__name__}).",
                "Make it a buffer, or let its get_extra_state return a tensor.",
            )
        _check(f"{prefix}.{name}", tensor)
        part = local(tensor.detach())
        identity = (
            part.untyped_storage().data_ptr(),
            part.storage_offset(),
            part.shape,
            part.stride(),
            part.device,
        )
        if part.numel() == 0 or identity not in seen:
            seen.add(identity)
            yield f"{prefix}.{name}", tensor.detach()


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[int, str]
) -> dict[str, Tensor]:
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            for field_name, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    name = f"optimizer.{names[id(p)]}.{field_name}"
                    _check(name, value)
                    found[name] = value.detach()
                elif value is not None:
                    raise TrainError(
                        f"The optimizer keeps {field_name!r} as {type(value).__name__}, which"
                        " cannot be saved as a tensor.",
                        "Use an optimizer whose state is tensors, such as adamw.",
                    )
    return found
