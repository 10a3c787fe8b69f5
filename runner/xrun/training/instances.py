"""The model and the dataset that a recipe names, built by their components."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import component
from ..checkpoint.state import check_own_tensors
from ..data.fingerprint import count_code, keeps_rows
from ..data.lanes import check_lanes
from ..data.loader import check_splits
from ..data.randomness import INIT, seed_generators
from ..data.stream import check_stream
from ..errors import ComponentError, XrunError
from ..recipe.schema import ModelRef, Recipe
from ..run.code_digest import digest_of_all
from ..run.plan import Plan
from ..run.sources import sources
from .companions import Companions
from .contract import Components, in_short, line_of, looked_for
from .evaluate import check_validation
from .failure import is_of_the_machine
from .freezing import held_as_read
from .mapped import placing
from .miniature import Miniature
from .modes import begin_training


def splits_of(plan: Plan) -> dict[str, Any]:
    """The splits of a plan's dataset; few samples of them in a rehearsal."""
    build = functools.partial(
        build_splits, plan.load_recipe(), Path(plan.project), plan.whole_batch
    )
    return Miniature(plan).splits(build) if plan.rehearsal else build()


def build_splits(recipe: Recipe, project: Path, whole_batch: int = 0) -> dict[str, Any]:
    """The dataset's splits by their names, `train` among them; of a rehearsal's recipe with the
    global batch of the run, which lanes share.

    Raises:
        ComponentError: the component does not give them.
    """
    dataset, train = recipe.dataset, recipe.train
    build = component.load_build("datasets", dataset.name, project)
    code = sources("datasets", dataset.name, project)
    if keeps_rows(code.values()):
        count_code(code, digest_of_all(code))
    seed_generators(train.seed, INIT, 1)
    splits = call_build(f"datasets/{dataset.name}.py", build, dataset.args)
    check_splits(splits, dataset.name)
    check_stream(dataset.name, splits["train"], train.epochs)
    check_lanes(dataset.name, splits["train"], whole_batch or train.global_batch)
    check_validation(splits.get("val"), dataset.name)
    Companions.of(splits["train"], f"datasets/{dataset.name}.py")
    if train.export == "best" and splits.get("val") is None:
        raise ComponentError(
            f"train.export: `best` needs the split 'val', and datasets/{dataset.name}.py gives only"
            f" {', '.join(map(str, splits))}."
        )
    return dict(splits)


def build_model(recipe: Recipe, project: Path) -> nn.Module:
    """The model as built from the recipe's seed, the same on every process; it trains, except for
    what `build` has put into evaluation mode.

    Raises:
        ComponentError: the component does not give one.
    """
    return build_ref(recipe.model, recipe.train.seed, project)


def build_ref(ref: ModelRef, seed: int, project: Path) -> nn.Module:
    """As `build_model`, of what names the model and of the seed."""
    model = build_unchecked(ref, seed, project)
    check_own_tensors(model, f"models/{ref.name}.py")
    return model


def build_unchecked(ref: ModelRef, seed: int, project: Path) -> nn.Module:
    """As `build_ref`, whatever a checkpoint could hold of it: on the meta device nothing."""
    build = component.load_build("models", ref.name, project)
    seed_generators(seed, INIT, 0)
    args = {**ref.args, "trust_remote_code": True} if ref.trust_remote_code else ref.args
    with held_as_read(ref), placing():
        model = call_build(f"models/{ref.name}.py", build, args)
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise ComponentError(
            f"models/{ref.name}.py: build() must return a torch.nn.Module (got {got})."
        )
    begin_training(model)
    return model


def components_of(recipe: Recipe) -> Components:
    """The recipe's components by their files."""
    return Components(f"models/{recipe.model.name}.py", f"datasets/{recipe.dataset.name}.py")


def call_build(what: str, build: Callable[..., Any], args: Mapping[str, Any]) -> Any:
    """Call a component's `build`; what it raises becomes one sentence; a failing network is left to
    be tried again."""
    try:
        return build(**args)
    except XrunError:
        raise
    except BaseException as error:  # a component may raise anything
        if is_of_the_machine(error):
            raise  # what fails now may not fail in the next attempt
        where = line_of(error, what)
        told = f"{what}: build() failed: {in_short(error)}{where}."
        raise ComponentError(told, looked_for(error)) from error


def revision_of(split: Any) -> str | None:
    """Which version of the data a split has, if its dataset says so."""
    revision = getattr(split, "revision", None)
    return None if revision is None or callable(revision) else str(revision)
