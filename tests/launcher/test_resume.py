"""`xrun resume ADDRESS` goes on with a run from what its record says, and `xrun cancel ADDRESS`
asks the attempt that runs.

Covers `xrun.launcher.resume` and `xrun.launcher.cancel`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from support.kept_runs import NAMES, keep
from support.running import PER_STEP, Project, attempt, weights
from xrun.errors import CheckpointError, LaunchError
from xrun.launcher.cancel import cancel
from xrun.launcher.job import choose_run
from xrun.launcher.resume import plan_to_resume
from xrun.lock import locked
from xrun.run.folder import RunFolder
from xrun.run.opened import open_run
from xrun.run.stores import open_store


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Another checkout of the same project, in which the person stands; its recipe is gone."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "elsewhere")
    project.recipe.unlink()
    monkeypatch.chdir(project.root)
    return project


@pytest.fixture
def project(tmp_path: Path, elsewhere: Project) -> Project:
    return Project(tmp_path / "project")


def test_a_run_goes_on_from_its_record(project: Project, elsewhere: Project) -> None:
    """Killed here, resumed in another checkout from nothing but its state: the same weights as
    undisturbed. The recipe lies in recipes/ then, and more steps may be asked for."""
    whole = Project(project.root.parent)
    assert whole.attempt().code == 0
    project.trap("SIGKILL", call=13 * PER_STEP, committed=10, paced=True)
    assert project.attempt().code == 75
    run = project.run
    run.plan_file.unlink()
    there = elsewhere.home / run.run
    shutil.copytree(run.state, there / "state")
    shutil.rmtree(project.root)
    plan = plan_to_resume(open_run(str(there)))
    assert (plan.run, plan.home, plan.project) == (
        run.run,
        str(elsewhere.home),
        str(elsewhere.root),
    )
    assert plan.launched == open_run(str(there)).record.attempts[0].started > 0
    written = elsewhere.root / f"recipes/{run.run}.yaml"
    assert json.loads(written.read_text().partition("\n")[2]) == plan.recipe
    assert attempt(plan).code == 0
    assert weights(RunFolder(plan.folder)) == weights(whole.run)
    longer = plan_to_resume(open_run(run.run), ["train.steps=21"])
    assert (longer.run, longer.recipe["train"]["steps"]) == (plan.run, 21)
    assert attempt(longer).code == 0
    assert plan_to_resume(open_run(run.run)).recipe == longer.recipe
    written.write_text(written.read_text().replace("21", "22"))
    with pytest.raises(LaunchError, match="is not a recipe that `xrun resume` has written"):
        plan_to_resume(open_run(run.run))


@pytest.mark.once
def test_what_another_checkout_lacks_is_named(project: Project, elsewhere: Project) -> None:
    """A component's file that is missing or differs, and a key that an override changes; nothing is
    left behind."""
    plan = project.plan()
    keep(plan, elsewhere.home / plan.run)
    shutil.move(plan.folder / "state", elsewhere.home / plan.run / "state")
    address = str(elsewhere.home / plan.run)
    with pytest.raises(CheckpointError, match=r"train\.seed: .* -> 7") as refused:
        plan_to_resume(open_run(address), ["train.seed=7"])
    assert "--fork" not in str(refused.value), "which begins with a run that has a folder here"
    here = replace(plan, project=str(elsewhere.root), home=str(elsewhere.home))
    RunFolder(here.folder).write_plan(here)
    with pytest.raises(CheckpointError, match=rf"`xrun RECIPE --fork {plan.run}`"):
        plan_to_resume(open_run(address), ["train.seed=7"])
    RunFolder(here.folder).plan_file.unlink()
    elsewhere.write("models/line.py", "def build(width: int = 8):\n    return None\n")
    with pytest.raises(CheckpointError, match=r"models/line\.py was edited"):
        plan_to_resume(open_run(address))
    (elsewhere.root / "datasets/points.py").unlink()
    with pytest.raises(CheckpointError, match=r"needs datasets/points\.py, and .* no such file"):
        plan_to_resume(open_run(address))
    found = open_run(address)
    lock = replace(found.record.lock, code={"remote": "https://host/a.git", "commit": "c0ffee" * 7})
    found = replace(found, record=replace(found.record, lock=lock))
    with pytest.raises(CheckpointError, match=r"It was https://host/a\.git at c0ffeec0ffee\."):
        plan_to_resume(found)
    assert list((elsewhere.root / "recipes").iterdir()) == []


@pytest.mark.once
def test_a_bare_copy_of_a_state_is_not_trained_in(project: Project, elsewhere: Project) -> None:
    plan = project.plan()
    keep(plan, plan.folder)
    shutil.copytree(plan.folder / "state", elsewhere.root / "copy")
    with pytest.raises(LaunchError, match=rf"is a copy of the state of {plan.run}"):
        plan_to_resume(open_run("./copy"))


@pytest.mark.once
def test_another_recipe_is_refused_where_no_plan_lies(project: Project) -> None:
    """By the record alone, with the keys that differ."""
    plan = project.plan(run="mine")
    keep(plan, plan.folder)
    assert choose_run(plan, given=True).digest == plan.digest
    other = project.plan("train.seed=7", "model.args={width: 16}", run="mine")
    with pytest.raises(CheckpointError, match=r"model\.args.*16.*train\.seed: 0 -> 7"):
        choose_run(other, given=True)


@pytest.mark.once
def test_the_attempt_that_runs_is_asked_to_stop(project: Project) -> None:
    """Its store has the wish, for that attempt alone; a run that has ended is told as such, and an
    unknown one is no reason to ask SkyPilot."""
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder, finished=False)
    said: list[str] = []
    cancel(str(plan.folder), save=False, say=said.append)
    assert said[0].startswith(f"Asked attempt {NAMES[1]} of {plan.run} to save and to stop.")
    assert said[0].endswith(f" To go on with it later: xrun resume {plan.folder}")
    with locked(RunFolder(plan.folder).lock) as file:
        file.write("4321")
        file.flush()
        cancel(str(plan.folder), save=False, say=said.append)
    here = f"Asked {plan.run}, which runs on this machine (process 4321), to save"
    assert said[1].startswith(here)
    assert not open_store(plan, NAMES[0]).asked_to_stop()
    assert open_store(plan, NAMES[1]).asked_to_stop()
    ended = replace(plan, run="ended")
    RunFolder(ended.folder).write_plan(ended)
    keep(ended, ended.folder)
    with pytest.raises(LaunchError, match=r"Nothing of ended runs: its last attempt has ended"):
        cancel(str(ended.folder), save=False, say=said.append)
    with pytest.raises(LaunchError, match="There is no run unknown-1"):
        cancel("unknown-1", save=True, say=said.append)
