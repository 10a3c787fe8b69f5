"""`xrun status WHERE`: the runs of an account, of a bucket's prefix and of a folder.

Covers `xrun.run.listing`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.buckets import moto
from support.hub_store import HUB_WARNINGS, requests
from support.kept_runs import keep
from support.running import Project
from support.worlds import hub_world
from xrun.errors import LaunchError
from xrun.run.folder import RunFolder
from xrun.run.listing import boards_at, list_runs
from xrun.run.report import RunReport

pytestmark = [pytest.mark.once, *HUB_WARNINGS]


def told(found: list[RunReport]) -> list[tuple[str, str, int | None]]:
    return [(each.run, each.status, each.step) for each in found]


def test_an_account_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs and nothing else, at one request for the list and two for each run; `me` is the
    token's account."""
    project = Project(tmp_path)
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    with hub_world(tmp_path, "hub", monkeypatch) as world:
        monkeypatch.setenv("HF_TOKEN", world.hub.token("alice"))
        for number in range(2):
            plan = project.plan("checkpoint.store=hub", run=f"tiny-{number}")
            keep(plan.placed("alice"), tmp_path / str(number), finished=number == 0)
        world.hub.create_repo("alice/model")
        before = len(world.hub.requests)
        found = list_runs("hub://me")
        assert told(found) == [("tiny-0", "finished", 20), ("tiny-1", "running", 20)]
        asked = [line for line in requests(world.hub, before) if "agent-harnesses" not in line]
        assert len(asked) <= 2 + 3 + 2
        assert told(list_runs("hub://alice")) == told(found)
        assert boards_at("hub://me") == []
        with pytest.raises(LaunchError, match="nobody has no repositories"):
            list_runs("hub://nobody")
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(LaunchError, match="`hub://me` names no account"):
            list_runs("hub://me")


def test_a_prefix_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run below it, and a single run by its own address; what is no run is not there."""
    project = Project(tmp_path)
    with moto() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        bucket = server.make("listed")
        for run in ("tiny-0", "tiny-1"):
            plan = project.plan(f"checkpoint.store={bucket}/runs", run=run)
            keep(plan, tmp_path / run)
        plan = project.plan(f"checkpoint.store={bucket}/runs/x", run="tiny-2")
        keep(plan, tmp_path / "deeper")
        expected = [("tiny-0", "finished", 20), ("tiny-1", "finished", 20)]
        assert told(list_runs(f"{bucket}/runs")) == expected
        assert told(list_runs(f"{bucket}/runs/tiny-1")) == expected[1:]
        assert list_runs(f"{bucket}/nothing") == []


def test_a_folder_is_listed_without_its_points(tmp_path: Path) -> None:
    """Of runs that do not train no log is read: one that is a folder hurts nobody."""
    project = Project(tmp_path)
    for run in ("tiny-0", "tiny-1"):
        plan = project.plan(run=run)
        RunFolder(plan.folder).write_plan(plan)
        keep(replace(plan), plan.folder)
        (plan.folder / "metrics.jsonl").unlink()
        (plan.folder / "metrics.jsonl").mkdir()
    assert sorted(told(list_runs(str(project.home)))) == [
        ("tiny-0", "finished", 20),
        ("tiny-1", "finished", 20),
    ]
    assert len(list_runs(str(project.root))) == 2
