"""What a recipe from elsewhere would run, fetch and be given, said before its first run; and that
somebody here has agreed to it, which is remembered per commit.

What was agreed to is what was shown: another recipe of the commit, or a key that was overridden,
asks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..errors import Problem, RecipeError
from ..files import needed, read_json, write_json
from ..recipe.load import at_their_places
from ..recipe.schema import Recipe
from ..run.plan import Plan
from .clone import Clone
from .preflight import named_on_hub
from .project import Project
from .secrets import secret_names


def demands(plan: Plan, clone: Clone) -> list[str]:
    """What a plan's recipe would do here and on machines, a line for each.

    Raises:
        RecipeError: a component of it is a link that leads out of the repository.
    """
    recipe = plan.load_recipe()
    facts = [*_runs(plan, clone, recipe), *_fetches(plan, recipe), *_is_given(plan, recipe)]
    return [f"  {word:<8} {text}" for word, text in [*facts, *_where(plan, recipe)]]


def has_agreed(clone: Clone, told: list[str]) -> bool:
    """Whether somebody here has said yes to all of this."""
    return _digest(told) in (read_json(clone.consent, list) or [])


def agree(clone: Clone, told: list[str]) -> None:
    """Remember a yes."""
    with needed(clone.consent.parent):
        write_json(clone.consent, [*(read_json(clone.consent, list) or []), _digest(told)])


def _digest(told: list[str]) -> str:
    return blake3("\n".join(told).encode()).hexdigest()


def _runs(plan: Plan, clone: Clone, recipe: Recipe) -> Iterator[tuple[str, str]]:
    own = sorted({place for places in Project(plan).imported.values() for place in places})
    root = Path(plan.project)
    for place in own:
        if not (root / place).resolve().is_relative_to(clone.folder):
            raise RecipeError(at_their_places([_outside(place)], plan.recipe_path, plan.overrides))
    if own:
        yield "run", f"its own {', '.join(own)}, and what they call; the files are in {root}"
    else:
        yield "run", f"xrun's own models/{recipe.model.name}.py, datasets/{recipe.dataset.name}.py"
    for key, args in _arguments(recipe):
        if args.get("trust_remote_code"):
            yield "run", f"code that {args.get('name', 'a Hub repository')} brings ({key})"
    for setup in (recipe.setup, *(each.setup for each in recipe.hardware.any_of)):
        if setup and not recipe.hardware.local:
            yield "run", f"on each machine: {'; '.join(setup.strip().splitlines())}"


def _arguments(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    model = {**recipe.model.args, "trust_remote_code": recipe.model.trust_remote_code}
    yield "model.trust_remote_code", model
    yield "model.args.trust_remote_code", recipe.model.args
    yield "dataset.args.trust_remote_code", recipe.dataset.args


def _outside(place: str) -> Problem:
    key = "model.name" if place.startswith("models/") else "dataset.name"
    return Problem("", 0, 0, key, f"{place} is a link that leads out of the repository")


def _fetches(plan: Plan, recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key, kind, args in named_on_hub(recipe):
        if isinstance(name := args.get("name"), str):
            revision = f"@{args['revision']}" if args.get("revision") else ""
            yield "fetch", f"the {kind} {name}{revision} of the Hugging Face Hub ({key})"
    if wanted := plan.libraries.wanted:
        yield "install", ", ".join(wanted)
    for there, each in recipe.files.items():
        if each.volume is not None or (each.source is not None and each.source.scheme):
            yield "fetch", f"{each.volume or each.source} to {there} ({each.mode})"


def _is_given(plan: Plan, recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.hardware.local:
        yield "be given", "all that you can read, your environment and the network, as you"
    elif names := secret_names(recipe):
        yield "be given", f"the secrets {', '.join(names)}"
    for there, each in recipe.files.items():
        if each.source is not None and (path := each.source.path(plan.project)) is not None:
            yield "be given", f"{path} of this machine, as {there}"
    for name, value in recipe.env.items():
        yield "set", f"{name}={value}"


def _where(plan: Plan, recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.hardware.local:
        yield "train", "on this machine"
    for each in recipe.hardware.any_of:
        clouds = ", ".join(each.clouds) if each.clouds else "any cloud that you have enabled"
        image = f", image {each.image}" if each.image else ""
        machine = each.accelerators or "a machine without accelerators"
        yield "train", f"on {each.nodes} x {machine} of {clouds}{image}"
    yield "keep", f"its state in {plan.store or plan.home}"
    if wandb := plan.wandb:
        yield "tell", f"Weights & Biases, {wandb.entity or 'yours'}/{wandb.project}"
