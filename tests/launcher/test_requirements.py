"""The libraries that a recipe names become exact versions before money is spent, beside the pins;
with the real uv and an index on this machine.

Covers `xrun.run.requirements`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.package_index import PackageIndex, package_index
from support.running import Project, attempt
from xrun.errors import CloudUnavailable, RecipeError
from xrun.launcher.bundle import pack
from xrun.launcher.job import choose_run
from xrun.launcher.requirements import lock
from xrun.launcher.resume import plan_to_resume
from xrun.recipe.load import load_recipe
from xrun.recipe.requirements import pins
from xrun.run.folder import RunFolder
from xrun.run.opened import open_run
from xrun.run.plan import Plan, make_plan
from xrun.run.requirements import Requirements

pytestmark = pytest.mark.once
TORCH, NUMPY = pins()["torch"], pins()["numpy"]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    """Has torch, which needs `triton` on machines, and small libraries."""
    with package_index(tmp_path / "wheels") as index:
        index.add("torch", TORCH, "triton==3.7; sys_platform == 'linux'")
        index.add("triton", "3.7")
        index.add("numpy", NUMPY)
        index.add("small", "1.0")
        index.add("large", "2.0", "torch>=2", "small", "numpy")
        yield index


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def plan_of(project: Project, *names: str) -> Plan:
    path = project.root / "recipes" / "tiny.yaml"
    return make_plan(load_recipe(path, [f"requirements={json.dumps(names)}"]), path)


def locked(plan: Plan, index: PackageIndex, tmp_path: Path) -> Plan:
    return lock(plan, index.environ(tmp_path))


def refused(plan: Plan, index: PackageIndex, tmp_path: Path) -> str:
    with pytest.raises(RecipeError) as error:
        locked(plan, index, tmp_path)
    (problem,) = error.value.problems
    assert problem.key == "requirements"
    return problem.what


def test_versions_are_exact_and_beside_the_pins(
    project: Project, index: PackageIndex, tmp_path: Path
) -> None:
    """Each with hashes; neither the pins nor what torch brings along is among them."""
    plan = locked(plan_of(project, "large"), index, tmp_path)
    assert plan.libraries.versions == {"large": "2.0", "small": "1.0"}
    lines = plan.libraries.text.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"large==2.0 \\", lines[0])
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in lines[1::2])
    assert pack(plan, []).files["requirements.txt"].decode() == plan.libraries.text


def test_a_run_keeps_its_versions(project: Project, index: PackageIndex, tmp_path: Path) -> None:
    """As long as its list is the same nothing is asked; another list moves no other library."""
    plan = locked(plan_of(project, "large"), index, tmp_path)
    RunFolder(plan.folder).write_plan(plan)
    index.add("small", "1.1")
    index.add("extra", "1.0")
    index.asked.clear()
    again = locked(choose_run(plan_of(project, "large")), index, tmp_path)
    assert again.libraries == plan.libraries
    assert index.asked == []
    more = choose_run(plan_of(project, "large", "extra"))
    assert more.run == plan.run
    made = locked(more, index, tmp_path).libraries.versions
    assert made == {"extra": "1.0", "large": "2.0", "small": "1.0"}
    assert choose_run(plan_of(project)).libraries.wanted == ()
    assert locked(choose_run(plan_of(project)), index, tmp_path).requirements == {}


def test_another_machine_takes_the_versions_of_the_record(
    project: Project, index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`xrun resume` knows nothing but the run's state; newer versions have come since."""
    plan = locked(plan_of(project, "large"), index, tmp_path)
    assert attempt(replace(plan, overrides=())).code == 0
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Project(tmp_path / "elsewhere")
    monkeypatch.chdir(elsewhere.root)
    there = elsewhere.home / plan.run
    shutil.copytree(plan.folder / "state", there / "state")
    index.add("small", "1.1")
    index.add("large", "2.1", "torch>=2", "small", "numpy")
    assert open_run(str(there)).record.lock.packages["large"] == "2.0"
    again = plan_to_resume(open_run(str(there)), ["train.steps=30"])
    assert locked(again, index, tmp_path).libraries.versions == {"large": "2.0", "small": "1.0"}
    assert attempt(again).code == 0
    assert open_run(str(there)).record.lock.changes == ()


def test_a_conflict_with_the_pins_names_both_sides(
    project: Project, index: PackageIndex, tmp_path: Path
) -> None:
    """Also where something between the two needs it."""
    index.add("newer", "1.0", "torch>=99")
    index.add("between", "3.0", "newer")
    index.add("older", "1.0", "numpy<2")
    said = f"newer needs torch>=99, and xrun pins torch=={TORCH}"
    assert refused(plan_of(project, "newer"), index, tmp_path) == said
    assert refused(plan_of(project, "between==3.0"), index, tmp_path) == said
    assert refused(plan_of(project, "older"), index, tmp_path) == (
        f"older needs numpy<2, and xrun pins numpy=={NUMPY}"
    )


def test_what_cannot_be_had_is_one_sentence(
    project: Project, index: PackageIndex, tmp_path: Path
) -> None:
    """A name, a version, and a wheel for the machine."""
    index.add("elsewhere", "1.0", tag="cp311-cp311-win_amd64")
    nothing = refused(plan_of(project, "nothing-of-this-name"), index, tmp_path)
    assert nothing == (
        "nothing-of-this-name was not found in the package registry and you require"
        " nothing-of-this-name"
    )
    version = refused(plan_of(project, "small>=7"), index, tmp_path)
    assert version == "only small==1.0 is available and you require small>=7"
    wheel = refused(plan_of(project, "elsewhere"), index, tmp_path)
    assert "elsewhere==1.0 has no wheels with a matching" in wheel
    assert not any("\n" in said for said in (nothing, version, wheel))


def test_no_network_is_no_problem_of_the_recipe(
    project: Project, index: PackageIndex, tmp_path: Path
) -> None:
    """75: the same command may pass later."""
    index.fails = 10**6
    for url in (index.url, "http://127.0.0.1:9/simple"):
        environ = index.environ(tmp_path) | {"UV_DEFAULT_INDEX": url}
        with pytest.raises(CloudUnavailable) as error:
            lock(plan_of(project, "small"), environ)
        assert "cannot be fixed" in error.value.message
        assert "Nothing was launched" in error.value.hint


def test_an_old_plan_has_none(project: Project) -> None:
    told = json.loads(plan_of(project, "click").to_json())
    assert Plan.from_json(json.dumps(told)).libraries == Requirements(("click",))
    del told["requirements"], told["recipe"]["requirements"], told["recipe"]["setup"]
    old = Plan.from_json(json.dumps(told))
    assert old.libraries == Requirements()
    assert old.load_recipe().requirements == ()
    with pytest.raises(ValueError, match="requirements"):
        Plan.from_json(json.dumps(told | {"requirements": {"wanted": [1]}}))


def test_installed_versions_are_conditions(project: Project) -> None:
    """What a recipe names and what a launch has added, as far as it is here."""
    plan = plan_of(project, "Click>=8", "nothing-of-this-name")
    text = plan.libraries
    assert re.fullmatch(r"click [\d.]+", text.installed())
    more = replace(text, text="PyYAML==1 \\\n    --hash=sha256:00\n")
    assert re.fullmatch(r"click [\d.]+, pyyaml [\d.]+", more.installed())
