"""`xrun rm` and `xrun export`, of runs here and at their addresses: what goes, what stays, and what
is not touched.

Covers `xrun.cli.keeping`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BucketNotFoundError

from support.buckets import Server, azurite, moto
from support.hub_store import HUB_WARNINGS
from support.kept_runs import keep
from support.running import Project
from support.worlds import hub_world
from xrun.errors import LaunchError
from xrun.launcher.local import only_one
from xrun.launcher.removal import removal, remove
from xrun.run.folder import RunFolder
from xrun.run.opened import open_run
from xrun.run.plan import Plan

pytestmark = [pytest.mark.once, *HUB_WARNINGS]

XRUN = Path(sys.executable).with_name("xrun")


@pytest.fixture(scope="module", params=["s3", pytest.param("az", marks=pytest.mark.e2e)])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    made = moto() if request.param == "s3" else azurite(tmp_path_factory.mktemp("azurite"))
    with made as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    return Project(tmp_path)


def kept(plan: Plan, *, finished: bool = True) -> RunFolder:
    """The run's folder, and its state wherever that is."""
    folder = RunFolder(plan.folder)
    folder.write_plan(plan)
    keep(plan, plan.folder, finished=finished)
    return folder


def xrun(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [XRUN, *arguments], input=answer, capture_output=True, text=True, check=False
    )


def test_a_run_here_goes_after_a_yes(project: Project) -> None:
    """It says how much; others stay. Without a yes nothing goes."""
    folder, other = kept(project.plan()), kept(project.plan("train.seed=1"))
    refused = xrun("rm", folder.run)
    assert (refused.returncode, folder.plan_file.exists()) == (3, True)
    assert f"Nothing of {folder.run} was deleted: you have not agreed to it." in refused.stderr
    recipe = folder.run.partition("-")[0]
    assert f"Of that recipe there are {other.run}, {folder.run}." in xrun("rm", recipe).stderr
    done = xrun("rm", folder.run, answer="y\n")
    assert done.returncode == 0, done.stderr
    size = removal(other.run).freed
    assert done.stdout.splitlines()[0].split(maxsplit=2) == [*size.split(), str(folder.path)]
    assert done.stdout.endswith(f"Deleted {folder.run}: {size} are free.\n")
    assert not folder.path.exists()
    assert other.plan_file.exists()
    again = xrun("rm", folder.run, "--yes")
    assert (again.returncode, again.stderr.startswith("xrun: There is no run")) == (3, True)


def test_a_run_that_is_trained_here_is_not_touched(project: Project) -> None:
    folder = kept(project.plan())
    with only_one(folder), pytest.raises(LaunchError, match=rf"kill {os.getpid()}\. Nothing was"):
        removal(folder.run)


def test_a_run_without_its_plan_is_its_folder(project: Project) -> None:
    """What a damaged disk has left can be deleted as well."""
    folder = kept(project.plan())
    folder.plan_file.unlink()
    remove(removal(folder.run))
    assert not folder.path.exists()


def test_a_folder_elsewhere_is_an_address(project: Project, tmp_path: Path) -> None:
    folder = kept(project.plan())
    (tmp_path / "moved").mkdir()
    moved = folder.path.rename(tmp_path / "moved" / folder.run)
    remove(removal(str(moved)))
    assert not moved.exists()
    with pytest.raises(LaunchError, match="There is no folder"):
        removal(str(moved))


def test_of_a_bucket_only_the_run_s_own_objects_go(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What lies beside its prefix stays, a longer one's with the same beginning too; whether it is
    named by its id here or by its address."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = server.make("removed")
    plan = project.plan(f"checkpoint.store={bucket}/runs")
    folder = kept(plan)
    kept(replace(plan, run=f"{plan.run}-2"))
    before = server.objects(bucket)
    own = {key: size for key, size in before.items() if f"/{plan.run}/" in key}
    what = removal(folder.run)
    assert (what.stored, str(what.place and what.place.address)) == (
        sum(own.values()),
        f"{bucket}/runs/{plan.run}",
    )
    remove(what)
    assert not folder.path.exists()
    left = server.objects(bucket)
    assert left == {key: size for key, size in before.items() if key not in own}
    assert len(left) == len(own)
    remove(removal(f"{bucket}/runs/{plan.run}-2"))
    assert server.objects(bucket) == {}


def test_what_is_here_goes_alone_where_the_state_is_elsewhere(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--here` says what stays and how to go on with it; a run that is here alone is refused."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = server.make("stays")
    folder = kept(project.plan(f"checkpoint.store={bucket}/runs"), finished=False)
    before = server.objects(bucket)
    address = f"{bucket}/runs/{folder.run}"
    done = xrun("rm", folder.run, "--here", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"stays  {address}\n" in done.stdout
    assert done.stdout.endswith(f" `xrun resume {address}` goes on with it.\n")
    assert not folder.path.exists()
    assert server.objects(bucket) == before
    alone = kept(project.plan())
    refused = xrun("rm", alone.run, "--here", "--yes")
    assert (refused.returncode, alone.plan_file.exists()) == (3, True)
    assert f"`xrun rm {alone.run}` deletes the run. Nothing was deleted." in refused.stderr


def test_a_held_lease_is_respected(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt elsewhere that has not ended, until it is silent for an hour."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    plan = project.plan(f"checkpoint.store={server.make('held')}/runs")
    folder = kept(plan, finished=False)
    [*_, last] = folder.record().attempts
    with pytest.raises(LaunchError, match=f"holds {plan.run}; .* xrun cancel {plan.run}"):
        removal(folder.run, clock=lambda: last.last_known + 60)
    assert removal(folder.run, clock=lambda: last.last_known + 4000).stored > 0


def test_a_bucket_of_the_hub_goes_with_its_repository(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its address alone; the bytes in the bucket are what is freed, and others' buckets stay."""
    with hub_world(tmp_path, "hub-bucket", monkeypatch) as world:
        monkeypatch.setenv("HF_TOKEN", world.hub.token("alice"))
        api = HfApi(world.hub.url, world.hub.token("alice"))
        api.create_bucket("alice/another")
        plan = replace(project.plan(), owner="alice")
        plan = replace(plan, store=f"hub-bucket://alice/{plan.run}")
        kept(plan)
        shutil.rmtree(plan.folder)
        what = removal(plan.store)
        assert what.stored == api.bucket_info(f"alice/{plan.run}").size > 0
        remove(what)
        assert api.bucket_info("alice/another").size == 0
        with pytest.raises(BucketNotFoundError):
            api.bucket_info(f"alice/{plan.run}")
        assert not api.repo_exists(f"alice/{plan.run}")


@pytest.mark.parametrize(
    ("name", "private", "goes"),
    [("own", True, True), ("own", False, False), ("tiny", True, False)],
)
def test_of_the_hub_a_private_repository_of_the_run_s_name_goes(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    private: bool,
    goes: bool,
) -> None:
    """Any other stays, and is named."""
    with hub_world(tmp_path, "hub", monkeypatch) as world:
        monkeypatch.setenv("HF_TOKEN", world.hub.token("alice"))
        plan = project.plan()
        repo = f"alice/{plan.run if name == 'own' else name}"
        plan = replace(plan, store=f"hub://{repo}", owner="alice")
        folder = kept(plan)
        api = HfApi(world.hub.url, world.hub.token("alice"))
        if not private:
            api.update_repo_settings(repo, private=False)
        what = removal(folder.run)
        assert (what.place is not None, bool(what.stays)) == (goes, not goes)
        remove(what)
        assert not folder.path.exists()
        assert api.repo_exists(repo) is not goes
        if not goes:
            assert open_run(f"hub://{repo}").run == plan.run


def test_an_export_is_written_where_the_command_is_typed(project: Project, tmp_path: Path) -> None:
    """By id and by address, with its name or another."""
    folder = kept(project.plan())
    done = xrun("export", folder.run, "--csv")
    assert (done.returncode, done.stdout) == (0, f"20 steps, 2 metrics: {folder.run}.csv\n")
    text = (tmp_path / f"{folder.run}.csv").read_text().splitlines()
    assert text[0] == "step,time,train/loss,val/loss"
    assert text[10] == "10,1800000000.0,0.1,0.5"
    for number, kind in enumerate((["--parquet"], [])):
        file = tmp_path / f"{number}.parquet"
        assert xrun("export", str(folder.path), *kind, file.name).returncode == 0
        assert file.read_bytes().startswith(b"PAR1")
    (tmp_path / f"{folder.run}.csv").unlink()
    assert xrun("export", folder.run).stdout == done.stdout
    nowhere = xrun("export", folder.run, "nowhere/x.csv")
    assert nowhere.returncode == 4
    assert "nowhere/x.csv was not written: No such file" in nowhere.stderr
    (folder.path / "metrics.jsonl").unlink()
    gone = xrun("export", folder.run)
    assert (gone.returncode, "its metrics.jsonl was deleted" in gone.stderr) == (3, True)
