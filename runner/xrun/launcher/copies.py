"""`xrun new`: a recipe of somebody else's repository becomes one's own, with all that it needs of
that repository: what it extends, its components, the modules that they import, and the files that
it names. All is read, and nothing executed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..component import project_root
from ..errors import Problem, RecipeError
from ..recipe.load import load_recipe
from ..recipe.paths import path_of
from ..recipe.schema import Recipe
from ..recipe.shipped import write_new
from ..recipe.yaml_nodes import Node, read_nodes
from ..run.folder import project_here
from ..run.plan import Plan, make_plan
from ..run.sources import sources
from .clone import Clone
from .project import Project


@dataclass(frozen=True)
class Copied:
    """Where the recipe is now, and all files that it came with."""

    recipe: Path
    files: tuple[Path, ...]


def copy(clone: Clone, folder: Path | None = None) -> Copied:
    """Copy a recipe into a project: what is in `folder`, by default where the command is typed.

    Raises:
        RecipeError: it is wrong where it is, or would be here; another file is in the way; then
            nothing is written.
    """
    recipe = load_recipe(clone.recipe)
    plan = make_plan(recipe, clone.recipe, origin=clone.origin)
    _refuse_the_project_s_own(recipe, clone)
    root, target = Path(plan.project), folder or project_here()
    recipes = [path.relative_to(root) for path in _chain(clone.recipe)]
    others = sorted({Path(place) for place in _others(plan, recipe, root)} - set(recipes))
    beside = _beside(target, recipes[0])
    places = {beside / path: root / path for path in recipes} | {p: root / p for p in others}
    for path in places.values():
        if not path.resolve().is_relative_to(clone.folder):
            raise _refused(path, "it is a link that leads out of the repository")
    _refuse_other_components(plan, target)
    write_new({target / place: path.read_bytes() for place, path in places.items()})
    made = target / beside / recipes[0]
    load_recipe(made)
    return Copied(made, tuple(target / place for place in places))


def _chain(path: Path) -> list[Path]:
    """The recipe and those that it extends."""
    found = [path]
    while base := _extended(found[-1]):
        found.append(base)
    return [each.resolve() for each in found]


def _extended(path: Path) -> Path | None:
    tree, _ = read_nodes(path.read_bytes(), str(path))
    base = tree.child("extends")
    named = base.value if isinstance(base, Node) and isinstance(base.value, str) else ""
    return Path(os.path.normpath(path.parent / named)) if named else None


def _others(plan: Plan, recipe: Recipe, root: Path) -> Iterator[str]:
    """What else it needs of its project, by place."""
    project = Project(plan)
    for places in project.imported.values():
        yield from places
    named = [recipe.requirements] if isinstance(recipe.requirements, str) else []
    local = (each.source.path(root) for each in recipe.files.values() if each.source)
    arguments = [*recipe.model.args.values(), *recipe.dataset.args.values()]
    paths = [*(path_of(each, root) for each in [*arguments, *named]), *map(_path, local)]
    for path in paths:
        if path is not None and path.exists() and path.resolve().is_relative_to(root):
            yield from _within(path.resolve().relative_to(root).as_posix(), project.files)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _within(place: str, files: list[str]) -> Iterator[str]:
    return (each for each in files if each == place or each.startswith(f"{place}/"))


def _beside(target: Path, recipe: Path) -> Path:
    """Where recipes go in a project: as they lay, or below `recipes/` where only from there the
    components would be found.

    Raises:
        RecipeError: the folder belongs to a project around it.
    """
    for beside in (Path(), Path("recipes")):
        if project_root(target / beside / recipe) == target.resolve():
            return beside
    project = project_root(target / "recipes" / recipe)
    what = f"its recipes would belong to the project {project}, which has a pyproject.toml"
    raise _refused(target, what, f"Name that folder in place of {target}.")


def _refuse_the_project_s_own(recipe: Recipe, clone: Clone) -> None:
    if isinstance(recipe.requirements, str) and recipe.requirements.startswith("."):
        what = "its `requirements` are those of its own pyproject.toml, which is not copied"
        hint = f"Run it by its URL, or clone the repository: git clone {clone.origin.repository}"
        raise _refused(clone.recipe, what, hint)


def _refuse_other_components(plan: Plan, target: Path) -> None:
    """A component that xrun brings along is not to become the target's own of that name."""
    for kind, key in (("models", "model"), ("datasets", "dataset")):
        found = sources(kind, str(plan.recipe[key]["name"]), Path(plan.project))  # type: ignore[arg-type]
        for place, content in found.items():
            path = target / place
            if path.is_file() and path.read_bytes() != content:
                raise _refused(path, "there is another file already", "Choose another folder.")


def _refused(path: Path, what: str, hint: str = "") -> RecipeError:
    return RecipeError([Problem(str(path), 0, 0, "", what, hint=hint)])
