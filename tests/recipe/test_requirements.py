"""`requirements:` of a recipe: three ways to name libraries, and everything wrong at its place,
without a network.

Covers `xrun.recipe.missing`.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.missing import missing, missing_problem
from xrun.recipe.requirements import PINS, pins, wanted
from xrun.run.identity import identity

pytestmark = pytest.mark.once
PROJECT = """\
[project]
name = "My.Project"
dependencies = ["einops", "xrun>=0.1"]
[project.optional-dependencies]
train = ["timm>=1.0", 'colorama; sys_platform == "win32"']
all = ["my-project[train]", "lpips"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def recipe(project: Path, written: str, *, clouds: bool = True) -> Path:
    """A recipe with this value of `requirements`."""
    hardware = "{any_of: [{accelerators: 'L4:1', spot: false}]}" if clouds else "local"
    path = project / "recipes" / "r.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "name: r\nmodel: {name: mlp, args: {inputs: 64, classes: 10}}\ndataset: {name: digits}\n"
        "task: classification\n"
        f"hardware: {hardware}\ntrain: {{steps: 1, global_batch: 8}}\nrequirements: {written}\n"
    )
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    return [str(problem) for problem in error.value.problems]


def names(path: Path, root: Path) -> tuple[str, ...]:
    return wanted(load_recipe(path).requirements, root, str(path))


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("[einops, 'timm >= 1.0', torch>=2]", ("einops", "timm>=1.0", "torch>=2")),
        ("[]", ()),
        ("requirements.txt", ("einops==0.8.1", "timm[extra]>=1")),
        (".", ("einops",)),
        (".[train]", ("einops", "timm>=1.0")),
        (".[all]", ("einops", "lpips", "timm>=1.0")),
    ],
)
def test_libraries_are_named_in_three_ways(
    project: Path, written: str, named: tuple[str, ...]
) -> None:
    """xrun itself and what is for other systems is left out; hashes are made anew."""
    (project / "requirements.txt").write_text(
        "# ours\neinops==0.8.1 \\\n    --hash=sha256:00  # one\n\ntimm[extra]>=1\n"
    )
    assert names(recipe(project, written), project) == named


@pytest.mark.parametrize(
    ("written", "place", "said"),
    [
        ("[einops, 'torch<2']", "r.yaml:7:24", f"contradicts torch=={pins()['torch']}"),
        ("['xrun==0.0.1']", "r.yaml:7:16", f"contradicts xrun=={version('xrun')}"),
        ("['a b']", "r.yaml:7:16", "it is not a requirement"),
        ("['-e .']", "r.yaml:7:16", "options, other requirements files"),
        ("['x @ git+https://github.com/x/y']", "r.yaml:7:16", "only that of a wheel"),
        ("no.txt", "r.yaml:7:15", "there is no file"),
        ("../no.txt", "r.yaml:7:15", "it is not below the project"),
        ("einops", "r.yaml:7:15", "Write `[einops]`"),
        (".[tran]", "r.yaml:7:15", "has no extra `tran`"),
        (".[tran]", "r.yaml:7:15", "Did you mean `train`?"),
        ("{a: b}", "r.yaml:7:15", "requirements: must be a list or text"),
        ("own.txt", "own.txt:3:1", "contradicts numpy=="),
    ],
)
def test_what_is_wrong_is_told_at_its_place(
    project: Path, written: str, place: str, said: str
) -> None:
    (project / "own.txt").write_text("einops \\\n  ==0.8.1\nnumpy<1\n")
    (told,) = problems(recipe(project, written))
    assert place in told
    assert said in told


def test_a_password_is_told_and_not_shown(project: Path) -> None:
    """Neither from the recipe nor from a file."""
    secret = "https://me:hunter2hunter2@host/x-1.0-py3-none-any.whl"
    (project / "own.txt").write_text(f"x @ {secret}\n")
    for written in (f"['x @ {secret}']", "own.txt"):
        (told,) = problems(recipe(project, written))
        assert "looks like a secret" in told
        assert "hunter2" not in told


def test_the_digest_stays(project: Path) -> None:
    """Another library is a condition of a step, and no other run."""
    plain = identity(load_recipe(recipe(project, "[]")), project)
    assert identity(load_recipe(recipe(project, "[einops]")), project) == plain


def test_pins_are_those_that_machines_install() -> None:
    assert pins()["huggingface-hub"] in PINS.read_text()
    assert len(pins()) > 70


def test_what_is_missing_here_is_told_with_the_command(project: Path) -> None:
    """A version that would not do as well."""
    click = version("click")
    named = ("click", f"click=={click}", "click>=99", "no-such-library-of-ours[x]>=1")
    assert missing(named) == ["click>=99", "no-such-library-of-ours[x]>=1"]
    told = missing_problem(named, str(recipe(project, "[click]")))
    assert told is not None
    assert (told.line, told.column, told.key) == (7, 15, "requirements")
    assert told.what == (
        f"not installed here: click>=99 ({click} is), no-such-library-of-ours[x]>=1"
    )
    assert told.hint == "Type `pip install 'click>=99' 'no-such-library-of-ours[x]>=1'`."
    assert missing_problem(("click",), "r.yaml") is None


@pytest.mark.parametrize(("clouds", "code"), [(True, 0), (False, 2)])
def test_check_says_what_is_missing(project: Path, clouds: bool, code: int) -> None:
    """It is no Problem where machines install it."""
    path = recipe(project, "[no-such-library-of-ours]", clouds=clouds)
    command = [sys.executable, "-m", "xrun", "check", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert f"{path}:7:15: requirements: not installed here: no-such-library-of-ours." in done.stderr
    assert "`pip install no-such-library-of-ours`" in done.stderr
    assert ("r is fine" in done.stdout) is clouds


def test_a_local_run_does_not_begin_without_them(project: Path) -> None:
    path = recipe(project, "[no-such-library-of-ours]", clouds=False)
    command = [sys.executable, "-m", "xrun", "run", "--yes", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "`pip install no-such-library-of-ours`" in done.stderr
    assert not list((project / "runs").glob("*/state"))
