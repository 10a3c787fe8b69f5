"""What people read of a sweep: its trials before anything is trained, how far it is, the best one.

Covers `xrun.sweep.table`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loopback.hub import Hub
from support.far_away import FAST, environment
from support.running import Project, weights
from support.terminals import on_a_terminal
from xrun.sweep.board import Board
from xrun.sweep.proposal import propose
from xrun.sweep.standing import Result
from xrun.sweep.trials import Trials

pytestmark = pytest.mark.once

SWEEP = """\
sweep:
  parameters:
    train.optimizer.lr: [0.01, 0.1]
    model.args.width: {min: 8, max: 16, points: 2}
  stop: {method: halving, rungs: 1, reduction: 2}
"""
EVERY = ("-s", "train.evaluate.every=5 steps")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A sweep of four trials: two have come to their end, of which one failed, one is out, and one
    goes on."""
    project = Project(tmp_path)
    project.write("recipes/swept.yaml", project.recipe.read_text() + SWEEP)
    return project


def standing(project: Project, *results: tuple[int, int, Result]) -> Trials:
    """The sweep with these results on its board."""
    trials = Trials.of(project.root / "recipes" / "swept.yaml", EVERY[1:])
    board = Board(trials, trials.own_plan)
    for trial, rung, result in results:
        board.post(trial, rung, result)
    return trials


RUNG = ((1, 1, Result(10, 0.5)), (2, 1, Result(10, 0.4)), (3, 1, Result(10, failed="it broke")))
END = ((4, 1, Result(10, 0.3)), (4, 2, Result(20, 0.25)))


def test_check_lists_the_trials(project: Project) -> None:
    """With their values and the ids of their runs; a trial that is wrong is a problem of the
    recipe, and code 2."""
    done = project.xrun("check", "recipes/swept.yaml", *EVERY)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()[1:]]
    runs = [each.plan.run for each in standing(project).all()]
    values = [("0.01", "8"), ("0.01", "16"), ("0.1", "8"), ("0.1", "16")]
    assert rows[0] == ["trial", "lr", "width", "run"]
    assert rows[1:] == [
        [str(number), *value, run]
        for number, (value, run) in enumerate(zip(values, runs, strict=True), 1)
    ]
    wrong = project.xrun("check", "recipes/swept.yaml", *EVERY, "-s", "model.args.wide=3")
    assert wrong.code == 2


def test_table_and_status(project: Project) -> None:
    """Each trial's state and newest result, and the sweep in a few lines; the same as JSON."""
    trials = standing(project, *RUNG)
    done = project.xrun("sweep", "table", "recipes/swept.yaml", *EVERY)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["trial", "lr", "width", "run", "state", "step", "loss", "hours"]
    run = trials.trial(1).plan.run
    assert rows[1] == ["1", "0.01", "8", run, "parked", "(1)", "10", "0.5", "-"]
    assert [row[4] for row in rows[1:]] == ["parked", "parked", "failed", "waits"]
    narrow = on_a_terminal(project, 50, "sweep", "table", "recipes/swept.yaml", *EVERY)
    assert narrow.splitlines()[0].split() == ["trial", "lr", "width", "run", "state", "loss"]
    assert max(map(len, narrow.splitlines())) <= 50
    assert run[-8:] in narrow
    standing(project, *END)
    told = project.xrun("sweep", "table", "recipes/swept.yaml", *EVERY, "--json")
    states = [(row["trial"], row["state"], row["value"]) for row in json.loads(told.out)]
    assert states == [
        (1, "out", 0.5),
        (2, "waits", 0.4),
        (3, "failed", None),
        (4, "finished", 0.25),
    ]
    said = project.xrun("sweep", "status", "recipes/swept.yaml", *EVERY).out.splitlines()
    assert said[0] == f"{trials.id}: 4 trials, 1 failed, 1 finished, 1 out, 1 waits"
    assert said[1] == "  rung 1   4 of 4 there, 2 go on"
    assert said[3] == "Best: trial 4, loss 0.25, train.optimizer.lr=0.1, model.args.width=16"
    counted = json.loads(
        project.xrun("sweep", "status", "recipes/swept.yaml", *EVERY, "--json").out
    )
    assert (counted["best"], counted["states"]["out"]) == (4, 1)


def test_what_follows_from_results(project: Project) -> None:
    """`xrun check` says of what the trials will be made, and the table which there are by now."""
    given = (*EVERY, "-s", "sweep.method=bayes", "-s", "sweep.max_trials=3")
    done = project.xrun("check", "recipes/swept.yaml", *given)
    assert done.code == 0, done.err
    assert [line.strip() for line in done.out.splitlines()[1:]] == [
        "3 trials, each proposed from what those before it have come to, of",
        "train.optimizer.lr: 0.01, 0.1",
        "model.args.width: 8 to 16, 2 values",
    ]
    trials = Trials.of(project.root / "recipes" / "swept.yaml", given[1::2])
    board = Board(trials, trials.own_plan)
    propose(trials, board)
    board.post(1, 1, Result(10, 0.5))
    table = project.xrun("sweep", "table", "recipes/swept.yaml", *given).out.splitlines()
    assert [line.split()[0] for line in table] == ["trial", "1"]
    said = project.xrun("sweep", "status", "recipes/swept.yaml", *given).out.splitlines()
    assert said[0] == f"{trials.id}: 3 trials, 1 parked, 2 not proposed yet"
    none = project.xrun("plan", "recipes/swept.yaml", *given, "--trial", "2")
    assert none.code == 3
    assert "has 1 trials so far, and others follow" in none.err


def test_best(project: Project) -> None:
    """The best trial that has come to its end, and where its model is; code 3 where there is none
    yet."""
    standing(project, *RUNG)
    none = project.xrun("sweep", "best", "recipes/swept.yaml", *EVERY)
    assert none.code == 3
    assert "`xrun sweep status recipes/swept.yaml` tells how far it is." in none.err
    trials = standing(project, *END)
    run = trials.trial(4).plan.run
    gone = project.xrun("sweep", "best", "recipes/swept.yaml", *EVERY)
    assert gone.code == 0, gone.err
    assert f"The run {run} of the best trial, 4, was deleted. Its result is still" in gone.out
    refused = project.xrun("sweep", "best", "recipes/swept.yaml", *EVERY, "--publish", "hub")
    assert refused.code == 3
    assert "`xrun recipes/swept.yaml --trial 4` trains it again." in refused.err
    trained = project.xrun("recipes/swept.yaml", *EVERY, "--trial", "4")
    assert trained.code == 0, trained.err
    assert f"Its run {run} was deleted, and is trained again." in trained.out
    done = project.xrun("sweep", "best", "recipes/swept.yaml", *EVERY)
    assert done.code == 0, done.err
    assert f"  run      {run}\n  model    {project.home / run / 'model'}" in done.out
    told = json.loads(project.xrun("sweep", "best", "recipes/swept.yaml", *EVERY, "--json").out)
    assert (told["trial"], told["run"], told["value"]) == (4, run, 0.25)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipes/tiny.yaml", "--trial", "1"], "--trial: recipes/tiny.yaml has no sweep."),
        (["recipes/swept.yaml", "--new"], "--new is for one run, and this recipe has a sweep."),
        (["recipes/swept.yaml", "--detach"], "--detach is for one run"),
        (["plan", "recipes/swept.yaml"], "add --trial N. `xrun check` lists them."),
        (["drill", "recipes/swept.yaml"], "add --trial N. `xrun check` lists them."),
        (["rehearse", "recipes/tiny.yaml", "--trial", "1"], "has no sweep."),
    ],
)
def test_what_is_not_for_a_sweep_is_refused(
    project: Project, arguments: list[str], said: str
) -> None:
    """With a sentence, and nothing begun."""
    done = project.xrun(*arguments, *EVERY)
    assert done.code == 2
    assert said in done.err
    assert not project.home.exists()


def test_a_sweep_is_told_where_a_run_is_meant(project: Project) -> None:
    """By its id: each command names those that are for sweeps, and nothing of it is deleted."""
    trials = standing(project, (1, 1, Result(6, 0.5)))
    board = project.home / trials.id
    for command in ("report", "watch", "logs", "receipt", "export", "resume", "cancel", "rm"):
        done = project.xrun(command, trials.id, *(["--yes"] if command == "rm" else []))
        said = (
            f"xrun: {trials.id} is a sweep, not a run. `xrun sweep status RECIPE` tells how far it"
            f" is, `xrun sweep table RECIPE` its runs; `xrun status {trials.id}` lists them too,"
            f" `xrun page {trials.id}` shows them.\n"
        )
        assert (done.code, done.err) == (3, said), command
    assert (board / "state").is_dir()
    (board / "state").rename(project.root / "far-away")
    done = project.xrun("report", trials.id)
    assert (done.code, done.err.endswith("`xrun sweep table RECIPE` its runs.\n")) == (3, True)


def test_a_trial_that_does_not_exist(project: Project) -> None:
    """Code 3, before anything is trained."""
    done = project.xrun("recipes/swept.yaml", *EVERY, "--trial", "9")
    assert done.code == 3
    assert "has 4 trials (got 9)" in done.err


def test_plan_of_a_trial(project: Project) -> None:
    """What `--trial` means is one run's plan."""
    done = project.xrun("plan", "recipes/swept.yaml", *EVERY, "--trial", "3", "--json")
    plan = json.loads(done.out)
    assert plan["run"] == standing(project).trial(3).plan.run
    assert plan["recipe"]["train"]["optimizer"]["lr"] == 0.1
    assert plan["recipe"]["sweep"] is None


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


def test_the_best_model_is_published_on_request(project: Project, hub: Hub) -> None:
    """Where `--publish` says, whatever the recipe says; of other trials nothing is published."""
    best = project.attempt("train.optimizer.lr=0.1", "model.args.width=16", EVERY[1])
    assert best.code == 0, best.err
    trials = standing(project, *RUNG, *END)
    assert trials.trial(4).plan.run == project.run.run
    account = {**hub.environ("alice"), **FAST}
    where = ("--publish", "hub://alice/best")
    done = project.xrun("sweep", "best", "recipes/swept.yaml", *EVERY, *where, environ=account)
    assert done.code == 0, done.err
    assert f"Published the model of trial 4, {project.run.run}, at hub://alice/best" in done.out
    published = hub.read("alice/best", "model.safetensors", "main")
    assert hashlib.sha256(published).hexdigest() == weights(project.run)
    theirs = project.xrun(
        "sweep",
        "best",
        "recipes/swept.yaml",
        *EVERY,
        "--publish",
        "hub://bob/best",
        environ=account,
    )
    assert theirs.code == 3
    assert "your token has no access to this owner" in theirs.err


def test_a_sweep_whose_state_is_on_the_hub(project: Project, hub: Hub) -> None:
    """Its board is a repository of the sweep's name, beside those of its trials."""
    given = (*EVERY, "-s", "checkpoint.store=hub")
    account = {**hub.environ("alice"), **FAST}
    path = project.root / "recipes" / "swept.yaml"
    with environment(account):
        unplaced = Trials.of(path, given[1::2])
        own = replace(unplaced.own_plan, store=f"hub://alice/{unplaced.id}", owner="alice")
        trials = unplaced.placed(own)
        assert str(trials.trial(2).plan.address) == f"hub://alice/{trials.trial(2).plan.run}"
        Board(trials, own).post(2, 1, Result(10, 0.5))
    done = project.xrun("sweep", "status", "recipes/swept.yaml", *given, environ=account)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{trials.id}: 4 trials, 1 parked, 3 waits")
