"""Tables in a terminal: aligned columns, as wide as there is room."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from ..terminal import bare, shown

_BETWEEN = "  "
_LEAST = 12
"""A column that is cut keeps so many characters."""


@dataclass(frozen=True)
class Column:
    """A column. `right` aligns numbers at their end. Where there is too little room, the column
    with the highest `rank` is left out first; those of rank 0 stay, and `cut` ones are shortened:
    at their end, or in the middle if they hold `names`, since ids of one recipe differ in their
    end."""

    head: str
    right: bool = False
    rank: int = 0
    cut: bool = False
    names: bool = False


def lines_of(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None
) -> list[str]:
    """The head and the rows; a column without a value in any row is left out. `width`: characters
    in a line, None where there is no limit."""
    there = [n for n, _ in enumerate(columns) if any(row[n] for row in rows)]
    texts = [[shown(each).replace("\n", " ") for each in row] for row in rows]
    widths = {n: max(len(columns[n].head), *(len(row[n]) for row in texts)) for n in there}
    if width is not None:
        there = _fitting(columns, widths, there, width)
    heads = [column.head for column in columns]
    return [_line(columns, widths, there, row) for row in (heads, *texts)] if rows else []


def _fitting(
    columns: Sequence[Column], widths: dict[int, int], there: list[int], width: int
) -> list[int]:
    """The columns that stay; `widths` has the new width of those that are cut."""

    def too_much() -> int:
        return sum(widths[n] for n in there) + len(_BETWEEN) * (len(there) - 1) - width

    while too_much() > 0:
        able = [n for n in there if columns[n].cut and widths[n] > _LEAST]
        leaves = max(there, key=lambda n: (columns[n].rank, n))
        spare = sum(widths[n] - _LEAST for n in able)
        if able and (spare >= too_much() or not columns[leaves].rank):
            widest = max(able, key=lambda n: widths[n])
            widths[widest] = max(_LEAST, widths[widest] - too_much())
        elif columns[leaves].rank:
            there = [n for n in there if n != leaves]
        else:
            break
    return there


def _line(
    columns: Sequence[Column], widths: Mapping[int, int], there: Sequence[int], row: Sequence[str]
) -> str:
    cells = []
    for n in there:
        text = _cut(row[n], widths[n], columns[n].names)
        cells.append(text.rjust(widths[n]) if columns[n].right else text.ljust(widths[n]))
    return _BETWEEN.join(cells).rstrip()


def _cut(text: str, width: int, name: bool) -> str:
    if len(text) <= width:
        return text
    end = max(8, 2 * width // 3) if name else 0  # a digest has 8 digits
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def room() -> int | None:
    """Characters in a line of the terminal that standard output is; None where it is none, and
    whoever reads it wants all."""
    return shutil.get_terminal_size().columns if bare(sys.stdout).isatty() else None


def say_coloured(line: str, word: str, colour: str) -> None:
    """A line in which the `word` that begins a column has a colour, where standard output is a
    terminal and nobody has said NO_COLOR."""
    out = bare(sys.stdout)
    wanted = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    before, found, after = shown(line).partition(f"{_BETWEEN}{word}")
    if not (wanted and found and colour):
        click.echo(line)
        return
    sys.stdout.flush()
    out.write(f"{before}{click.style(found, fg=colour)}{after}\n")
    out.flush()
