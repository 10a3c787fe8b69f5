"""The files that a component consists of: its own, and the project's that it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT, write
from support.running import Project
from xrun.component import load_build
from xrun.errors import ComponentError
from xrun.run.identity import identity
from xrun.run.plan import older_rules
from xrun.run.sources import sources

MODELS = sorted((ROOT / "models").glob("*.py"))
DATASETS = sorted((ROOT / "datasets").glob("*.py"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a dataset."""
    write(tmp_path / "datasets" / "count.py", "def build(n=3):\n    return {'train': [n]}\n")
    return tmp_path


def test_sources_follow_imports(project: Path) -> None:
    """The digest of a run sees the component's file and every file of its project that it imports,
    and nothing else."""
    text = (
        "import json, torch\nfrom . import a\nfrom .b import thing\nfrom ..datasets.count import"
        " build as count\nimport xrun.components.models.c\n\n\ndef build():\n    from"
        " xrun.components.models import d\n"
    )
    write(project / "models" / "m.py", text)
    for name in "abcd":
        write(project / "models" / f"{name}.py", "from . import m\n")
    write(project / "models" / "unused.py", "")
    found = sources("models", "m", project)
    assert list(found) == ["datasets/count.py", *(f"models/{name}.py" for name in "abcdm")]
    assert found["models/m.py"] == text.encode()


def test_sources_of_a_package(project: Path) -> None:
    """A folder beside the component counts with its `__init__.py` and the modules that are
    imported."""
    write(project / "models" / "m.py", "from .blocks.attention import head\n\n\ndef build(): ...\n")
    write(project / "models" / "blocks" / "__init__.py", "from .norm import norm\n")
    write(project / "models" / "blocks" / "norm.py", "")
    write(project / "models" / "blocks" / "attention.py", "from . import norm\n")
    write(project / "models" / "blocks" / "unused.py", "")
    expected = [
        "models/blocks/__init__.py",
        "models/blocks/attention.py",
        "models/blocks/norm.py",
        "models/m.py",
    ]
    assert list(sources("models", "m", project)) == expected


@pytest.mark.parametrize(
    "path", [*MODELS, *DATASETS], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_shipped_sources(path: Path) -> None:
    """The sources of a shipped component hold its own file."""
    kind: Any = path.parent.name
    assert sources(kind, path.stem, ROOT)[f"{kind}/{path.name}"] == path.read_bytes()


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("import mylib", ["mylib/__init__.py"]),
        ("import mylib.deep.layers as x", ["mylib/__init__.py", "mylib/deep/layers.py"]),
        ("from mylib import layers", ["mylib/__init__.py", "mylib/layers.py"]),
        ("from mylib.layers import *", ["mylib/__init__.py", "mylib/layers.py"]),
        ("import helper as h, json, torch", ["helper.py"]),
        ("def f():\n    from helper import g", ["helper.py"]),
        ("try:\n    import fast\nexcept ImportError:\n    import helper", ["helper.py"]),
        ("from ..helper import g", ["helper.py"]),
        ("from .. import helper", ["helper.py"]),
        ("from models.sibling import g", ["models/sibling.py"]),
        ("from .sibling import g", ["models/sibling.py"]),
        ("import xrun.components.helper", ["helper.py"]),
        ("import importlib\nimportlib.import_module('mylib.layers')", ["mylib/__init__.py",
         "mylib/layers.py"]),
        ("import lib_of_src.part", ["src/lib_of_src/__init__.py", "src/lib_of_src/part.py"]),
        ("import nowhere, xrun.errors, random", []),
        ("import first", ["first.py", "mylib/__init__.py", "mylib/layers.py", "second.py"]),
        ("import broken", ["broken.py"]),
    ],
    ids=ascii,
)  # fmt: skip
def test_the_projects_own_modules_count(project: Path, written: str, files: list[str]) -> None:
    """However a component writes it, through other modules, and also what may never be reached;
    never what is not the project's."""
    for name in ("mylib/__init__", "mylib/layers", "mylib/deep/layers", "helper", "random", "xrun",
                 "models/sibling", "src/lib_of_src/__init__", "src/lib_of_src/part"):  # fmt: skip
        write(project / f"{name}.py", "")
    write(project / "first.py", "import second\n")
    write(project / "second.py", "import first\nfrom mylib import layers\n")
    write(project / "broken.py", "print 'of another Python'\n")
    write(project / "models" / "m.py", f"{written}\n\n\ndef build(): ...\n")
    assert list(sources("models", "m", project)) == sorted([*files, "models/m.py"])


def test_no_module_runs(project: Path) -> None:
    """Sources are read; nothing of the project is imported."""
    write(project / "mylib" / "__init__.py", "raise SystemExit(9)\n")
    write(project / "models" / "m.py", "import mylib\n\n\ndef build(): ...\n")
    code = (
        "import sys; from pathlib import Path; from xrun.run.sources import sources;"
        f"print(len(sources('models', 'm', Path({str(project)!r}))), 'mylib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


@pytest.fixture
def with_helper(tmp_path: Path) -> Project:
    """A project whose model takes a part from a package of the project's own."""
    made = Project(tmp_path)
    made.write("mylib/__init__.py", "from .parts import WIDTH\n")
    made.write("mylib/parts.py", "WIDTH = 8\n")
    text = (tmp_path / "models" / "line.py").read_text()
    made.write("models/line.py", f"from mylib import WIDTH\n{text}")
    return made


def test_an_edit_in_an_own_module_is_another_run(with_helper: Project) -> None:
    """What it computes counts; comments and layout do not, as in a component."""
    before = with_helper.plan()
    assert set(before.sources) >= {"mylib/__init__.py", "mylib/parts.py", "models/line.py"}
    with_helper.write("mylib/parts.py", "# In units.\nWIDTH = (8)\n")
    assert with_helper.plan().run == before.run
    with_helper.write("mylib/parts.py", "WIDTH = 16\n")
    assert with_helper.plan().run != before.run


def test_a_run_of_before_keeps_its_id(with_helper: Project) -> None:
    """Rule 2 never saw own modules: its run is found whatever happened to them; where a project has
    none, both rules make the same id."""
    plan = with_helper.plan()
    before = identity(plan.load_recipe(), with_helper.root, 2)
    assert before is not None
    assert set(before.mathematics["sources"]) == {"models/line.py", "datasets/points.py"}
    older = [each for each in older_rules(plan) if each.rule == 2]
    assert [each.digest for each in older] == [before.digest]
    with_helper.write("mylib/parts.py", "WIDTH = 16\n")
    assert identity(plan.load_recipe(), with_helper.root, 2) == before
    with_helper.write("models/line.py", "def build(width=8): ...\n")
    alone = with_helper.plan()
    assert (made := identity(alone.load_recipe(), with_helper.root, 2)) is not None
    assert made.digest == alone.digest
    assert 2 not in {each.rule for each in older_rules(alone)}


@pytest.mark.parametrize(
    ("written", "place", "way_out"),
    [
        ("from layers import head", "models/layers.py", "from .layers import ..."),
        ("from layers import head", "datasets/layers.py", "from ..datasets.layers import ..."),
        ("import layers", "lib/layers.py", "from lib.layers import ..."),
        ("import layers", "lib/layers/__init__.py", "from lib.layers import ..."),
        ("import mylib.nowhere", "mylib/__init__.py", ""),
        ("import no_such_library", "mylib/__init__.py", ""),
    ],
)
def test_nobody_is_sent_to_install_a_strangers_package(
    project: Path, written: str, place: str, way_out: str
) -> None:
    """A module that is not found is looked for in the project, and no name of a package is
    guessed."""
    write(project / place, "")
    write(project / "models" / "m.py", f"{written}\n\n\ndef build(): ...\n")
    with pytest.raises(ComponentError) as error:
        load_build("models", "m", project)
    assert "pip install" not in str(error.value)
    found = f"It is the project's own {place.removesuffix('/__init__.py')}. Write `{way_out}`."
    assert (error.value.hint == found) == bool(way_out)
