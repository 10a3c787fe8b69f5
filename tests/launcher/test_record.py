"""What a run's folder knows of its launch, and one launcher at a time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from xrun.launcher.record import LaunchRecord, one_launcher, read_launch, write_launch
from xrun.recipe.accelerators import Accelerators
from xrun.run.folder import RunFolder
from xrun.run.prices import Price

RECORD = LaunchRecord(
    "tiny",
    job=7,
    prices=(Price(cloud="aws", usd_per_hour=2.5, accelerators=Accelerators("A100", 8), spot=True),),
)


def test_the_launch_record_survives_and_tells_what_is_uncertain(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "tiny")
    assert read_launch(folder) is None
    write_launch(folder, dataclasses.replace(RECORD, asked=5.0, job=None))
    assert read_launch(folder) == dataclasses.replace(RECORD, asked=5.0, job=None)
    assert read_launch(folder).uncertain
    assert not dataclasses.replace(RECORD, asked=5.0, request="r").uncertain
    (folder.path / "launch.json").write_text(json.dumps({"run": "tiny", "of a newer xrun": 1}))
    assert read_launch(folder) == LaunchRecord("tiny")


def test_one_launcher_at_a_time(tmp_path: Path) -> None:
    """The lock goes with its holder."""
    folder = RunFolder(tmp_path / "tiny")
    said: list[str] = []
    with one_launcher(folder, said.append):
        pass
    with one_launcher(folder, said.append):
        pass
    assert said == []
