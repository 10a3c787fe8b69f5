"""What Hugging Face's `datasets` keeps on the disk is that of the component's code as it is now.

Covers `xrun.data.fingerprint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.datasets_elsewhere import elsewhere
from support.running import Project

COMPONENT = """\
from pathlib import Path

import datasets

import times


def more(row):
    with Path(times.__file__).with_name("calls").open("a") as calls:
        calls.write("1")
    return {"y": row["x"] * times.FACTOR}


def build(folder: str):
    rows = datasets.load_dataset("json", data_files=folder + "/rows.jsonl", split="train")
    return {"train": rows.map(more)}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("rows.jsonl", '{"x": 1}\n{"x": 2}\n')
    project.write("times.py", "FACTOR = 2\n")
    project.write("datasets/mapped.py", COMPONENT)
    return project


def made(project: Project) -> tuple[list[Any], int]:
    """The column as a new process makes it, and how many rows were ever computed."""
    arguments = f"dataset={{name: mapped, args: {{folder: {project.root}}}}}"
    kept = {"HF_DATASETS_CACHE": str(project.root / "kept")}
    rows, _ = elsewhere(project.plan(arguments), project.root, kept)
    return rows, (project.root / "calls").stat().st_size


def test_edited_code_gets_no_rows_of_older_code(project: Project) -> None:
    """Also where a module that the component imports was edited; without an edit, and where only a
    comment was, the disk has them."""
    assert made(project) == ([2, 4], 2)
    assert made(project) == ([2, 4], 2)
    project.write("times.py", "FACTOR = 7\n")
    assert made(project) == ([7, 14], 4)
    project.write("datasets/mapped.py", "# the rows\n" + COMPONENT.replace("* times", "+ times"))
    assert made(project) == ([8, 9], 6)
    project.write("datasets/mapped.py", COMPONENT.replace("* times", "+ times"))
    assert made(project) == ([8, 9], 6)


GENERATOR = """\
import datasets

import times


def rows():
    for i in (1, 2):
        yield {"y": i * times.FACTOR}


def build(folder: str):
    return {"train": datasets.Dataset.from_generator(rows)}
"""


def test_rows_of_a_generator_are_those_of_its_code(project: Project) -> None:
    """`from_generator` keeps them under a hash of another kind."""
    project.write("calls", "")
    project.write("datasets/mapped.py", GENERATOR)
    assert made(project)[0] == [2, 4]
    project.write("times.py", "FACTOR = 7\n")
    assert made(project)[0] == [7, 14]
    project.write("datasets/mapped.py", GENERATOR.replace("(1, 2)", "(3, 4)"))
    assert made(project)[0] == [21, 28]
