"""A run's points -> a table, a row for each step: for spreadsheets, pandas and whatever else draws.

The columns are `step`, `time` (seconds since 1970), and a metric each, by name. What was not
measured at a step is empty.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LaunchError, did_you_mean
from ..files import write_named
from ..libraries import Need, require

PARQUET = Need("A table in Parquet", ("pyarrow",))
ARROW = Need("A table of arrow", ("pyarrow",))
PANDAS = Need("A table of pandas", ("pandas",))
_FIRST = ("step", "time")


@dataclass(frozen=True)
class Table:
    """`rows` have a value or None for each of the `columns`; `table["val/loss"]` is a column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """A value or None for each row. Raises KeyError where there is no such column."""
        if column not in self.columns:
            there = did_you_mean(column, self.columns) or f"There are {', '.join(self.columns)}."
            raise KeyError(f"{column} was never logged. {there}")
        place = self.columns.index(column)
        return [row[place] for row in self.rows]

    @classmethod
    def of(cls, points: Iterable[Mapping[str, Any]]) -> Table:
        """All points of a step in one row; of two values for one metric the later counts."""
        steps: dict[int, dict[str, Any]] = {}
        for point in points:
            numbers = {name: value for name, value in point.items() if _is_told(name, value)}
            row = steps.setdefault(point["step"], {})
            row |= numbers | {"time": row.get("time", numbers.get("time"))}
        names = {name for row in steps.values() for name in row}
        columns = (*_FIRST, *sorted(names - set(_FIRST)))
        rows = (tuple(row.get(name) for name in columns) for _, row in sorted(steps.items()))
        return cls(columns, tuple(rows))

    def csv(self) -> bytes:
        """The table as RFC 4180 has it; numbers are written so that they are read as they were."""
        text = io.StringIO()
        csv.writer(text).writerows([self.columns, *self.rows])
        return text.getvalue().encode()

    def parquet(self) -> bytes:
        """The table as Parquet. Raises LaunchError where pyarrow is not installed."""
        require(PARQUET)
        import pyarrow as pa
        from pyarrow import parquet

        out = pa.BufferOutputStream()
        parquet.write_table(self.arrow(), out)
        return bytes(out.getvalue())

    def arrow(self) -> Any:
        """The table as a `pyarrow.Table`: `step` is int64, everything else float64, null where it
        was not measured. Raises LaunchError where pyarrow is not installed."""
        require(ARROW)
        import pyarrow as pa

        kinds = {"step": pa.int64()}
        return pa.table(
            {name: pa.array(self[name], kinds.get(name, pa.float64())) for name in self.columns}
        )

    def pandas(self) -> Any:
        """The table as a `pandas.DataFrame`: `step` is int64, everything else float64, NaN where it
        was not measured. Raises LaunchError where pandas is not installed."""
        require(PANDAS)
        import pandas as pd

        kinds = {"step": "int64"}
        return pd.DataFrame(
            {name: pd.Series(self[name], dtype=kinds.get(name, "float64")) for name in self.columns}
        )


def export(run: str, points: Sequence[Mapping[str, Any]], kind: str, path: Path | None) -> str:
    """Write the table of a run's points, by default beside where the command is typed, and for `-`
    to standard output; says what is where.

    Raises:
        LaunchError: there are no points yet, or Parquet's library is missing.
        StoreError: the file cannot be written.
    """
    table = Table.of(points)
    if not table.rows:
        raise LaunchError(
            f"No metrics of {run} are here, so no table was written: it has logged none yet, or its"
            " metrics.jsonl was deleted.",
            f"`xrun report {run}` tells how far it is.",
        )
    data = table.csv() if kind == "csv" else table.parquet()
    target = path or Path(f"{run}.{kind}")
    if target == Path("-"):
        sys.stdout.buffer.write(data)
        target = Path("standard output")
    else:
        write_named(target, data)
    return f"{len(table.rows)} steps, {len(table.columns) - 2} metrics: {target}"


def _is_told(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (name in _FIRST or "/" in name)
