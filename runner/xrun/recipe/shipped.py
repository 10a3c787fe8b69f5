"""The recipes that xrun brings along: what each is for, and its files, which `xrun init NAME`
copies into a folder of one's own."""

from __future__ import annotations

import itertools
import operator
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import component, components
from ..errors import Problem, RecipeError, did_you_mean
from .paths import path_of

_SCHEMA = Path("recipes", "recipe.schema.json")
"""For editors: the first line of each recipe names it."""


@dataclass(frozen=True)
class Shipped:
    """One of them; `root` is the folder that its `recipes/`, components and data lie in."""

    root: Path
    path: Path

    @property
    def name(self) -> str:
        """As it is typed: `chat-lora` for chat_lora.yaml."""
        return self.path.stem.replace("_", "-")

    @property
    def sentence(self) -> str:
        """What it is for: the first sentence of the comment that it begins with."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        header = itertools.takewhile(lambda line: line.startswith("#"), lines)
        told = (line[1:].strip() for line in header if not line.startswith("# yaml-language"))
        paragraph = itertools.takewhile(bool, itertools.dropwhile(operator.not_, told))
        return re.split(r"(?<=\.) (?=[A-Z0-9])", " ".join(paragraph), maxsplit=1)[0]

    def files(self) -> Iterator[Path]:
        """What it needs of what is here, relative to the root: itself, its components, and the data
        that its arguments name."""
        from .load import load_recipe

        recipe = load_recipe(self.path)
        yield self.path.relative_to(self.root)
        yield _SCHEMA
        for kind, part in (("models", recipe.model), ("datasets", recipe.dataset)):
            yield Path(kind, f"{part.name}.py")
            for value in part.args.values():
                path = path_of(value, self.root)
                if path is not None and path.is_file():
                    yield path.relative_to(self.root)


def shipped() -> list[Shipped]:
    """All of them, by their names."""
    root = next(each for each in components.roots(None) if (each / "recipes").is_dir())
    return [Shipped(root, path) for path in sorted((root / "recipes").glob("*.yaml"))]


def find(name: str) -> Shipped:
    """The one of this name, with `-` or `_`.

    Raises:
        RecipeError: there is none.
    """
    known = {each.name: each for each in shipped()}
    found = known.get(name.replace("_", "-"))
    if found is None:
        hint = f"{did_you_mean(name, known)} `xrun init --list` lists them; a path ends in .yaml."
        raise RecipeError([Problem(name, 0, 0, "", "there is no such recipe", hint=hint.strip())])
    return found


def copy(recipe: Shipped, folder: Path) -> Path:
    """Copy it with all that it needs; returns where the recipe is. What is there with the same
    content stays.

    Raises:
        RecipeError: another file is in the way, or the folder's recipes belong to a project around
            it, where its data would not be found. Then nothing is written.
    """
    path = folder / recipe.path.relative_to(recipe.root)
    if (project := component.project_root(path)) != folder.resolve():
        what = f"its recipes would belong to the project {project}, which has a pyproject.toml"
        raise _refused(folder, what, f"Type: xrun init {recipe.name} {project}")
    write_new({folder / name: (recipe.root / name).read_bytes() for name in recipe.files()})
    return path


def write_new(contents: Mapping[Path, bytes]) -> None:
    """Write files, all or none; one that is there with the same content stays.

    Raises:
        RecipeError: another file is in the way.
    """
    try:
        for target, content in contents.items():
            if os.path.lexists(target) and not _holds(target, content):
                raise _refused(target, "there is another file already", "Choose another folder.")
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        place = Path(error.filename or next(iter(contents)))
        what = f"it cannot be written: {error.strerror}"
        raise _refused(place, what, "Choose another folder.") from None


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _refused(path: Path, what: str, hint: str) -> RecipeError:
    return RecipeError([Problem(os.fspath(path), 0, 0, "", what, hint=hint)])
