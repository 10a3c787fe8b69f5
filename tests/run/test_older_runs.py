"""Runs that older versions of xrun have begun go on: under their ids, from their last commits, to
the same end.

tests/fixtures/runs/README.md says how they were made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.numpy import load_file

from loopback.hub import Hub
from support.paths import FIXTURES
from support.running import Done, Project, attempt, curve, ended, start
from xrun.launcher.job import choose_run
from xrun.launcher.preflight import check_online, refuse
from xrun.recipe.load import load_recipe
from xrun.run.checkpoint import ARITHMETIC
from xrun.run.folder import RunFolder
from xrun.run.plan import make_plan

RUNS = FIXTURES / "runs"
RUN = "small-9a6bef08"

# The library's own use of httpx and of hf_xet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning"),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The project as it was, on this machine, with its run of rule 1: two lives, killed after step
    7 and stopped at step 13."""
    shutil.copytree(RUNS / "rule-1", tmp_path / "old")
    return tmp_path / "old" / "recipes" / "small.yaml"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same recipe, trained here and now."""
    root = tmp_path_factory.mktemp("undisturbed") / "old"
    shutil.copytree(RUNS / "rule-1", root, ignore=shutil.ignore_patterns("runs"))
    recipe = root / "recipes" / "small.yaml"
    plan = make_plan(load_recipe(recipe), recipe, environ={})
    assert attempt(plan).code == 0
    return RunFolder(plan.folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


def record_of(run: RunFolder) -> dict[str, Any]:
    head = run.head()
    assert head is not None
    return head.record


def test_a_run_of_rule_1_goes_on(
    old: Path, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command finds the run that an older xrun has begun, and ends it under its id and its
    rule: every step is there once, and the weights are those of a run that nobody disturbed, but
    for what other processors round otherwise."""
    monkeypatch.setenv("LOGNAME", "root")
    plan = choose_run(make_plan(load_recipe(old), old, environ={}))
    assert (plan.run, plan.rule) == (RUN, 1)
    done = attempt(plan)
    assert done.code == 0, done.err
    assert "Going on from step 13." in done.err
    run = RunFolder(plan.folder)
    record = record_of(run)
    assert (record["rule"], record["digest"], len(record["attempts"])) == (1, plan.digest, 3)
    assert sorted(curve(run)) == list(range(1, 21))
    assert record["attempts"][2]["from_step"] == 13
    compare(run, undisturbed)
    assert choose_run(make_plan(load_recipe(old), old, environ={})) == plan


def compare(run: RunFolder, other: RunFolder) -> None:
    """The same steps on the same samples, and weights that differ by rounding at most."""
    assert {s: p["train/samples"] for s, p in curve(run).items()} == {
        s: p["train/samples"] for s, p in curve(other).items()
    }
    ours, theirs = (load_file(folder.model / "model.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert abs(tensor - theirs[name]).max() < 1e-4, name


def test_the_command_goes_on_with_it(old: Path) -> None:
    """`xrun RECIPE` as a person types it; `--run` with its id, and without a plan.json, which one
    may have been told to delete."""
    root = old.parent.parent
    (root / "home").mkdir()

    def xrun(*arguments: str) -> Done:
        return ended(start(root, str(old), "--yes", *arguments, environ={"LOGNAME": "root"}))

    (root / "runs" / RUN / "plan.json").unlink()
    done = xrun("--run", RUN, "-s", "train.steps=15")
    assert done.code == 0, done.err
    assert "Going on from step 13." in done.err
    done = xrun()
    assert done.code == 0, done.err
    assert f"Finished {RUN}" in done.out
    assert [path.name for path in (root / "runs").iterdir()] == [RUN]


def test_a_plan_is_of_the_run_that_would_go_on(old: Path, hub: Hub) -> None:
    """`xrun plan` prints, and `check --online` asks about, the run that `xrun RECIPE` would go on
    with."""
    root, environ = old.parent.parent, {"LOGNAME": "root", **hub.environ("bob")}
    planned = ended(start(root, "plan", str(old), "--json", environ=environ))
    assert planned.code == 0, planned.err
    assert (json.loads(planned.out)["run"], json.loads(planned.out)["rule"]) == (RUN, 1)
    shutil.rmtree(root / "runs")
    lay_down(HfApi(endpoint=hub.url, token=hub.token("bob")), f"bob/{RUN}", RUNS / "rule-1-hub")
    before = len(hub.requests)
    online = ["check", "--online", str(old), "-s", "checkpoint.store=hub"]
    asked = ended(start(root, *online, environ=environ))
    assert asked.code == 0, asked.err
    lines = [request.line for request in hub.requests[before:]]
    assert any(f"bob/{RUN}" in line for line in lines), lines


def test_another_recipe_is_told_what_differs(old: Path) -> None:
    """A change of what the run computes is named key by key, with the old and the new value,
    whichever rule has numbered it."""
    plan = make_plan(load_recipe(old, ["train.seed=1"]), old, environ={})
    with pytest.raises(
        Exception,
        match=r"which is small-9a6bef08. What is different: train.seed: 0 -> 1\. Start",
    ):
        choose_run(plan)


def test_a_run_on_the_hub_goes_on(
    tmp_path: Path, hub: Hub, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that never saw the run: the recipe finds it on the Hub under the id that the older
    rule gave it, and ends it."""
    root = tmp_path / "old"
    shutil.copytree(RUNS / "rule-1", root, ignore=shutil.ignore_patterns("runs"))
    recipe = root / "recipes" / "small.yaml"
    for name, value in {**hub.environ("alice"), "XRUN_HUB_SPACING": "0"}.items():
        monkeypatch.setenv(name, value)
    lay_down(HfApi(endpoint=hub.url, token=hub.token("alice")), f"alice/{RUN}", RUNS / "rule-1-hub")
    loaded = load_recipe(recipe, ["checkpoint.store=hub"])
    plan = choose_run(make_plan(loaded, recipe, environ={}))
    assert plan.run != RUN
    plan = refuse(check_online(loaded, plan, everything=False, unknown_here=True))
    assert (plan.run, plan.rule, plan.store) == (RUN, 1, f"hub://alice/{RUN}")
    done = attempt(plan)
    assert done.code == 0, done.err
    assert "Going on from step 14." in done.err
    run = RunFolder(plan.folder)
    assert sorted(curve(run)) == list(range(1, 21)), "the points before come from the Hub"
    compare(run, undisturbed)
    record = json.loads(hub.read(f"alice/{RUN}", "head.json", "state"))["record"]
    assert (record["rule"], len(record["attempts"])) == (1, 3)


@pytest.mark.parametrize("store", ["hub://alice/named-by-me", "hub-bucket://alice/named-by-me"])
def test_a_new_run_on_the_hub_gets_the_newest_rule(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """Where the Hub holds nothing, the run is new, and no repository is made by asking."""
    project = Project(tmp_path)
    for name, value in hub.environ("alice").items():
        monkeypatch.setenv(name, value)
    loaded = load_recipe(project.recipe, [f"checkpoint.store={store}"])
    plan = make_plan(loaded, project.recipe, environ={})
    assert refuse(check_online(loaded, plan, everything=False, unknown_here=True)).run == plan.run
    assert not HfApi(endpoint=hub.url, token=hub.token("alice")).repo_exists("alice/named-by-me")


def test_a_changed_arithmetic_is_said(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that another version of the arithmetic has computed: the resume says from which
    step on bits may differ, and the next checkpoint names today's."""
    monkeypatch.setenv("LOGNAME", "root")
    plan = choose_run(make_plan(load_recipe(old), old, environ={}))
    run = RunFolder(plan.folder)
    store = run.store()
    head = store.head()
    assert head is not None
    store.commit(
        {
            **head.record,
            "checkpoints": [{**each, "arithmetic": 0} for each in head.record["checkpoints"]],
        },
        head,
    )
    done = attempt(plan)
    assert done.code == 0, done.err
    said = next(line for line in done.err.splitlines() if "bits may differ" in line)
    assert said.startswith(
        f"From step 13 on bits may differ from an undisturbed run: arithmetic 0 -> {ARITHMETIC}"
    )
    assert record_of(run)["checkpoints"][-1]["arithmetic"] == ARITHMETIC


def lay_down(api: HfApi, repo: str, folder: Path) -> None:
    """A repository whose branch `state` is what an older xrun has left there."""
    api.create_repo(repo, private=True)
    api.create_branch(repo, branch="state")
    files = [path for path in folder.rglob("*") if path.is_file()]
    additions = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files
    ]
    number = json.loads((folder / "head.json").read_text())["number"]
    for addition in additions:
        if addition.path_in_repo.startswith("objects/"):
            addition._upload_mode = "lfs"
    api.preupload_lfs_files(
        repo, [a for a in additions if a.path_in_repo.startswith("objects/")], revision="state"
    )
    api.create_commit(repo, additions, commit_message=f"Commit {number} of {RUN}", revision="state")
