"""What a person installs works without this checkout: the wheel, built from the source
distribution, in an empty environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.once

FOLDERS = ("models", "datasets", "recipes")
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What a program printed; it has to end with 0."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that both are complete."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.e2e
def test_the_wheel_is_as_an_index_wants_it(wheel: Path) -> None:
    """What `make dist` asks of it."""
    program = ROOT / ".venv-tools/bin/check-wheel-contents"
    assert program.is_file(), "run: make e2e, or make .venv-tools/stamp"
    run(program, wheel, cwd=ROOT)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what the wheel says it needs, and
    nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(
        folder / "venv/bin/python",
        *install,
        "-c",
        ROOT / "constraints" / "cloud.txt",
        wheel,
        cwd=folder,
    )
    return folder / "venv/bin/python"


def elsewhere(python: Path, **more: str) -> dict[str, str]:
    """The environment of somebody who has only installed the wheel."""
    return {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "LANG": "C.UTF-8",
        **more,
    }


def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_top_level_is_ours_alone(wheel: Path) -> None:
    """`datasets` and `models` at the top level would overwrite other people's packages."""
    top = {name.split("/")[0] for name in files(wheel)}
    assert {"xrun", "xrun_sky"} == {name for name in top if not name.endswith(".dist-info")}
    assert len(top) == 3


@pytest.mark.parametrize("folder", FOLDERS)
def test_components_and_recipes_travel_inside(wheel: Path, folder: str) -> None:
    here = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
    assert here
    assert {f"xrun/components/{folder}/{name}" for name in here} <= files(wheel)
    assert not [
        name
        for name in files(wheel)
        if "__pycache__" in name or name.endswith(f"{folder}/__init__.py")
    ]


def test_what_pages_embed_travels_with_its_licence(wheel: Path) -> None:
    assets = ROOT / "runner" / "xrun" / "pages" / "assets"
    here = {path.relative_to(assets).as_posix() for path in assets.rglob("*") if path.is_file()}
    assert "uplot/LICENSE" in here
    assert {f"xrun/pages/assets/{name}" for name in here} <= files(wheel)


def test_imports_from_the_wheel_alone(python: Path, tmp_path: Path) -> None:
    show = "import sys, xrun.components as c; print(c.__file__, *c.__path__, *sys.path, sep='\\n')"
    lines = run(python, "-c", show, cwd=tmp_path, env=elsewhere(python)).splitlines()
    assert lines[0].startswith(str(python.parents[1]))
    assert not [line for line in lines if Path(line).is_relative_to(ROOT)]


def test_answers_help(python: Path, tmp_path: Path) -> None:
    shown = run(python.with_name("xrun"), "--help", cwd=tmp_path, env=elsewhere(python))
    assert "check" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", RECIPES)
def test_checks_a_recipe_copied_out_of_the_wheel(
    wheel: Path, python: Path, tmp_path: Path, recipe: str
) -> None:
    """The project has only the folder `recipes`, so its components come out of the wheel."""
    root = "xrun/components/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{root}recipes/"):
                path = tmp_path / name.removeprefix(root)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    command = ("check", f"recipes/{recipe}")
    run(python.with_name("xrun"), *command, cwd=tmp_path, env=elsewhere(python))


CLOUD = "hardware={any_of: [{accelerators: T4, spot: false}]}"
TRAINING = "Training on this machine needs torch, accelerate, safetensors and numpy"
HUB = "`checkpoint.store: hub` needs huggingface_hub"
ABSENT = "not installed here. Install with: pip install"


@pytest.fixture(scope="module")
def first(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder after `xrun init`."""
    folder = tmp_path_factory.mktemp("first")
    said = run(python.with_name("xrun"), "init", cwd=folder, env=elsewhere(python))
    assert said == (
        "Wrote recipes/my_first.yaml. Next: xrun check recipes/my_first.yaml, then xrun"
        f" recipes/my_first.yaml\n{TRAINING}, which are {ABSENT} 'xrun[train]'\n"
    )
    return folder


def test_check_notes_what_keeps_a_recipe_from_running_here(first: Path, python: Path) -> None:
    """It is no problem of the recipe: the exit code is 0."""
    check = [python.with_name("xrun"), "check", "recipes/my_first.yaml"]
    note = f"  note: {TRAINING}, which are {ABSENT} 'xrun[train]'"
    told = run(*check, cwd=first, env=elsewhere(python)).splitlines()
    assert told == ["recipes/my_first.yaml: my-first is fine.", note]
    assert run(*check, "--json", cwd=first, env=elsewhere(python)) == "[]\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("recipes/my_first.yaml", f"{TRAINING}, which are {ABSENT} 'xrun[train]'"),
        ("drill recipes/my_first.yaml", f"{TRAINING}, which are {ABSENT} 'xrun[train]'"),
        (
            "recipes/my_first.yaml -s checkpoint.store=hub -s tracking.wandb.project=p",
            f"{TRAINING}, {HUB}, `tracking.wandb` needs wandb, which are {ABSENT} 'xrun[train]'",
        ),
        (
            f"recipes/my_first.yaml -s '{CLOUD}'",
            f"Running on clouds needs skypilot, which is {ABSENT} 'xrun[cloud]'",
        ),
        (
            f"recipes/my_first.yaml -s '{CLOUD}' -s checkpoint.store=hub",
            f"Running on clouds needs skypilot, {HUB}, which are {ABSENT} 'xrun[cloud]'",
        ),
        (
            f"plan recipes/my_first.yaml -s '{CLOUD}'",
            f"Running on clouds needs skypilot, which is {ABSENT} 'xrun[cloud]'",
        ),
        (
            "check --online recipes/my_first.yaml",
            f"The Hugging Face Hub needs huggingface_hub, which is {ABSENT} 'xrun[train]'",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    first: Path, python: Path, command: str, said: str
) -> None:
    """With exit code 3, before anything is written."""
    before = sorted(first.rglob("*"))
    done = subprocess.run(
        [python.with_name("xrun"), *shlex.split(command)],
        cwd=first,
        env=elsewhere(python),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"xrun: {said}\n")
    assert sorted(first.rglob("*")) == before


def test_a_run_on_the_hub_is_read_with_its_library(
    first: Path, python: Path, tmp_path: Path
) -> None:
    """`status` says of this run alone that it cannot be read here; `report` and `sync` end
    with 3."""
    xrun, env = python.with_name("xrun"), elsewhere(python)
    overrides = ["-s", "checkpoint.store=hub://me/run", "-s", "tracking.wandb.project=p"]
    plan = run(
        xrun, "plan", first / "recipes/my_first.yaml", *overrides, "--json", cwd=tmp_path, env=env
    )
    name = json.loads(plan)["run"]
    (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / name / "plan.json").write_text(plan.replace(f"{first}/runs", "runs"))
    hub = f"The Hugging Face Hub needs huggingface_hub, which is {ABSENT} 'xrun[train]'"
    told = run(xrun, "status", cwd=tmp_path, env=env).splitlines()
    assert told[1:] == [f"{name}  unreadable", f"{name}: {hub}"]
    wandb = f"Weights & Biases needs wandb, which is {ABSENT} 'xrun[train]'"
    for command, said in (("report", hub), ("sync", wandb)):
        asked = [xrun, command, name]
        done = subprocess.run(
            asked, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, "", f"xrun: {said}\n")


def test_a_component_without_its_library_names_the_extra(python: Path, tmp_path: Path) -> None:
    """A run that was started by other means than the command, which looks before."""
    build = (
        "from pathlib import Path; from xrun import component, errors\n"
        "try: component.load_build('datasets', 'digits', Path())\n"
        "except errors.ComponentError as error: print(error.hint)"
    )
    said = run(python, "-c", build, cwd=tmp_path, env=elsewhere(python))
    assert said == "Install with: pip install 'xrun[train]'\n"


def test_the_extra_of_clouds_is_enough_to_launch(python: Path, tmp_path: Path) -> None:
    """State on the Hub, which spot machines need, is asked about before a launch."""
    ask = "from xrun.libraries import extras_of; print(*extras_of('huggingface_hub'))"
    assert run(python, "-c", ask, cwd=tmp_path, env=elsewhere(python)) == "cloud train\n"


def test_the_page_for_the_index_stands_alone(python: Path, tmp_path: Path) -> None:
    """Nothing on it needs a checkout: no `make`, and no link into the repository."""
    show = "from importlib.metadata import metadata; print(metadata('xrun').get_payload())"
    page = run(python, "-c", show, cwd=tmp_path, env=elsewhere(python))
    assert "pip install 'xrun[train]'" in page
    assert "make " not in page
    assert re.findall(r"\]\((?!https://)[^)]*\)", page) == []


def test_trains_from_the_wheel(python: Path, tmp_path: Path) -> None:
    """From `xrun init` to the final weights; only the libraries are this environment's.

    PYTHONPATH leads to them and not to this checkout: the `.pth` file of an editable installation
    is not read there.
    """
    env = elsewhere(python, PYTHONPATH=sysconfig.get_path("purelib"), HF_HUB_OFFLINE="1")
    xrun, path = python.with_name("xrun"), "recipes/my_first.yaml"
    run(xrun, "init", cwd=tmp_path, env=env)
    assert run(xrun, "check", path, cwd=tmp_path, env=env) == f"{path}: my-first is fine.\n"
    said = run(xrun, path, "-s", "train.epochs=3", cwd=tmp_path, env=env)
    assert "Finished my-first-" in said
    assert len(list(tmp_path.rglob("model/*.safetensors"))) == 1
