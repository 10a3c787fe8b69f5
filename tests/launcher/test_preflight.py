"""What is asked before money is spent: each thing that is wrong is one line with the way out, and
the right exit code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loopback.hub import Hub
from loopback.portal import Portal
from loopback.wandb import Wandb
from support.hub_store import HUB_WARNINGS
from support.kept_runs import keep
from support.running import Project
from xrun.errors import CheckpointError, CloudUnavailable, LaunchError, RecipeError
from xrun.launcher.preflight import Online, check_online, place, refuse
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan, make_plan
from xrun.store.address import Address


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        server.organisations["lab"] = {"alice"}
        server.read_only.add("reader")
        server.create_repo("bob/open", private=False)
        server.create_repo("bob/secret", private=True)
        server.create_repo("bob/gated", private=False, gated=True)
        server.create_repo("bob/pictures", kind="dataset", private=False)
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def ask(
    project: Project,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    *overrides: str,
    user: str = "alice",
) -> Online:
    for name, value in hub.environ(user).items():
        monkeypatch.setenv(name, value)
    recipe = load_recipe(project.recipe, overrides)
    return check_online(recipe, make_plan(recipe, project.recipe, environ={}))


def problem(online: Online) -> str:
    assert len(online.problems) == 1, online.problems
    return str(online.problems[0])


def test_hub_becomes_the_users_repository(
    project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared recipe says `hub` and works for everybody: the repository is the token's user's,
    named like the run."""
    online = ask(project, hub, monkeypatch, "checkpoint.store=hub")
    plan = refuse(online)
    assert (plan.store, plan.owner) == (f"hub://alice/{plan.run}", "alice")
    assert online.links == (f"{hub.url}/alice/{plan.run}",)
    assert Plan.from_json(plan.to_json()) == replace(plan)


@pytest.mark.parametrize(
    "store", ["hub://lab/digits", "hub-bucket://lab/digits", "hub://alice/digits"]
)
def test_an_organisation_of_mine_is_fine(
    project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """Members of an organisation may keep their runs there."""
    assert refuse(ask(project, hub, monkeypatch, f"checkpoint.store={store}")).store == store


def test_a_model_gets_a_repository_of_its_own(
    project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`publish: hub` is named like the run, whatever holds the state; what the token may not do is
    said under the key that asks for it."""
    online = ask(project, hub, monkeypatch, "publish=hub")
    plan = refuse(online)
    assert (plan.store, plan.publish) == ("", f"hub://alice/{plan.run}")
    assert online.links == (f"{hub.url}/alice/{plan.run}",)
    assert Plan.from_json(plan.to_json()).model_address == Address("hub", f"alice/{plan.run}")
    both = ["checkpoint.store=hub://lab/state", "publish=hub://alice/model"]
    plan = refuse(ask(project, hub, monkeypatch, *both))
    assert (plan.store, plan.publish) == (both[0][17:], both[1][8:])
    found = problem(ask(project, hub, monkeypatch, "publish=hub://bob/model"))
    assert "publish: your token has no access to this owner (got bob/model)" in found
    found = problem(ask(project, hub, monkeypatch, "publish=hub", user="reader"))
    assert "publish: the Hugging Face token may not write there" in found
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(project.root / "none"))
    made = make_plan(load_recipe(project.recipe, ["publish=hub"]), project.recipe, environ={})
    with pytest.raises(LaunchError, match=r"-s publish=null") as refused:
        place(made, chosen=False)
    assert "there is no Hugging Face token here (got hub)" in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "user", "words"),
    [
        (
            ["checkpoint.store=hub"],
            "reader",
            ["checkpoint.store", "may not write", "settings/tokens"],
        ),
        (
            ["checkpoint.store=hub://bob/digits"],
            "alice",
            ["bob/digits", "no access to this owner", "alice, lab"],
        ),
        (["checkpoint.store=hub://lab/digits"], "carol", ["lab/digits", "no access to this owner"]),
    ],
)
def test_accounts(
    project: Project,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    user: str,
    words: list[str],
) -> None:
    """What an account may not do is an account's error, exit code 3."""
    online = ask(project, hub, monkeypatch, *overrides, user=user)
    assert all(word in problem(online) for word in words), problem(online)
    with pytest.raises(LaunchError):
        refuse(online)


@HUB_WARNINGS[0]
@HUB_WARNINGS[1]
@pytest.mark.once
def test_another_recipe_at_an_address_is_refused_with_its_keys(
    project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no folder of this machine knows the run: by the record that lies there."""
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    store = "checkpoint.store=hub://alice/shared"
    for name, value in hub.environ("alice").items():
        monkeypatch.setenv(name, value)
    begun = replace(project.plan(store), owner="alice")
    keep(begun, tmp_path / "lost")
    assert place(project.plan(store), chosen=False).plan.run == begun.run
    with pytest.raises(CheckpointError, match=rf"the run {begun.run} at .*train\.seed: 0 -> 7"):
        place(project.plan(store, "train.seed=7"), chosen=False)


@HUB_WARNINGS[0]
@HUB_WARNINGS[1]
@pytest.mark.once
def test_another_run_is_one_that_no_machine_has_made(
    project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The store is asked as well: by --again nobody goes on with a run of another machine."""
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    for name, value in hub.environ("alice").items():
        monkeypatch.setenv(name, value)
    plan = project.plan("checkpoint.store=hub")
    for run in (plan.run, f"{plan.run}-2"):
        keep(replace(plan, run=run).placed("alice"), tmp_path / run)
    made = place(plan, chosen=True, another=True).plan
    assert (made.run, made.where) == (f"{plan.run}-3", f"hub://alice/{plan.run}-3")
    RunFolder(made.folder.with_name(f"{plan.run}-3")).write_plan(made)
    assert place(plan, chosen=True, another=True).plan.run == f"{plan.run}-4"
    assert place(plan, chosen=False).plan.run == plan.run


def test_no_token(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token: how to get one."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    recipe = load_recipe(project.recipe, ["checkpoint.store=hub"])
    online = check_online(recipe, make_plan(recipe, project.recipe, environ={}))
    assert "hf auth login" in problem(online)


def test_a_wrong_token(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the Hub does not take is named as such and never printed."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "nonsense-token-value")
    recipe = load_recipe(project.recipe, ["checkpoint.store=hub"])
    online = check_online(recipe, make_plan(recipe, project.recipe, environ={}))
    assert "not valid" in problem(online)
    assert "nonsense" not in problem(online)


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("bob/nothing", None, ["model.args.name", "no such model", "bob/nothing"]),
        ("bob/secret", None, ["model.args.name", "no such model, or this token may not see it"]),
        ("bob/gated", None, ["model.args.name", "the repository is gated", "/bob/gated"]),
        ("bob/open", "v7", ["model.args.name", "no revision v7"]),
        ("bob/open/x", None, ["model.args.name", "not a valid repository name"]),
    ],
)
def test_models(
    project: Project,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    revision: str | None,
    words: list[str],
) -> None:
    """A model that is not there, or not for this person, is found before a machine is paid for: the
    recipe's error, 2."""
    model = f"{{name: hub, args: {{name: {name}{f', revision: {revision}' if revision else ''}}}}}"
    online = ask(project, hub, monkeypatch, f"model={model}")
    assert all(word in problem(online) for word in words), problem(online)
    with pytest.raises(RecipeError):
        refuse(online)


def test_what_is_there_is_fine(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, warm start and dataset exist."""
    overrides = [
        "model={name: hub, args: {name: bob/open, revision: main}}",
        "dataset={name: hub_images, args: {name: bob/pictures}}",
    ]
    assert ask(project, hub, monkeypatch, *overrides).problems == ()


def test_everything_at_once(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """All problems come together; one with an account makes it an account's error."""
    overrides = [
        "checkpoint.store=hub://bob/x",
        "model={name: hub, args: {name: bob/no}}",
        "dataset={name: hub_text, args: {name: bob/no, tokenizer: bob/none}}",
    ]
    online = ask(project, hub, monkeypatch, *overrides)
    assert [one.key for one in online.problems] == [
        "checkpoint.store",
        "model.args.name",
        "dataset.args.name",
        "dataset.args.tokenizer",
    ]
    with pytest.raises(LaunchError, match=r"(?s)bob/x.*bob/no.*bob/no.*bob/none"):
        refuse(online)


def test_a_network_that_is_down_is_no_problem_of_the_recipe(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody there: try again, exit code 75."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    recipe = load_recipe(project.recipe, ["checkpoint.store=hub"])
    with pytest.raises(CloudUnavailable, match="cannot be reached"):
        check_online(recipe, make_plan(recipe, project.recipe, environ={}))


def test_a_tracker_that_is_out_of_reach_is_a_warning_for_a_run_that_has_begun(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's word is taken; of a new run nobody could tell that it is new: try again, 75."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    recipe = load_recipe(project.recipe, ["tracking.wandb={project: p}"])
    plan = make_plan(recipe, project.recipe, environ={})
    with pytest.raises(CloudUnavailable, match=r"does not answer .* -s tracking.wandb=null"):
        check_online(recipe, plan, everything=False)
    keep(plan, plan.folder)
    online = check_online(recipe, plan, everything=False)
    assert online.problems == ()
    assert "; the run goes by its store alone" in online.warnings[0]


def test_a_folder_of_a_stranger_runs_no_code(project: Project, hub: Hub, tmp_path: Path) -> None:
    """`check --online` asks W&B by a process with the keys in its environment: no file of the
    folder that it is typed in is run by it."""
    for name in ("json", "wandb", "requests", "sitecustomize"):
        project.write(f"{name}.py", f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(1)\n")
    with Wandb(tmp_path / "wandb") as wandb:
        accounts = hub.environ("alice") | wandb.environ("alice")
        options = ["-s", "checkpoint.store=hub", "-s", "tracking.wandb={project: p}"]
        done = project.xrun("check", "--online", "recipes/tiny.yaml", *options, environ=accounts)
    assert (done.code, done.err) == (0, ""), done
    assert not (tmp_path / "ran").exists()


def test_the_command(project: Project, hub: Hub, tmp_path: Path) -> None:
    """`xrun check --online` prints each problem on a line and exits with the code of what is wrong;
    --json for programs."""
    with Wandb(tmp_path / "wandb") as wandb:
        accounts = hub.environ("alice") | wandb.environ("alice")
        good = ["-s", "checkpoint.store=hub", "-s", "tracking.wandb={project: p}"]
        done = project.xrun("check", "--online", "recipes/tiny.yaml", *good, environ=accounts)
        assert (done.code, done.err) == (0, ""), done
        bad = ["-s", "checkpoint.store=hub", "-s", "tracking.wandb={project: p, entity: strangers}"]
        done = project.xrun("check", "--online", "recipes/tiny.yaml", *bad, environ=accounts)
        assert done.code == 3
        assert "tracking.wandb" in done.err
        assert "strangers" in done.err
        done = project.xrun(
            "check",
            "--online",
            "recipes/tiny.yaml",
            *good,
            environ=accounts | {"WANDB_API_KEY": "0" * 40},
        )
        assert done.code == 3
        assert "0000" not in done.err
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "how", ["html", "circle", "elsewhere", "list", "deep", "other types", "bomb"]
)
@pytest.mark.parametrize("after", [False, True], ids=["at once", "after the account"])
def test_a_sign_in_page_is_no_hub(
    project: Project, monkeypatch: pytest.MonkeyPatch, how: str, after: bool
) -> None:
    """What answers in the Hub's place is out of reach: 75, one sentence, and no token elsewhere."""
    token = {"accessToken": {"role": "write", "displayName": "x"}}
    who = {"type": "user", "name": "alice", "orgs": [], "auth": token}
    with Portal(how, {"/api/whoami-v2": who} if after else {}) as portal:
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        monkeypatch.setenv("HF_TOKEN", "hf_verysecrettoken")
        model = "model={name: hub, args: {name: bob/open}}"
        recipe = load_recipe(project.recipe, ["checkpoint.store=hub", model])
        with pytest.raises(CloudUnavailable) as error:
            check_online(recipe, make_plan(recipe, project.recipe, environ={}))
    assert error.value.exit_code == 75
    assert "\n" not in str(error.value)
    assert not any(each.elsewhere and each.authorized for each in portal.heard)
