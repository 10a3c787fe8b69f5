"""Which run a recipe means.

Covers `xrun.launcher.git`.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from support.running import MODEL, PER_STEP, Project, attempt, curve, steps_of, weights
from xrun.cli.texts import left_text
from xrun.errors import CheckpointError, ComponentError, LaunchError
from xrun.launcher.job import choose_run, code_version, forked_from, left_behind
from xrun.run.folder import RunFolder


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a run of 10 steps."""
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.attempt("train.steps=10").code == 0
    return project


def test_the_same_recipe_goes_on(known: Project) -> None:
    """The same mathematics find their run, with more steps or another place, too."""
    plan = known.plan("train.steps=99", "train.num_workers=2", processes=2)
    assert choose_run(plan).run == known.run.run


def test_a_finished_run_that_goes_on_is_on_its_way_to_the_new_end(tmp_path: Path) -> None:
    """Of a run that was finished and has more to do now, a report names the steps of its plan."""
    project = Project(tmp_path)
    assert project.attempt("train.steps=10").code == 0
    project.trap("SIGKILL", call=4 * PER_STEP, committed=10)
    assert project.attempt("train.steps=20").code == 75
    report = project.run.report()
    assert (report.steps, (report.step or 0) >= 10) == (20, True)


def test_fewer_steps_than_were_trained_are_refused(known: Project) -> None:
    """It would be a run of 10 steps that passes for one of 4; its plan stays as it is."""
    before = known.run.plan_file.read_bytes()
    with pytest.raises(CheckpointError) as refused:
        choose_run(known.plan("train.steps=4"))
    said = f"The run {known.run.run} has trained 10 steps, and this command asks for 4."
    assert str(refused.value).startswith(said)
    assert known.run.plan_file.read_bytes() == before
    epochs = ("train.steps=null", "train.epochs=1")  # 12 steps of 8 samples
    assert choose_run(known.plan(*epochs)).run == known.run.run


def test_a_changed_recipe_is_not_started_silently(known: Project) -> None:
    """Changed mathematics with other runs there are refused, with what is different and both ways
    out."""
    with pytest.raises(LaunchError) as refused:
        choose_run(known.plan("train.optimizer.lr=0.02"))
    said = str(refused.value)
    assert "train.optimizer.lr: 0.01 -> 0.02" in said
    assert "--new" in said
    assert f"--fork {known.run.run}" in said


def test_what_differs_is_told_of_the_nearest_run(known: Project, tmp_path: Path) -> None:
    """Of several runs the one with the fewest other keys, whichever is newest."""
    project = Project(tmp_path)
    shutil.copytree(known.home, project.home)
    far = replace(project.plan("train.seed=3", "train.optimizer.lr=0.5"), run="far")
    shutil.copytree(known.run.path, project.home / "far")
    RunFolder(far.folder).write_plan(far)
    with pytest.raises(LaunchError) as refused:
        choose_run(project.plan("train.seed=1"))
    said = str(refused.value)
    assert f"2 other runs here, the nearest is {known.run.run}." in said
    assert "What is different: train.seed: 0 -> 1. Start" in said


def test_a_run_that_came_to_no_step_stands_in_nobodys_way(tmp_path: Path) -> None:
    """A recipe or component that is mended after its run has failed in the first step, or while it
    was built, starts by the same command; once a step is committed it asks."""
    project = Project(tmp_path)
    project.trap("raise", call=1)
    assert project.attempt().code == 2
    project.write("models/line.py", MODEL.replace("GELU", "Gelu"))
    broken = choose_run(project.plan())
    assert attempt(broken).code == 2
    project.write("models/line.py", MODEL.replace("GELU", "ReLU"))
    mended = choose_run(project.plan())
    assert len({project.run.run, broken.run, mended.run}) >= 2
    project.trap("SIGKILL", call=7 * PER_STEP, committed=5)
    assert attempt(mended).code == 75
    with pytest.raises(LaunchError, match=f"1 other run here, which is {mended.run}"):
        choose_run(project.plan("train.seed=1"))


def test_changed_mathematics_under_the_same_id_are_refused(known: Project) -> None:
    """--run with other mathematics ends with 5 and a list of the keys that differ, old and new."""
    plan = known.plan("train.optimizer.lr=0.02", "train.seed=7", run=known.run.run)
    with pytest.raises(CheckpointError) as refused:
        choose_run(plan, given=True)
    assert refused.value.exit_code == 5
    assert "train.optimizer.lr: 0.01 -> 0.02; train.seed: 0 -> 7." in str(refused.value)


def test_a_mistyped_id_begins_no_run(known: Project) -> None:
    """A letter that is missing in --run, or another one in its place, ends with 3 and the run that
    is meant; --new begins one of that id, and ids that somebody counts by are no mistakes."""
    run = known.run.run
    for typed in (run[1:], run[:-1], run.replace("tiny", "tinny"), run[:-1] + "-"):
        with pytest.raises(LaunchError, match=f"Did you mean {run}") as refused:
            choose_run(known.plan(run=typed), given=True)
        assert (refused.value.exit_code, "--new" in refused.value.hint) == (3, True)
        assert choose_run(known.plan(run=typed), given=True, new=True).run == typed
    assert choose_run(known.plan(run=run), given=True).run == run
    assert choose_run(known.plan(run="baseline"), given=True).run == "baseline"


def test_an_id_that_counts_on_is_no_mistake(tmp_path: Path) -> None:
    """Runs that a script begins by --run seed-1, seed-2, ... are all begun."""
    project = Project(tmp_path)
    for first, second in (("baseline-1", "baseline-2"), ("with-lr-a", "with-lr-b")):
        begun = project.plan(run=first)
        RunFolder(begun.folder).write_plan(begun)
        assert choose_run(project.plan(run=second), given=True).run == second


def test_a_run_whose_state_would_be_elsewhere_is_refused(known: Project) -> None:
    """A recipe that names another store finds nothing there and would begin anew: 5, with both
    places, and the run's plan stays as it is."""
    before = known.run.plan_file.read_bytes()
    for store in ("hub", "hub://alice/other", "hub-bucket://alice/other"):
        with pytest.raises(CheckpointError) as refused:
            choose_run(known.plan("train.steps=99", f"checkpoint.store={store}"))
        assert f"is in {known.run.state}, and this command says {store}." in str(refused.value)
    assert known.run.plan_file.read_bytes() == before


def test_a_run_on_a_hub_is_found_by_its_short_name(known: Project, tmp_path: Path) -> None:
    """`hub` in a recipe is the repository that a launch has found; another one, another kind and a
    folder are other places."""
    project = Project(tmp_path)
    shutil.copytree(known.home, project.home)
    folder = project.run
    folder.write_plan(project.plan("checkpoint.store=hub").placed("alice"))
    assert choose_run(project.plan("checkpoint.store=hub")).run == folder.run
    for store in ("local", "hub://bob/mine", f"hub-bucket://alice/{folder.run}"):
        with pytest.raises(CheckpointError, match=f"is in hub://alice/{folder.run}, and this"):
            choose_run(project.plan(f"checkpoint.store={store}"))


def test_a_changed_component_is_another_mathematics(known: Project, tmp_path: Path) -> None:
    """A changed line in a model's file is named as the difference."""
    project = Project(tmp_path)
    shutil.copytree(known.home, project.home)
    model = project.root / "models" / "line.py"
    model.write_text(model.read_text().replace("GELU", "ReLU"))
    with pytest.raises(LaunchError, match=r"models/line\.py was edited"):
        choose_run(project.plan())


def test_again_gives_an_id_of_its_own(known: Project, tmp_path: Path) -> None:
    """--again counts ids up past every run that is there, and never touches one."""
    project = Project(tmp_path)
    shutil.copytree(known.home, project.home)
    first = choose_run(project.plan(), again=True)
    assert first.run == f"{known.run.run}-2"
    RunFolder(first.folder).write_plan(first)
    assert choose_run(project.plan(), again=True).run == f"{known.run.run}-3"
    changed = project.plan("train.seed=1")
    assert choose_run(changed, again=True).run == changed.run


def test_new_is_the_run_of_its_recipe(known: Project, tmp_path: Path) -> None:
    """--new begins the run of a changed recipe beside others, and goes on with it when it is typed
    again; also with that of an unchanged one."""
    project = Project(tmp_path)
    shutil.copytree(known.home, project.home)
    changed = project.plan("train.seed=1")
    first = choose_run(changed, new=True)
    assert first.run == changed.run
    RunFolder(first.folder).write_plan(replace(first, launched=5.0))
    again = choose_run(changed, new=True)
    assert (again.run, again.launched) == (first.run, 5.0)
    assert choose_run(project.plan(), new=True).run == known.run.run


def test_again_says_which_run_it_leaves(tmp_path: Path) -> None:
    """After a kill `--again` begins another run, and says what is safe of the one before and how
    it is gone on with; of a finished one it says nothing."""
    project = Project(tmp_path)
    project.trap("SIGKILL", call=9 * PER_STEP, committed=5)
    assert project.attempt().code == 75
    killed = project.run
    left = left_behind(project.plan())
    assert left is not None
    assert left.run == killed.run
    said = left_text(left, "xrun X")
    assert said.startswith(f"{killed.run} is not finished and stays: step ")
    assert said.endswith(" Go on with: xrun X")
    assert project.attempt().code == 0
    assert left_behind(project.plan()) is None


def test_a_run_made_again_starts_from_step_0(known: Project) -> None:
    """A run made by --again trains by itself to the same weights as the first, since its
    mathematics are the same."""
    plan = choose_run(known.plan("train.steps=10"), again=True)
    done = attempt(plan)
    assert done.code == 0
    assert "Starting at step 0" in done.err
    assert weights(RunFolder(plan.folder)) == weights(
        RunFolder(known.home / plan.run.removesuffix("-2"))
    )
    shutil.rmtree(plan.folder)


def test_fork_starts_from_the_other_runs_newest_step(known: Project) -> None:
    """--fork makes a new run that begins at the other's newest checkpoint, goes on after a kill,
    and leaves the other alone."""
    source = RunFolder(next(known.home.iterdir()))
    before = sorted((path, path.stat().st_mtime_ns) for path in source.state.rglob("*"))
    plan = choose_run(known.plan("train.optimizer.lr=0.002"), fork=source.run)
    assert plan.run != source.run
    known.trap("SIGKILL", call=7 * PER_STEP, committed=15)
    done = attempt(plan)
    assert done.code == 75
    assert f"Forked from {source.run} at step 10." in done.err
    forked = RunFolder(plan.folder)
    assert min(curve(forked)) == 11
    again = choose_run(known.plan("train.optimizer.lr=0.002"))
    assert (again.run, again.fork) == (plan.run, source.run)
    another = choose_run(known.plan("train.optimizer.lr=0.002"), fork=source.run, again=True)
    assert (another.run, another.fork) == (f"{plan.run}-2", source.run)
    done = attempt(again)
    assert done.code == 0, done.err
    assert "Going on from step 15." in done.err
    assert sorted(curve(forked)) == list(range(11, 21))
    assert steps_of(forked)[-1] == 20
    assert sorted((path, path.stat().st_mtime_ns) for path in source.state.rglob("*")) == before
    shutil.rmtree(plan.folder)


def test_a_fork_of_nothing_is_refused(known: Project) -> None:
    """--fork of a run that does not exist is one sentence that names it."""
    with pytest.raises(LaunchError, match="There is no run nothing-here"):
        choose_run(known.plan(), fork="nothing-here")


def test_a_fork_of_a_run_without_a_checkpoint_is_refused(known: Project, tmp_path: Path) -> None:
    """--fork of a run that never committed a state ends with 5, before anything is made."""
    project = Project(tmp_path)
    empty = project.plan(run="empty")
    RunFolder(empty.folder).write_plan(empty)
    with pytest.raises(CheckpointError, match="--fork empty: that run has no checkpoint"):
        choose_run(project.plan(), fork="empty")
    done = attempt(replace(project.plan(), fork="empty"))
    assert done.code == 5, done.err
    assert "--fork empty: that run has no checkpoint." in done.err


def test_a_fork_that_would_train_nothing_is_refused(known: Project) -> None:
    """A fork goes on counting, so of a finished run it needs more steps than that has; with 2, and
    the way out, instead of a model that is the other run's."""
    source = RunFolder(next(known.home.iterdir()))
    short = known.plan("train.optimizer.lr=0.003", "train.steps=10")
    with pytest.raises(ComponentError, match="at step 10, and this recipe ends at step 10"):
        choose_run(short, fork=source.run)
    # Where only the attempt knows how many steps there are.
    done = attempt(replace(short, fork=source.run, fork_store=source.plan().store))
    assert done.code == 2, done.err
    assert (
        f"--fork {source.run}: that run is at step 10, and this recipe ends at step 10" in done.err
    )
    assert "Give train.steps or train.epochs a larger number" in done.err
    shutil.rmtree(short.folder)


def test_a_fork_needs_the_same_tensors(known: Project) -> None:
    """--fork with a model of another shape ends with 5 and starts nothing; what no model can make
    good is refused before one is built."""
    source = RunFolder(next(known.home.iterdir()))
    plan = choose_run(known.plan("model.args={width: 16}"), fork=source.run)
    done = attempt(plan)
    assert done.code == 5, done.err
    assert "Traceback" not in done.err
    assert f"leave the model and train.optimizer as they were in {source.run}" in done.err
    for key, told in (
        ("train.optimizer.name=sgd", 'train.optimizer.name: "adamw" -> "sgd"'),
        ("train.ema=0.9", 'train.ema: "off" -> "on"'),
    ):
        with pytest.raises(CheckpointError, match=told):
            choose_run(known.plan(key), fork=source.run)
    assert choose_run(known.plan("train.optimizer.name=radam"), fork=source.run).fork == source.run
    shutil.rmtree(plan.folder)


def test_new_makes_a_fork_that_has_not_begun_a_run_of_its_own(known: Project) -> None:
    """After a fork that cannot work, --new begins the same recipe at step 0; one that has begun
    stays what it is."""
    source = RunFolder(next(known.home.iterdir()))
    plan = choose_run(known.plan("model.args={width: 16}"), fork=source.run)
    assert attempt(plan).code == 5
    own = choose_run(known.plan("model.args={width: 16}"), new=True)
    assert (own.run, own.fork, forked_from(own)) == (plan.run, "", source.run)
    done = attempt(own)
    assert done.code == 0, done.err
    assert "Starting at step 0" in done.err
    shutil.rmtree(plan.folder)
    plan = choose_run(known.plan("train.optimizer.lr=0.002"), fork=source.run)
    assert attempt(plan).code == 0
    with pytest.raises(CheckpointError, match=f"a fork: it has begun with .* {source.run}, so"):
        choose_run(known.plan("train.optimizer.lr=0.002"), new=True)
    called = choose_run(known.plan("train.optimizer.lr=0.002"), asked=False)
    assert (called.run, called.fork) == (plan.run, source.run)
    assert choose_run(known.plan("train.seed=9"), asked=False).fork == ""
    shutil.rmtree(plan.folder)


def test_a_damaged_plan_of_another_run_is_no_obstacle(known: Project, tmp_path: Path) -> None:
    """The run that is meant goes on although another run's plan.json is damaged."""
    project = Project(tmp_path)
    shutil.copytree(known.home, project.home)
    project.write("runs/other/plan.json", "{")
    plan = replace(project.plan(), recipe={**project.plan().recipe, "name": "tiny"})
    assert choose_run(plan).run == plan.run
    assert choose_run(project.plan("train.seed=1"), new=True).run != plan.run
    with pytest.raises(LaunchError, match="--new"):
        choose_run(project.plan("train.seed=1"))


def test_the_code_version_is_the_projects(tmp_path: Path) -> None:
    """A project without git has no version; it is never the version of the folder where the command
    was typed."""
    assert code_version(tmp_path) == {}


def test_what_runs_make_changes_no_code(tmp_path: Path) -> None:
    """Also where nobody has told git to ignore it."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "line.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    for made in ("runs/a-1/plan.json", "models/__pycache__/line.pyc"):
        (tmp_path / made).parent.mkdir(parents=True)
        (tmp_path / made).write_text("")
    assert code_version(tmp_path)["dirty"] is False
    (tmp_path / "models" / "new.py").write_text("")
    assert code_version(tmp_path)["dirty"] is True
