"""What a step takes is measured by a process of its own, once for all that goes into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.running import Project
from xrun.launcher.bundle import pack
from xrun.launcher.rehearsal.costing import Lacks, folder, known_cost, measured_cost, read_cost
from xrun.launcher.rehearsal.interpreter import Libraries, installed
from xrun.run.cost import Cost

pytestmark = pytest.mark.once


def test_it_is_measured_once(tmp_path: Path) -> None:
    """A second question starts no process, and one about another recipe does not get the answer;
    the project stays as it is."""
    project = Project(tmp_path)
    plan = project.plan()
    cargo, said = pack(plan, []), list[str]()
    before = sorted(tmp_path.rglob("*"))
    assert isinstance(known_cost(plan, cargo), Lacks)
    first = measured_cost(plan, cargo, said.append)
    assert isinstance(first, Cost), first
    assert len(said) == 1
    assert first.parameters == 4 * 8 + 8 + 16 + 8 * 3 + 3
    assert known_cost(plan, cargo) == first == measured_cost(plan, cargo, said.append)
    assert len(said) == 1
    other = project.plan("train.micro_batch=4")
    assert isinstance(known_cost(other, pack(other, [])), Lacks)
    own = {path for path in before if "home" not in path.parts}
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} == own


def test_nothing_is_installed_for_it(tmp_path: Path) -> None:
    assert installed(Libraries("torch==0.0.1\n"), tmp_path / "environment") is None
    assert not (tmp_path / "environment").exists()


def test_what_a_process_says_at_its_end_is_told() -> None:
    """One that was killed, one that lacks the network."""
    killed = read_cost(None, "Traceback ...\nMemoryError\n")
    assert str(killed) == "Measuring what a step takes failed: MemoryError."
    offline = read_cost({"lacks": "The Hub does not answer.", "hint": "Try again."}, "")
    said = "What a step takes cannot be measured: The Hub does not answer. Try again."
    assert str(offline) == said


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    project = Project(tmp_path)
    plan = project.plan()
    cargo = pack(plan, [])
    assert isinstance(measured_cost(plan, cargo, lambda _: None), Cost)
    for path in folder().glob("*.json"):
        path.write_text('{"trials": 3}')
    assert isinstance(known_cost(plan, cargo), Lacks)
