"""A launch is one value: what was printed and asked about is what is submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.running import MODEL, Project
from support.sky_home import CLOUDS, SkyHome
from xrun.launcher.sky.launch import setup_of
from xrun.recipe.schema import Recipe

pytestmark = pytest.mark.cloud

PREPARED = """
import dataclasses, json, sys
from pathlib import Path
import yaml
from xrun.cli.offers import offers_json
from xrun.launcher.sky.launch import prepare
from xrun.recipe.load import load_recipe
from xrun.run.plan import make_plan

path = Path("recipes/tiny.yaml")
hardware = "hardware={any_of: [{accelerators: 'A100:8', spot: true}]}"
recipe = load_recipe(path, [hardware, "train.micro_batch=1", "checkpoint.store=hub"])
plan = make_plan(recipe, path)
launch = prepare(plan)
before = sorted(str(path) for path in Path(".").rglob("*") if path.is_file())
printed = launch.text()
Path("models/line.py").write_text("def build(): ...\\n")
written = launch.write()
try:
    launch.plan = None
    frozen = False
except dataclasses.FrozenInstanceError:
    frozen = True
(cargo,) = [Path(source) for source in launch.task["file_mounts"].values()]
print(json.dumps({
    "before": before,
    "frozen": frozen,
    "same text": printed.startswith(written.read_text()),
    "chosen": offers_json(launch.offers)["chosen"],
    "prices": json.loads((cargo / "prices.json").read_text()),
    "model": (cargo / "project/models/line.py").read_text(),
    "plan": json.loads((cargo / "plan.json").read_text())["run"] == plan.run,
}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    home = SkyHome(tmp_path_factory.mktemp("sky"))
    home.enable(*CLOUDS)
    return home


def test_what_was_printed_is_what_is_launched(home: SkyHome, tmp_path: Path) -> None:
    """Nothing is written before it is settled; what is edited while the person thinks it over does
    not travel; prices are asked once, for the table, the task and the machine."""
    project = Project(tmp_path)
    model = (project.root / "models" / "line.py").read_text()
    done = home.python(PREPARED, cwd=project.root)
    assert done.code == 0, done.err
    told = json.loads(done.out.splitlines()[-1])
    assert told["before"] == ["datasets/points.py", "models/line.py", "recipes/tiny.yaml"]
    assert told["frozen"]
    assert told["same text"]
    assert told["model"] == model
    assert told["plan"]
    chosen = told["chosen"]
    assert chosen["usd_per_hour"] in [price["usd_per_hour"] for price in told["prices"]]


def test_a_kind_of_machine_adds_to_the_recipes_setup() -> None:
    """The recipe's commands come first."""
    recipe = Recipe(
        name="r",
        model={"name": "mlp"},
        dataset={"name": "digits"},
        task="classification",
        train={"steps": 1, "global_batch": 1},
        setup="echo all",
        hardware={"any_of": [{"setup": "echo one"}, {}]},
    )
    one, other = recipe.hardware.any_of
    assert setup_of(recipe, one) == "echo all\necho one"
    assert setup_of(recipe, other) == "echo all"
    assert setup_of(recipe.model_copy({"setup": None}), other) == ""


REHEARSED = """
import sys
from pathlib import Path
from xrun.cli.train import confirm
from xrun.errors import XrunError
from xrun.launcher.sky.launch import prepare
from xrun.recipe.load import load_recipe
from xrun.run.plan import make_plan

path = Path("recipes/tiny.yaml")
hardware = "hardware={any_of: [{accelerators: 'A100:8', spot: true}]}"
recipe = load_recipe(path, [hardware, "train.micro_batch=1", "checkpoint.store=hub"])
launch = prepare(make_plan(recipe, path))
try:
    confirm(launch, yes=True, rehearsed="--no-rehearsal" not in sys.argv)
except XrunError as error:
    print(error.exit_code, error)
"""


def test_a_launch_is_rehearsed_before_its_question(home: SkyHome, tmp_path: Path) -> None:
    """What fails on the machine fails here, before a price is shown or anything is asked; with
    --no-rehearsal nothing is tried."""
    project = Project(tmp_path)
    project.write("models/line.py", f"import no_such_library\n{MODEL}")
    done = home.python(REHEARSED, cwd=project.root)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].endswith("rehearsing what would be packed, on this machine's processors")
    assert lines[-1].startswith("2 The rehearsal failed in the stage `build`: ")
    assert "models/line.py:1: ModuleNotFoundError: No module named 'no_such_library'" in lines[-1]
    assert lines[-1].endswith("Nothing was launched; --no-rehearsal launches it all the same.")
    assert "$" not in done.out
    done = home.python(REHEARSED, "--no-rehearsal", cwd=project.root)
    assert done.code == 0, done.err
    assert "rehearsing" not in done.out
    assert "$" in done.out
