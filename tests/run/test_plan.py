"""Plans: what a run's id follows from, and what travels in plan.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.running import RECIPE, Project
from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.schema import Recipe
from xrun.run.plan import Plan, differences, make_plan


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=21",
        "hardware={local: {processes: 2}}",
        "checkpoint.every=7 steps",
        "checkpoint.keep=5",
        "budget.hours=1.0",
        "train.num_workers=2",
        "train.log_every=2",
        "env={A: b}",
        "train.reduction=exact",
    ],
)
def test_what_is_not_mathematics_keeps_the_run(project: Project, override: str) -> None:
    """Hardware, checkpoints, tracking, budget and the number of steps do not change a run's id."""
    assert project.plan(override).run == project.plan().run


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=1",
        "train.global_batch=16",
        "train.micro_batch=4",
        "train.optimizer.lr=0.02",
        "train.optimizer.name=sgd",
        "train.schedule.warmup_steps=3",
        "train.clip_grad_norm=1.0",
        "train.ema=0.9",
        "train.precision=bf16",
        "model.args={width: 9}",
        "dataset.args={n: 99}",
        "train.schedule.name=linear",
    ],
)
def test_what_is_mathematics_changes_the_run(project: Project, override: str) -> None:
    """Model, data, seed, batches, optimizer, schedule and precision change a run's id, and the
    difference names the key."""
    plan = project.plan(override)
    assert plan.run != project.plan().run
    key = override.partition("=")[0]
    assert any(
        key in line or line.startswith(key)
        for line in differences(project.plan().mathematics, plan.mathematics)
    )


def test_a_components_source_changes_the_run(tmp_path: Path) -> None:
    """One changed character in a component's file, or in a file beside it that it imports, is
    another run."""
    project = Project(tmp_path)
    before = project.plan().run
    model = tmp_path / "models" / "line.py"
    model.write_text(model.read_text().replace("0.1", "0.2"))
    assert project.plan().run != before


def test_the_id_is_a_name_and_eight_digits(project: Project) -> None:
    """A run's id is the recipe's name and 8 hex digits of the digest, at most 40 characters."""
    plan = project.plan()
    assert plan.run == f"tiny-{plan.digest[:8]}"
    assert len(f"{'a' * 28}-{plan.digest[:8]}") <= 40


def test_where_the_recipe_lies_does_not_matter(project: Project, tmp_path: Path) -> None:
    """The same project in another folder has the same runs."""
    assert Project(tmp_path).plan().digest == project.plan().digest


def test_comments_and_order_do_not_matter(project: Project, tmp_path: Path) -> None:
    """A recipe's comments and the order of its keys are no mathematics."""
    other = Project(
        tmp_path,
        "# a comment\n" + RECIPE.replace("task: classification\n", "") + "task: classification\n",
    )
    assert other.plan().run == project.plan().run


def test_a_recipe_made_by_hand_keeps_the_rules(project: Project) -> None:
    """Without a file nothing was checked before; the plan is where it is, with all that is
    wrong."""
    loaded = load_recipe(project.recipe, [])
    values = loaded.model_dump(mode="json")
    values["train"] |= {"epochs": 3, "micro_batch": 3}
    with pytest.raises(RecipeError) as refused:
        make_plan(Recipe.model_validate(values), project.recipe)
    assert [problem.key for problem in refused.value.problems] == [
        "train.epochs",
        "train.micro_batch",
    ]


def test_a_plan_survives_json(project: Project) -> None:
    """A plan read back from its JSON is the same plan."""
    plan = project.plan("train.steps=9", processes=2, fork="other")
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.load_recipe().train.steps == 9


@given(
    st.dictionaries(
        st.text(st.characters(categories=["Ll"]), min_size=12),
        st.integers() | st.text(),
        max_size=5,
    )
)
def test_a_newer_plan_is_read(project: Project, added: dict[str, int | str]) -> None:
    """Keys that a newer xrun has added to a plan are ignored."""
    plan = project.plan()
    values = {**added, **json.loads(plan.to_json())}
    assert Plan.from_json(json.dumps(values)) == plan


def test_making_a_plan_touches_nothing(tmp_path: Path) -> None:
    """Making a plan writes no file and imports no component."""
    project = Project(tmp_path)
    project.write(
        "models/line.py",
        "raise RuntimeError('imported')\n\n\ndef build(width: int = 8):\n    return None\n",
    )
    before = sorted(tmp_path.rglob("*"))
    project.plan()
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_lie_where_the_recipe_or_the_environment_says(
    project: Project, tmp_path: Path
) -> None:
    """checkpoint.store names the folder of runs; `local` is $XRUN_HOME, else runs/ of the
    project."""
    recipe = load_recipe(project.recipe, [])
    assert make_plan(recipe, project.recipe, environ={}).home == str(project.root / "runs")
    assert make_plan(recipe, project.recipe, environ={"XRUN_HOME": str(tmp_path)}).home == str(
        tmp_path
    )
    stored = load_recipe(project.recipe, ["checkpoint.store=./elsewhere"])
    assert make_plan(stored, project.recipe, environ={"XRUN_HOME": str(tmp_path)}).home == str(
        project.root / "elsewhere"
    )


@pytest.mark.parametrize("store", ["hub", "hub://org/name", "hub-bucket://org/name"])
def test_a_store_far_away_is_named_by_the_plan(project: Project, store: str) -> None:
    """The state goes where the recipe says; logs and metrics stay in the project's runs, wherever
    the state is."""
    plan = make_plan(
        load_recipe(project.recipe, [f"checkpoint.store={store}"]), project.recipe, environ={}
    )
    assert (plan.store, plan.home) == (store, str(project.root / "runs"))
    assert make_plan(load_recipe(project.recipe, []), project.recipe, environ={}).store == ""


def test_differences_name_what_came_and_went() -> None:
    """A key that only one side has is shown as absent on the other."""
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: 2 -> (absent)",
        "a.d: (absent) -> 3",
    ]
    before, after = {"models/a.py": "1", "b.py": "2"}, {"models/a.py": "3", "c.py": "2"}
    assert differences({"sources": before}, {"sources": after}) == [
        "b.py was removed",
        "c.py was added",
        "models/a.py was edited",
    ]


def test_a_tracker_that_is_not_there_yet_is_refused(project: Project) -> None:
    """A recipe that asks for a tracker that this version lacks is told at its place what would do,
    never silently ignored."""
    with pytest.raises(RecipeError, match=r"tracking\.trackio: xrun sends nothing to Trackio"):
        project.plan("tracking.trackio.project=x")
