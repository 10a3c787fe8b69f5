"""A run's points -> a table, a row for each step: for spreadsheets, pandas and whatever else draws.

The columns are `step`, `time` (seconds since 1970), and a metric each, by name. What was not
measured at a step is empty.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LaunchError
from ..files import needed, write_bytes
from ..libraries import Need, require

PARQUET = Need("A table in Parquet", ("pyarrow",))
_FIRST = ("step", "time")


@dataclass(frozen=True)
class Table:
    """`rows` have a value or None for each of the `columns`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

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

        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        values = {
            name: pa.array(column, pa.int64() if name == "step" else pa.float64())
            for name, column in zip(self.columns, columns, strict=True)
        }
        out = pa.BufferOutputStream()
        parquet.write_table(pa.table(values), out)
        return bytes(out.getvalue())


def export(run: str, points: Sequence[Mapping[str, Any]], kind: str, path: Path | None) -> str:
    """Write the table of a run's points, by default beside where the command is typed, and for `-`
    to standard output; says what is where.

    Raises:
        LaunchError: there are no points yet, or Parquet's library is missing.
        StoreError: the file cannot be written.
    """
    table = Table.of(points)
    if not table.rows:
        raise LaunchError(f"{run} has logged no point yet.", f"`xrun report {run}` tells why.")
    data = table.csv() if kind == "csv" else table.parquet()
    target = path or Path(f"{run}.{kind}")
    if target == Path("-"):
        sys.stdout.buffer.write(data)
        target = Path("standard output")
    else:
        with needed(target.parent):
            write_bytes(target, data)
    return f"{len(table.rows)} steps, {len(table.columns) - 2} metrics: {target}"


def _is_told(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (name in _FIRST or "/" in name)
