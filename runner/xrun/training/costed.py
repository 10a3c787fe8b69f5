"""What a recipe's step takes, before any machine is paid for: its model is built without memory,
and one micro-batch of real samples goes through it by their shapes alone.

A process of the launcher's starts it: `python -m xrun.training.costed PLAN`, and reads the one line
of JSON that it writes beside the plan (`RunFolder.cost`). A base from the Hub is read as its
configuration only.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # as torch documents them
from torch.overrides import TorchFunctionMode

from .. import component
from ..components import use_project
from ..data.batch import Batch, leaves, mapped
from ..data.loader import Fetch
from ..data.stream import is_stream
from ..errors import XrunError
from ..files import write_json
from ..recipe.schema import ModelRef, Recipe, Train
from ..run.cost import Cost, Trial, sizes
from ..run.folder import RunFolder
from ..run.plan import Plan
from .adapter import with_adapter
from .contract import in_short
from .failure import is_of_the_network
from .footprint import Footprint
from .freezing import freeze, held_in_bf16
from .instances import build_splits, build_unchecked
from .lazy import LAZY_SAMPLES, give_shapes, lazy_modules
from .micro_batch import first_batch, limited_memory
from .miniature import LARGE, Miniature, parameters
from .objective import Objective
from .optimizer import build_optimizer
from .quantized import packable
from .sharding import checkpoint_activations, repeated_blocks

_PACKED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
"""Of a weight; in 4 bit 64 of them share a float."""


class _AsOnGpus(TorchFunctionMode):
    """Attention keeps no weights for its dropout, as the kernels of GPUs do without them; a
    processor's do only where nothing is dropped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            given |= {"dropout_p": 0.0} if "dropout_p" in given else {}
        return func(*args, **given)


@dataclass
class Costing:
    """A recipe's model with its task and its optimizer, and what its steps are tried with."""

    recipe: Recipe
    objective: Objective
    optimizer: torch.optim.Optimizer
    packed: int = 0
    """Bytes that the base's weights take less than they do here."""

    @classmethod
    def of(
        cls, recipe: Recipe, project: Path, batch: Batch, fake: FakeTensorMode | None
    ) -> Costing:
        """Build it, on the meta device if it is to be without memory. `batch`: a few samples, for
        modules that take their shapes from them.

        Raises:
            XrunError: what building it in a run would raise.
        """
        ref = as_configuration(recipe.model, project)
        device = torch.device("cpu" if fake is None else "meta")
        with device:
            model = build_unchecked(ref, recipe.train.seed, project)
            if lazy_modules(model):
                few = mapped(batch, lambda leaf: leaf.to(device) if _is_tensor(leaf) else leaf)
                give_shapes(Objective(model, recipe.task), few, LAZY_SAMPLES, recipe.train.seed)
            freeze(model, ref)
            packed = 0
            if ref.adapter is not None:
                packed = _packed(model, ref)
                told = held_in_bf16(recipe) if ref.quantized else recipe
                model = with_adapter(model, told, ref.adapter, shapes=fake is not None)
        if recipe.train.activation_checkpointing:
            checkpoint_activations(model)
        if fake is not None:
            _without_memory(model, fake)
        objective = Objective(model, recipe.task)
        with fake or contextlib.nullcontext():
            return cls(recipe, objective, build_optimizer(recipe.train, objective), packed)

    @property
    def train(self) -> Train:
        """The recipe's part about training."""
        return self.recipe.train

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer steps on."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def whole(self, trials: tuple[Trial, ...], evaluation: Trial | None) -> Cost:
        """With what of the model does not hang on the batch."""
        model, ref, trained = self.objective.model, self.recipe.model, self.trained
        everything = [*model.parameters(), *model.buffers()]
        frozen = [p for p in model.parameters() if not p.requires_grad] if ref.freezes else []
        gradients, optimizer = _bytes(trained), _bytes(self._states())
        average = _bytes(everything) - _bytes(frozen) if self.train.ema is not None else 0
        units = [_bytes(block.parameters()) for block in repeated_blocks(model)]
        kept = _bytes(model.state_dict().values()) - _bytes(frozen)
        return Cost(
            parameters=sum(p.numel() for p in model.parameters()),
            trained=sum(p.numel() for p in trained),
            weights=_bytes(everything) - self.packed,
            gradients=gradients,
            optimizer=optimizer,
            average=average,
            state=kept + optimizer + average,
            unit=max(units, default=_bytes(model.parameters())),
            step_calls=self._step_calls(),
            trials=trials,
            evaluation=evaluation,
        )

    def trial(self, batch: Batch, samples: int) -> Trial:
        """A step of two micro-batches like this one."""
        self._make_states()
        with self._counted(batch) as footprint:
            held = footprint.now
            footprint.begin()
            self._compute(batch, samples)
            calls, flops, first = footprint.calls, footprint.flops, footprint.most
            footprint.begin()
            self._compute(batch, samples)
            further = max(first, footprint.most)
            footprint.begin()
            self.optimizer.step()
            after = footprint.most
        self.optimizer.zero_grad()
        held -= _bytes(leaves(batch))
        return Trial(samples, max(first, after) - held, max(further, after) - held, flops, calls)

    def evaluation(self, batch: Batch, samples: int) -> Trial:
        """One batch of an evaluation."""
        self.objective.eval()
        with torch.no_grad(), self._counted(batch) as footprint:
            held = footprint.now
            footprint.begin()
            with self._precision():
                self.objective(batch, samples)
            taken = footprint.most - held + _bytes(leaves(batch))
            found = Trial(samples, taken, taken, footprint.flops, footprint.calls)
        self.objective.train()
        return found

    @contextlib.contextmanager
    def _counted(self, batch: Batch) -> Iterator[Footprint]:
        model = self.objective.model
        there = [*model.parameters(), *model.buffers(), *self._states(), *leaves(batch)]
        with _AsOnGpus(), Footprint(there) as footprint:
            yield footprint

    def _compute(self, batch: Batch, samples: int) -> None:
        with self._precision():
            loss = self.objective(batch, samples)["loss"]
        loss.backward()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """16 bits are bf16 here: the sizes are the same."""
        if self.train.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", torch.bfloat16)

    def _make_states(self) -> None:
        """A first step, with gradients of nothing."""
        if not self.optimizer.state:
            for p in self.trained:
                p.grad = torch.zeros_like(p)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _step_calls(self) -> int:
        """A fused optimizer is one operation for all parameters, torch's others some for each."""
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return len(self.optimizer.param_groups) if fused else 4 * len(self.trained)

    def _states(self) -> list[Tensor]:
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [value for value in states if isinstance(value, Tensor)]


def as_configuration(ref: ModelRef, project: Path) -> ModelRef:
    """The model with new weights, where its `build` takes `pretrained`; its adapter's or its own
    weights of `init_from` are not read."""
    build = component.load_build("models", ref.name, project)
    changes: dict[str, Any] = {"init_from": None}
    if "pretrained" in inspect.signature(build).parameters:
        changes["args"] = {**ref.args, "pretrained": False}
    return ref.model_copy(update=changes)


def _packed(base: nn.Module, ref: ModelRef) -> int:
    """By how much the base is smaller in 8 or 4 bit than in bf16."""
    if not ref.quantized:
        return 0
    trained = (ref.adapter.args if ref.adapter else {}).get("modules_to_save") or ()
    layers = packable(base, ref.quantized, trained)
    weights = sum(base.get_parameter(f"{name}.weight").numel() for name in layers)
    return int(weights * (2 - _PACKED_BYTES[ref.quantized]))


def _bytes(tensors: Iterable[Any]) -> int:
    """Bytes of these tensors; memory that several share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
    return sum(each.nbytes() for each in {id(each): each for each in storages}.values())


def cost_of(plan: Plan) -> Cost:
    """Measure a plan's recipe. Its folder is there, for what is noted down while data are read.

    Raises:
        XrunError: the recipe's components cannot be built here.
    """
    recipe, project = plan.load_recipe(), Path(plan.project)
    use_project(project)
    small = Miniature(plan)
    with small.streamed():
        splits = build_splits(recipe, project)
    batches = _batches(recipe, splits)
    whole = _whole(splits["train"]), _whole(splits.get("val"))
    seen = [in_all / taken for taken, in_all in small.rows if taken and in_all]
    known = len(seen) == len(small.rows)
    factors = (seen[0], seen[-1]) if seen else (1.0, 1.0)
    counts = [
        round(count * factor) if count is not None and known else None
        for count, factor in zip(whole, factors, strict=True)
    ]
    made = _tried_somehow(recipe, project, batches)
    return replace(made, train_samples=counts[0], val_samples=counts[1], estimated=bool(small.rows))


@dataclass(frozen=True)
class Batches:
    """What is tried: micro-batches by their numbers of samples, and a batch of `val`."""

    train: Mapping[int, Batch]
    val: Mapping[int, Batch]


def tried(recipe: Recipe, project: Path, batches: Batches, *, shapes: bool = True) -> Cost:
    """Try the steps of a recipe, by `shapes` alone or with real numbers."""
    fake = FakeTensorMode(allow_non_fake_inputs=True) if shapes else None

    def told(batch: Batch) -> Batch:
        return mapped(
            batch, lambda leaf: fake.from_tensor(leaf) if fake and _is_tensor(leaf) else leaf
        )

    costing = Costing.of(recipe, project, next(iter(batches.train.values())), fake)
    with fake or contextlib.nullcontext():
        trials = tuple(costing.trial(told(batch), n) for n, batch in batches.train.items())
        evaluated = [costing.evaluation(told(batch), n) for n, batch in batches.val.items()]
        return costing.whole(trials, next(iter(evaluated), None))


def _tried_somehow(recipe: Recipe, project: Path, batches: Batches) -> Cost:
    """By shapes alone, and where a model asks for its numbers, with them, if it is small."""
    try:
        return tried(recipe, project, batches)
    except Exception:
        if parameters(as_configuration(recipe.model, project), project) > LARGE:
            raise
        with limited_memory():
            return tried(recipe, project, batches, shapes=False)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _without_memory(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace the model's tensors on the meta device by ones that compute by their shapes, as on a
    processor. What modules share stays shared."""
    known: dict[int, Tensor] = {}

    def of(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            made: Tensor = FakeTensor(fake, tensor.detach(), torch.device("cpu"))
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, tensor.requires_grad)
            known[id(tensor)] = made
        return known[id(tensor)]

    with fake:
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    setattr(module, name, of(tensor))  # some keep a list of them besides


def _batches(recipe: Recipe, splits: Mapping[str, Any]) -> Batches:
    train, val = recipe.train, splits.get("val")
    chosen = [0 if train.micro_batch == "auto" else train.micro_batch]
    if not chosen[0]:  # one sample alone is none to a BatchNorm
        chosen = [size for size in sorted(sizes(train.global_batch, 1)) if size > 1][:2] or [1]
    fetch = Fetch(splits["train"], train.seed)
    size = train.evaluate.batch or chosen[0]
    ready = getattr(splits["train"], "on_device", lambda batch: batch)  # as the model sees them
    evaluated = {size: ready(first_batch(Fetch(val, train.seed), size))} if val is not None else {}
    return Batches({n: ready(first_batch(fetch, n)) for n in chosen}, evaluated)


def _whole(split: Any) -> int | None:
    """How many samples a split has; None of a stream, and of none."""
    return None if split is None or is_stream(split) else len(split)


def _lacks(error: Exception) -> dict[str, str]:
    """Why nothing was measured, and what to do about it."""
    what, hint = (
        (error.message, error.hint) if isinstance(error, XrunError) else (in_short(error), "")
    )
    if is_of_the_network(error):
        what = f"no connection to what the recipe names ({what.rstrip('.')})"
        hint = hint or "With a network the same command measures it."
    return {"lacks": what, "hint": hint}


def main(plan_path: str) -> int:
    """Measure, and write down what was found or what is missing; 0 in either case."""
    plan = Plan.read(Path(plan_path))
    path = RunFolder(plan.folder).cost
    try:
        write_json(path, {"cost": cost_of(plan).to_json()})
    except Exception as error:  # a component may raise anything
        write_json(path, _lacks(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
