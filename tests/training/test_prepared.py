"""Tokenised text outlives the machine where the run's state is in a bucket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest

from support.buckets import Server, moto
from support.datasets_elsewhere import elsewhere
from support.running import Project

COMPONENT = """\
from pathlib import Path

import datasets


def more(row):
    with (Path.cwd() / "calls").open("a") as calls:
        calls.write("1")
    return {"y": row["x"] * 2}


def build(rows: str):
    rows = datasets.load_dataset("json", data_files=str(Path(rows).resolve()), split="train")
    return {"train": rows.map(more)}
"""


def trained(project: Project, home: str, server: Server, address: str) -> tuple[Any, ...]:
    """The column, what was said, and how many rows were ever computed."""
    rows = project.root / "rows.jsonl"
    settings = (f"dataset={{name: mapped, args: {{rows: {rows}}}}}", f"checkpoint.store={address}")
    plan = replace(project.plan(*settings), home=str(project.root / home))
    column, said = elsewhere(plan, project.root, server.environ)
    return column, said, (project.root / "calls").stat().st_size


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("rows.jsonl", '{"x": 1}\n{"x": 2}\n')
    project.write("datasets/mapped.py", COMPONENT)
    return project


def test_the_next_machine_takes_what_was_prepared(project: Project) -> None:
    """And where the bucket's copy is none it says so, and makes them itself."""
    with moto() as server:
        address = f"{server.make('own')}/runs"
        column, said, calls = trained(project, "one", server, address)
        assert (column, calls) == ([2, 4], 2)
        assert len(said) == 1
        assert said[0].endswith("are kept in the bucket.")
        column, said, calls = trained(project, "two", server, address)
        assert (column, calls) == ([2, 4], 2)
        assert len(said) == 1
        assert said[0].endswith("from the bucket.")
        assert trained(project, "two", server, address) == ([2, 4], [], 2)
        (listed,) = (key for key in server.objects(address) if key.endswith("files.json"))
        obstore.put(server.library(address), listed, b"none")
        column, said, calls = trained(project, "three", server, address)
        assert (column, calls) == ([2, 4], 4)
        assert said[0].startswith("The prepared data cannot be fetched, and are made again: s3://")
