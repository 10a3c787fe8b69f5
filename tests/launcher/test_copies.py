"""`xrun new`: a recipe from elsewhere, copied with all that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.git_host import STRANGER, bare, commit
from xrun.errors import RecipeError
from xrun.launcher.clone import Clone, cloned
from xrun.launcher.copies import copy
from xrun.recipe.git_url import RecipeURL
from xrun.recipe.load import load_recipe

pytestmark = pytest.mark.once

MORE = {
    "experiments/more.yaml": "extends: ../recipes/tiny.yaml\nname: more\n"
    "requirements: needs/all.txt\nmodel: {args: {width: 4}}\n",
    "needs/all.txt": "einops\n",
    "unused.py": "",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare one; the test stands in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    bare(tmp_path / "stranger")
    return tmp_path / "stranger"


def fetched(repository: Path, path: str = "recipes/tiny.yaml") -> Clone:
    return cloned(RecipeURL.parse(f"git+file://{repository}@main#{path}"), [].append)


OWN = ["datasets/points.py", "models/line.py", "own/__init__.py", "own/width.py"]


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_copy_has_all_that_it_needs(repository: Path) -> None:
    """Its components and the modules that they import, nothing else; it checks, and can be copied
    twice."""
    made = copy(fetched(repository))
    assert made.recipe == Path.cwd() / "recipes" / "tiny.yaml"
    assert files(Path.cwd()) == sorted([*OWN, "recipes/tiny.yaml"])
    assert sorted(path.relative_to(Path.cwd()).as_posix() for path in made.files) == files(
        Path.cwd()
    )
    assert (Path.cwd() / "models/line.py").read_text() == STRANGER["models/line.py"]
    assert copy(fetched(repository)) == made


def test_what_it_extends_and_names_comes_along(repository: Path, tmp_path: Path) -> None:
    """Recipes from a folder of another name go below `recipes/`, where the components are found."""
    commit(repository.with_name("stranger.work"), MORE)
    made = copy(fetched(repository, "experiments/more.yaml"), tmp_path / "mine")
    assert made.recipe == tmp_path / "mine" / "recipes/experiments/more.yaml"
    recipes = ["recipes/experiments/more.yaml", "recipes/recipes/tiny.yaml"]
    assert files(tmp_path / "mine") == sorted([*OWN, *recipes, "needs/all.txt"])
    assert load_recipe(made.recipe).model.args == {"width": 4}


def test_nothing_is_overwritten(repository: Path) -> None:
    """Then nothing at all is written."""
    (Path.cwd() / "own").mkdir()
    (Path.cwd() / "own" / "width.py").write_text("mine")
    with pytest.raises(RecipeError, match=r"own/width\.py: there is another file already"):
        copy(fetched(repository))
    assert files(Path.cwd()) == ["own/width.py"]


def test_libraries_of_a_project_are_not_guessed(repository: Path) -> None:
    """What stands in its pyproject.toml stays there."""
    text = STRANGER["recipes/tiny.yaml"] + "requirements: .\n"
    project = "[project]\nname = 'stranger'\nversion = '1'\ndependencies = ['einops']\n"
    work = repository.with_name("stranger.work")
    commit(work, {"recipes/tiny.yaml": text, "pyproject.toml": project})
    with pytest.raises(RecipeError, match="Run it by its URL, or clone the repository"):
        copy(fetched(repository))
    assert files(Path.cwd()) == []
