"""What lies beside an exported model.

Covers `xrun.run.page`, `xrun.training.curves` and `xrun.training.packages`.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from support.running import DATASET, RECIPE, Project
from xrun.errors import LaunchError
from xrun.recipe.load import load_recipe
from xrun.run.locked import Lock
from xrun.run.page import RECEIPT, Page
from xrun.run.plan import make_plan
from xrun.run.receipt import receipt_of
from xrun.run.record import AttemptRecord
from xrun.training.curves import curves
from xrun.training.packages import packages_here
from xrun.training.page import write_page

POINTS = [
    {"step": 1, "train/loss": 2.0, "train/samples": "aa", "time": 1.5, "attempt": "a"},
    {"step": 2, "train/loss": 1.0, "train/samples": "ab", "speed/step_seconds": 0.5},
    {"step": 2, "val/loss": 1.5},
]


@pytest.mark.parametrize("public", [False, True])
def test_a_page_says_what_the_run_was_made_from(tmp_path: Path, public: bool) -> None:
    """Its recipe is the run's, of its points nothing tells of the machine, and the project's own
    files are there only with a yes."""
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", RECIPE + f"publish_code: {str(public).lower()}\n")
    plan, lock = project.plan(), Lock(python="3.11.9", machine={"processes": 2})
    model = tmp_path / "model"
    model.mkdir()
    receipt = receipt_of(plan.run, [AttemptRecord("a", started=0.0, ended=3600.0)], 9000.0)
    write_page(model, plan, lock, POINTS, {"w.safetensors": "ab"}, "ab", receipt)
    page = Page(model)
    assert page.lock == lock
    assert (page.facts.run, page.facts.digest, page.facts.processes) == (plan.run, plan.digest, 2)
    assert page.facts.files == {"w.safetensors": "ab"}
    if public:  # it is a project of its own, whose recipe can be started as it is
        assert make_plan(load_recipe(page.recipe), page.recipe).digest == plan.digest
    told = json.loads((page.folder / RECEIPT).read_text())
    assert (told["usd"], told["hours"], len(told["attempts"])) == (0.0, 1.0, 1)
    assert page.points() == [
        {"step": 1, "train/loss": 2.0, "train/samples": "aa"},
        {"step": 2, "train/loss": 1.0, "train/samples": "ab"},
        {"step": 2, "val/loss": 1.5},
    ]
    published = page.folder / "datasets" / "points.py"
    assert (published.read_text() if published.exists() else None) == (DATASET if public else None)
    assert "publish_code" not in yaml.safe_load(page.recipe.read_text()) or public


def test_a_page_of_before_is_refused(tmp_path: Path) -> None:
    """Naming the file that is missing, or damaged."""
    with pytest.raises(LaunchError, match=r"has no xrun/run\.json"):
        _ = Page(tmp_path).facts
    (tmp_path / "xrun").mkdir()
    (tmp_path / "xrun" / "lock.json").write_text('{"hub": 1}')
    with pytest.raises(LaunchError, match=r"lock\.json is damaged: `hub` is a number"):
        _ = Page(tmp_path).lock
    (tmp_path / "xrun" / "run.json").write_text('{"run": "tiny-1", "sources": ["models/line.py"]}')
    with pytest.raises(LaunchError, match=r"run\.json is damaged: `sources` is .* instead of"):
        _ = Page(tmp_path).facts


def test_losses_are_drawn() -> None:
    """A line each for training and evaluation, between the smallest and the largest value."""
    drawn = re.findall(r'points="([^"]*)"', curves(POINTS))
    assert drawn == ["48.0,48.0 592.0,272.0 592.0,272.0", "592.0,160.0 592.0,160.0"]


def test_a_long_run_is_drawn_with_few_points() -> None:
    """And what is not a number, or no point at all, is no obstacle."""
    many = [{"step": step, "train/loss": 1 / step} for step in range(1, 100_001)]
    assert len(curves([*many, {"step": 7, "train/loss": float("nan")}])) < 10_000
    assert curves([]) == ""


def test_packages_are_those_of_what_is_imported_and_what_it_needs() -> None:
    """With their versions; what merely lies there is not among them."""
    found = packages_here()
    assert found["pyyaml"] == version("PyYAML")
    assert found["pluggy"] == version("pluggy")  # pytest needs it
    assert ("skypilot" in found) == ("sky" in sys.modules)
