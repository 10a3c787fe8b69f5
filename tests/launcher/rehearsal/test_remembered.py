"""What counts for whether a rehearsal need not be repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.running import Project
from xrun.launcher.bundle import Cargo, pack
from xrun.launcher.rehearsal import remembered
from xrun.launcher.rehearsal.rehearse import libraries_of
from xrun.run.plan import Plan

pytestmark = pytest.mark.once


def digest(plan: Plan, **files: bytes) -> str:
    """Of a rehearsal of this plan, with other files in its cargo."""
    packed = pack(plan, [])
    others = {name.replace("_", "."): data for name, data in files.items()}
    cargo = Cargo(packed.folder, {**packed.files, **others})
    return remembered.digest_of(plan, cargo, libraries_of(cargo))


def test_all_that_is_rehearsed_counts(tmp_path: Path) -> None:
    """The recipe, the project's files, xrun, the pins and the requirements; not the price, the
    commit, the run's id or where its state goes."""
    project = Project(tmp_path)
    plan = project.plan()
    first = digest(plan)
    assert digest(plan, prices_json=b"[1]", code_json=b"{}", dirty_diff=b"+") == first
    assert digest(replace(plan, run="other", code={"commit": "1"})) == first
    assert digest(project.plan("checkpoint.store=hub", "budget.usd=3")) == first
    others = [
        digest(project.plan("train.seed=1")),
        digest(project.plan("train.global_batch=16")),
        digest(project.plan("env={A: b}")),
        digest(plan, container_txt=b"torch==0\n"),
        digest(plan, requirements_txt=b"einops==1\n"),
        digest(plan, **{next(name for name in pack(plan, []).files if "whl" in name): b""}),
    ]
    project.write("models/line.py", "# another\n")
    others.append(digest(plan))
    assert len({first, *others}) == 8


def test_it_is_kept_once_it_went_well(tmp_path: Path) -> None:
    """With its time; the log of one that failed before goes, and a damaged note is none."""
    assert remembered.remembered("d") is None
    log = remembered.keep_log("d", "Traceback")
    assert (log.read_text(), remembered.remembered("d")) == ("Traceback", None)
    remembered.remember("d", 12.3)
    known = remembered.remembered("d")
    assert known is not None
    assert str(known).startswith("rehearsed 20")
    assert str(known).endswith(" in 12 s, nothing changed")
    assert not log.exists()
    (remembered.folder() / "d.json").write_text('{"when": "today"}')
    assert remembered.remembered("d") is None
