"""A sweep's view at Weights & Biases, by the real wandb-workspaces: saved once, and never again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopback.wandb import Wandb
from support.running import one_line
from xrun.tracker.wandb.api import RunPath, create_run
from xrun.tracker.wandb.processes import SweepView, save_view

pytestmark = pytest.mark.once

VIEW = SweepView(
    entity="",
    project="swept",
    sweep="tiny-s0123abcd",
    parameters={"train.optimizer.lr": True, "model.args.width": False},
    metric="accuracy",
)


def test_a_view_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an axis for each parameter and one for the metric, of the runs in the sweep's group
    alone; what a person has made of it since then stays. Without a project there is none, which
    is said."""
    with Wandb(tmp_path) as wandb:
        for name, value in wandb.environ("alice").items():
            monkeypatch.setenv(name, value)
        there, said = save_view(VIEW)
        assert not there
        assert one_line(said), said
        create_run(RunPath("alice", "swept", "tiny-1"))
        there, url = save_view(VIEW)
        assert there, url
        ((entity, project, name), saved) = wandb.views.popitem()
        assert (entity, project, saved["displayName"]) == ("alice", "swept", VIEW.sweep)
        assert url.startswith(f"{wandb.url}/alice/swept?nw=")
        spec = json.loads(saved["spec"])["section"]
        (section,) = spec["panelBankConfig"]["sections"]
        parallel, importance = section["panels"]
        assert [axis["accessor"] for axis in parallel["config"]["columns"]] == [
            "config:recipe.value.train.optimizer.lr",
            "config:recipe.value.model.args.width",
            "summary:val/accuracy",
        ]
        assert parallel["config"]["columns"][0]["log"]
        assert importance["config"]["targetKey"] == "val/accuracy"
        (wanted,) = spec["runSets"][0]["filters"]["filters"]
        assert (wanted["key"]["name"], wanted["value"]) == ("group", VIEW.sweep)

        changed = {**saved, "spec": saved["spec"].replace(VIEW.sweep, "mine")}
        wandb.views[entity, project, name] = changed
        assert save_view(VIEW) == (True, url)
        assert wandb.views == {(entity, project, name): changed}
        assert wandb.unknown == []
