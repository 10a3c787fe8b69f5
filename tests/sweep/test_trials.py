"""A recipe with a sweep -> its trials, each the run that the recipe with its values means; every
mistake at its place.

Covers `xrun.recipe.counted` and `xrun.recipe.rungs`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.running import Project
from xrun.errors import LaunchError, RecipeError
from xrun.recipe.counted import counts
from xrun.recipe.interval import Every
from xrun.recipe.load import load_recipe
from xrun.recipe.rungs import evaluated_every, rung_step
from xrun.run.plan import make_plan
from xrun.sweep.trials import Trials

pytestmark = pytest.mark.once


def written(project: Project, sweep: str) -> Path:
    return project.write("recipes/swept.yaml", project.recipe.read_text() + sweep)


SWEEP = """\
sweep:
  parameters:
    train.optimizer.lr: [0.01, 0.1]
    model.args.width: [8, 16]
"""


def test_a_trial_is_the_run_of_the_recipe_with_its_values(tmp_path: Path) -> None:
    """The same id, digest and recipe as with `-s` for each value; neither the sweep nor a pause
    changes an id."""
    project = Project(tmp_path)
    path = written(project, SWEEP)
    made = Trials.of(path).all()
    assert [trial.words for trial in made][:2] == [
        "train.optimizer.lr=0.01, model.args.width=8",
        "train.optimizer.lr=0.01, model.args.width=16",
    ]
    by_hand = project.plan("train.optimizer.lr=0.1", "model.args.width=16")
    assert (made[3].plan.run, made[3].plan.recipe) == (by_hand.run, by_hand.recipe)
    assert {trial.plan.sweep for trial in made} == {Trials.of(path).id}
    whole = make_plan(load_recipe(path), path, environ={})
    assert whole.run == project.plan().run == made[0].plan.run  # its values are the defaults


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("{train.optimizer.lr: [0.1, -1]}", "3:32: train.optimizer.lr: must be greater than 0"),
        ("{model.args.wide: [1]}", "3:24: model.args.wide: `build` in line.py has no such"),
        ("{train.optimizr.lr: [1]}", "train.optimizr: there is no such key. Did you mean"),
        ("{model.args.width: [8, 8]}", "sweep.parameters.model.args.width.1: two trials would be"),
        ("{train.steps: [4, 5]}", "sweep.parameters.train.steps: it does not change what is"),
        ("{budget.usd: [4, 5]}", "sweep.parameters.budget.usd: it does not change what is"),
        ("{train.optimizer.lr: [1, 1.0]}", "trials 1 (train.optimizer.lr=1) and 2"),
        ("{train.seed: {min: 1, max: 9}}", "a grid needs the number of values to take"),
        ("{train.seed: {min: 9, max: 1}}", "must have a `min` that is less than its `max`"),
        ("{train.seed: {min: 0, max: 9, log: true}}", "must begin above 0 with `log: true`"),
        ("{train.seed: {min: 0, max: 2, points: 9}}", "has fewer different numbers than `points`"),
        ("{train.seed: 3}", "must be a list or a range (got 3)"),
        ("{}", "sweep.parameters: no key has several values"),
    ],
)
def test_a_mistake_is_said_at_its_place(tmp_path: Path, sweep: str, said: str) -> None:
    """Of the sweep, or of one of its values: where it was written."""
    path = tmp_path / "recipes" / "swept.yaml"
    project = Project(tmp_path)
    text = project.recipe.read_text()
    project.write("recipes/swept.yaml", f"sweep:\n  parameters:\n    {sweep}\n{text}")
    with pytest.raises(RecipeError) as error:
        Trials.of(path).all()
    assert any(
        line.startswith(f"{path}:3:") and said in line for line in str(error.value).split("\n")
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  method: random\n", "sweep: the number of trials to be drawn is missing"),
        ("  max_trials: 3\n", "sweep.max_trials: the grid has 4 trials (got 3)"),
        ("  metric: acuracy\n", "Did you mean `accuracy`?"),
        ("  metric: f1\n", "sweep.metric: no evaluation measures it (got f1)"),
        ("  stop: {method: halving, rungs: 1}\n", "only the last step is evaluated"),
        ("  method: bayes\n", "sweep: the number of trials to be proposed is missing"),
        ("  pool: 3\n  parallel: 2\n", "sweep.pool: some of its machines would have no trial"),
        ("checkpoint: {store: hub://me/one}\n", "a repository is one run's, and a sweep has many"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, more: str, said: str) -> None:
    """Each rule between its keys has its sentence."""
    project = Project(tmp_path)
    text = project.recipe.read_text().replace("checkpoint: {every: 5 steps, keep: 3}\n", "")
    path = project.write("recipes/swept.yaml", text + SWEEP + more)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert said in str(error.value)


def test_rungs_are_evaluations_before_the_end(tmp_path: Path) -> None:
    """As many different ones as the sweep has rungs."""
    path = written(Project(tmp_path), SWEEP + "  stop: {method: halving, rungs: 2, reduction: 2}\n")
    load_recipe(path, ["train.evaluate.every=5 steps"])
    with pytest.raises(
        RecipeError, match=r"its rungs would coincide: they are after 10, 10 of 20 steps"
    ):
        load_recipe(path, ["train.evaluate.every=10 steps"])
    load_recipe(path, ["train.steps=null", "train.epochs=8"])
    with pytest.raises(RecipeError, match=r"after 1, 1 of 2 epochs"):
        load_recipe(path, ["train.steps=null", "train.epochs=2"])


@pytest.mark.parametrize(
    ("last", "every", "part", "step"),
    [
        (20, 5, 2, 10),
        (20, 4, 3, 8),
        (20, 7, 2, 14),
        (20, 15, 2, 15),
        (20, 30, 2, 20),
        (9, None, 3, 9),
    ],
)
def test_a_rung_is_the_next_evaluation(last: int, every: int | None, part: int, step: int) -> None:
    """After the first of so many parts of the steps, rounded up; the last step where there is none
    before."""
    assert rung_step(last, every, part) == step


def test_evaluations_are_counted_in_steps() -> None:
    """Whatever unit they are written in; nobody knows while nobody has counted an epoch."""
    epochs, steps = Every.parse("2 epochs"), Every.parse("30 steps")
    assert [
        evaluated_every(epochs, False, 12),
        evaluated_every(steps, True, None),
        evaluated_every(None, True, 12),
        evaluated_every(None, False, 12),
        evaluated_every(epochs, True, None),
    ] == [24, 30, 12, None, None]


def test_what_counts() -> None:
    """Keys from which a run's id follows, and no others."""
    yes = ("train.optimizer.args.momentum", "model.args.x", "dataset.name", "task", "train.seed")
    no = ("train.steps", "model.adapter.merge", "budget.usd", "train.evaluate.every", "name")
    assert [key for key in (*yes, *no) if counts(key)] == list(yes)


def test_a_number_that_no_trial_has(tmp_path: Path) -> None:
    """It is refused, and so is a recipe without a sweep."""
    project = Project(tmp_path)
    with pytest.raises(LaunchError, match=r"has 4 trials \(got 5\)"):
        Trials.of(written(project, SWEEP)).trial(5)
    with pytest.raises(RecipeError, match="sweep: there is none"):
        Trials.of(project.recipe)


def test_an_override_reaches_a_key_with_dots(tmp_path: Path) -> None:
    """The rest of the override's key is the swept key, or goes on below one that is there."""
    path = written(Project(tmp_path), SWEEP)
    made = Trials.of(path, ["sweep.parameters.train.seed=[0, 1]"])
    assert len(made.values) == 8
    ranged = ["sweep.parameters.train.seed={min: 1, max: 9}"]
    made = Trials.of(path, [*ranged, "sweep.parameters.train.seed.points=3"])
    assert sorted({each["train.seed"] for each in made.values}) == [1, 5, 9]
