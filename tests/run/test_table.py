"""`xrun export`: the points of a run as a table that others read."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from xrun.errors import LaunchError
from xrun.run.table import Table, export

pytestmark = pytest.mark.once

POINTS = [
    {"step": 1, "time": 10.5, "attempt": "a", "train/loss": 0.1 + 0.2, "train/lr": 1e-3},
    {"step": 2, "time": 11.0, "attempt": "a", "train/loss": math.nan},
    {"step": 2, "time": 12.0, "attempt": "a", "val/loss": 2.5, "speed/steps_per_second": 3},
]
COLUMNS = ("step", "time", "speed/steps_per_second", "train/loss", "train/lr", "val/loss")


def test_a_row_for_each_step() -> None:
    """What was not measured is empty, whoever has logged it, and the first time counts."""
    table = Table.of(POINTS)
    assert table.columns == COLUMNS
    assert table.rows[0] == (1, 10.5, None, 0.1 + 0.2, 1e-3, None)
    assert table.rows[1][:3] == (2, 11.0, 3)


def test_both_files_hold_the_same_numbers(tmp_path: Path) -> None:
    """To the last bit."""
    said = export("r", POINTS, "csv", tmp_path / "r.csv")
    assert said == f"2 steps, 4 metrics: {tmp_path / 'r.csv'}"
    export("r", POINTS, "parquet", tmp_path / "r.parquet")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    read = parquet.read_table(tmp_path / "r.parquet")
    assert tuple(rows[0]) == tuple(read.column_names) == COLUMNS
    assert float(rows[0]["train/loss"]) == read["train/loss"][0].as_py() == 0.1 + 0.2
    assert (rows[0]["val/loss"], read["val/loss"][0].as_py()) == ("", None)
    assert math.isnan(float(rows[1]["train/loss"]))
    assert str(read.schema.field("step").type) == "int64"


def test_a_table_goes_into_a_pipe(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` is standard output, and no file."""
    monkeypatch.chdir(tmp_path)
    assert export("r", POINTS, "csv", Path("-")) == "2 steps, 4 metrics: standard output"
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == Table.of(POINTS).csv()
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_points(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="so no table was written"):
        export("r", [], "csv", tmp_path / "r.csv")
    assert list(tmp_path.iterdir()) == []
