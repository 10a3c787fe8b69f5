"""A run is opened at its address from a machine that has nothing of it.

Covers `xrun.run.opened`, and of `xrun.run.stores` that a plan and an address lead to one store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from support.buckets import Server, moto
from support.hub_store import HUB_WARNINGS
from support.kept_runs import keep
from support.running import Project
from support.worlds import hub_world
from xrun.errors import LaunchError, StoreError
from xrun.launcher.cancel import cancel
from xrun.launcher.removal import removal
from xrun.run.folder import RunFolder
from xrun.run.listing import list_runs
from xrun.run.locked import Lock
from xrun.run.opened import open_run, parse
from xrun.run.plan import Plan
from xrun.run.receipt import NO_RECEIPT
from xrun.store.hub.model import HubModel
from xrun.training.page import write_page

pytestmark = [pytest.mark.once, *HUB_WARNINGS]
NUMBERS = iter(range(1, 1_000_000))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto() as s3:
        yield s3


@dataclass
class Kept:
    """A run, and what somebody elsewhere types to open it."""

    plan: Plan
    address: str


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The one of whoever has trained; the test stands in an empty folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    return Project(tmp_path / "project")


@pytest.fixture(params=["folder", "hub", "hub-bucket", "s3"])
def kept(
    request: pytest.FixtureRequest,
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Kept]:
    """A finished run in each kind of store, and none of its files on this machine but for a
    folder's."""
    kind = request.param
    if kind == "folder":
        plan = project.plan()
        plan_file = RunFolder(plan.folder).write_plan(plan)
        keep(plan, plan.folder)
        yield Kept(plan, str(plan_file.parent))
    elif kind == "s3":
        server = request.getfixturevalue("server")
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        bucket = server.make(f"opened-{next(NUMBERS)}")
        plan = project.plan(f"checkpoint.store={bucket}/runs")
        keep(plan, tmp_path / "lost")
        yield Kept(plan, f"{bucket}/runs/{plan.run}")
    else:
        with hub_world(tmp_path, kind, monkeypatch) as world:
            monkeypatch.setenv("HF_TOKEN", world.hub.token("alice"))
            plan = replace(project.plan(f"checkpoint.store={kind}://alice/tiny"), owner="alice")
            keep(plan, tmp_path / "lost")
            yield Kept(plan, f"{kind}://alice/tiny")


def test_a_run_is_its_address(kept: Kept, tmp_path: Path) -> None:
    """Record, recipe, points and the logs of every attempt and process are there, verified, and
    nothing is made in the folder that the person stands in."""
    shutil.rmtree(tmp_path / "lost", ignore_errors=True)
    opened = open_run(kept.address)
    assert (opened.run, opened.owner) == (kept.plan.run, kept.plan.owner)
    assert opened.record.digest == kept.plan.digest
    assert opened.recipe == kept.plan.recipe
    assert [point["step"] for point in opened.points() if "train/loss" in point] == [*range(1, 21)]
    assert opened.log_text().endswith("attempt 2, rank 0\n")
    assert opened.log_text(1, 1).endswith("attempt 1, rank 1\n")
    with pytest.raises(LaunchError, match="has 2 attempts"):
        opened.log_text(3)
    made = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert made <= {".cache"}


@pytest.mark.parametrize("kept", ["hub", "hub-bucket"], indirect=True)
def test_a_model_page_leads_to_its_run(kept: Kept) -> None:
    """Its URL is the address, wherever the bulk of the state lies."""
    for end in ("", "/", "/tree/main", "/blob/main/README.md"):
        opened = open_run(f"{os.environ['HF_ENDPOINT']}/alice/tiny{end}")
        assert opened.address == kept.address
        assert opened.log_text().endswith("attempt 2, rank 0\n")


@pytest.mark.parametrize("kept", ["s3"], indirect=True)
def test_a_page_leads_to_a_state_elsewhere(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that `publish: hub` has put there; what says no address leads nowhere,
    and nothing is stopped or deleted by a page."""
    model = tmp_path / "model"
    model.mkdir()
    write_page(model, kept.plan, Lock(), [], {}, "ab", NO_RECEIPT)
    with hub_world(tmp_path, "hub", monkeypatch) as world:
        monkeypatch.setenv("HF_TOKEN", world.hub.token("alice"))
        HubModel.elsewhere("alice/digits", "a").publish(model, kept.plan.run, "a model")
        opened = open_run(f"{os.environ['HF_ENDPOINT']}/alice/digits")
        assert (opened.run, opened.address) == (kept.plan.run, kept.address)
        assert [each.status for each in list_runs("hub://alice/digits")] == ["finished"]
        for forbidden in (removal, partial(cancel, save=True, say=print)):
            with pytest.raises(LaunchError, match="hub://alice/digits holds no run"):
                forbidden("hub://alice/digits")
        for text in (f'{{"run": "tiny-1", "state": "{tmp_path}"}}', "[]", '{"state": 1}'):
            (model / "xrun" / "run.json").write_text(text)
            HubModel.elsewhere("alice/other", "a").publish(model, kept.plan.run, "a model")
            with pytest.raises(LaunchError, match="hub://alice/other holds no run"):
                open_run("hub://alice/other")


@pytest.mark.parametrize("kept", ["folder"], indirect=True)
def test_a_folder_may_hold_only_the_state(kept: Kept, tmp_path: Path) -> None:
    """A run's folder without its plan, its state, and a copy of the state anywhere."""
    state, copy = kept.plan.folder / "state", tmp_path / "copy"
    shutil.copytree(state, copy)
    (kept.plan.folder / "plan.json").unlink()
    for folder in (kept.plan.folder, state, copy):
        assert open_run(str(folder)).run == kept.plan.run
    assert len(open_run(str(state)).points()) == 22
    assert open_run(str(copy)).points() == []


def test_a_run_of_this_project_needs_no_address(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder)
    monkeypatch.chdir(project.root)
    opened = open_run(plan.run)
    assert opened.beside == RunFolder(plan.folder)
    assert opened.address == str(plan.folder / "state")


@pytest.mark.parametrize("kept", ["s3"], indirect=True)
def test_what_is_not_in_a_bucket_is_told(kept: Kept) -> None:
    """Another run's place, the prefix of all runs, and no bucket."""
    prefix = kept.address.rpartition("/")[0]
    with pytest.raises(LaunchError, match=rf"{prefix}/other holds no run.*`xrun status {prefix}`"):
        open_run(f"{prefix}/other")
    with pytest.raises(LaunchError, match=rf"{prefix} holds no run"):
        open_run(prefix)
    with pytest.raises(StoreError, match="There is no bucket"):
        open_run("s3://nowhere/runs/tiny-1")


def test_what_is_not_on_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repository, a stranger's private one, and one without a run."""
    with hub_world(tmp_path, "hub", monkeypatch) as world:
        world.hub.create_repo("alice/secret")
        world.hub.create_repo("bob/model")
        monkeypatch.setenv("HF_TOKEN", world.hub.token("bob"))
        for name in ("alice/nothing", "alice/secret"):
            with pytest.raises(LaunchError, match=rf"no repository {name} .* or this account"):
                open_run(f"hub://{name}")
        with pytest.raises(LaunchError, match="hub://bob/model holds no run"):
            open_run("hub://bob/model")
    assert LaunchError.exit_code == 3


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Nothing", "'Nothing' is not a valid run id"),
        ("nothing-1", "There is no run nothing-1"),
        ("./nothing", "There is no folder .*nothing"),
        (".", "holds no run.*`xrun status .*` lists the runs in it"),
        ("ftp://a/b", "'ftp://a/b' is not an address: there is no such kind of store"),
        ("hub://alice", "a repository there is `hub://owner/name`"),
        ("https://example.com/a/b", "is not the URL of a model page"),
        ("https://huggingface.co/datasets/a/b", "is not the URL of a model page"),
    ],
)
def test_what_is_no_run_is_told(project: Project, text: str, what: str) -> None:
    with pytest.raises(LaunchError, match=what) as error:
        open_run(text)
    assert error.value.exit_code == (2 if text == "Nothing" else 3)


def test_pages_of_the_hub_itself_are_addresses() -> None:
    assert str(parse("https://huggingface.co/a/b-1.5/tree/main")) == "hub://a/b-1.5"
