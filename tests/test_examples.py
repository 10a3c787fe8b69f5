"""The project of examples/ trains in a fresh place, and all of it would travel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.paths import ROOT
from support.running import ended, start
from xrun.launcher.project import Project, left_at_home
from xrun.recipe.load import load_recipe
from xrun.run.folder import runs_in
from xrun.run.plan import Plan, make_plan

EXAMPLE = ROOT / "examples" / "iris"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy outside of this checkout, without git."""
    made = tmp_path / "project"
    shutil.copytree(EXAMPLE, made, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (tmp_path / "elsewhere" / "home").mkdir(parents=True)
    return made


def plan(project: Path, name: str = "iris") -> Plan:
    path = project / "recipes" / f"{name}.yaml"
    return make_plan(load_recipe(path), path, environ={})


def test_it_trains_wherever_the_command_is_typed(project: Path) -> None:
    """With its package, its data file and its library."""
    command = start(project.parent / "elsewhere", str(project / "recipes/iris.yaml"), "--yes")
    done = ended(command)
    assert done.code == 0, done.err
    best = runs_in(project / "runs")[0].report().metrics["val/accuracy"]
    assert best >= 0.9


def test_an_edit_in_its_package_is_another_run(project: Path) -> None:
    before = plan(project).run
    measures = project / "src/flowers/measures.py"
    measures.write_text(measures.read_text().replace("organ=2", "side=2"))
    assert plan(project).run != before


def test_its_package_its_data_and_its_library_travel() -> None:
    on_clouds = plan(EXAMPLE, "iris_spot")
    assert {
        "data/iris.csv",
        "datasets/flowers_csv.py",
        "models/flower_net.py",
        "pyproject.toml",
        "src/flowers/__init__.py",
        "src/flowers/measures.py",
        "src/flowers/table.py",
    } <= set(Project(on_clouds).files)
    assert left_at_home(on_clouds) == []
    assert [text.partition(">")[0] for text in on_clouds.libraries.wanted] == ["einops"]
