"""The plot of `xrun report`: whatever the line, its peaks are in it, and it fits."""

from __future__ import annotations

import math

import pytest

from xrun.cli.plot import HEIGHT, WIDTH, plot


def dots(lines: list[str], margin: int) -> set[tuple[int, int]]:
    """Column and row, from the upper left, of every dot; the last line has the steps."""
    order = (0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80)
    return {
        (2 * place + column, 4 * row + dot)
        for row, line in enumerate(lines[:-1])
        for place, character in enumerate(line[margin + 1 :])
        for column in (0, 1)
        for dot in range(4)
        if ord(character) >= 0x2800 and (ord(character) - 0x2800) & order[column][dot]
    }


def test_a_line_goes_from_corner_to_corner() -> None:
    """Unbroken, however few points it has."""
    lines = list(plot([(10, 5.0), (40, 1.5)], width=10, height=3))
    assert [line[:4] for line in lines[:3]] == ["  5 ", "    ", "1.5 "]
    assert lines[3] == "    10      40"
    found = dots(lines, 3)
    assert {(0, 0), (19, 11)} <= found
    assert {column for column, _ in found} == set(range(20))


def test_a_peak_of_one_step_is_seen() -> None:
    """Of more points than there are columns; what is no number is left out."""
    values = [(step, 1.0) for step in range(100_000)]
    values[50_000], values[70_000] = (50_000, 9.0), (70_000, math.nan)
    lines = list(plot(values))
    assert len(lines) == HEIGHT + 1
    assert max(map(len, lines)) <= WIDTH + 2
    found = dots(lines, 1)
    assert {column for column, row in found if row == 0} == {WIDTH - 1}
    assert {column for column, row in found if row == 4 * HEIGHT - 1} == set(range(2 * WIDTH))


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)], [(1, math.nan)] * 2])
def test_what_has_no_shape_has_no_plot(points: list[tuple[int, float]]) -> None:
    assert list(plot(points)) == []
