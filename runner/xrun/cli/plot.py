"""A small plot of a line, for a terminal: in dots of Braille, two across and four down in each
character."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of a character's dots, by column and row from above."""
_BLANK = 0x2800
WIDTH, HEIGHT = 60, 6


def plot(
    points: Sequence[tuple[int, float]], width: int = WIDTH, height: int = HEIGHT
) -> Iterator[str]:
    """The lines of a plot of so many characters, with the greatest and the least value at its left
    and the first and the last step below; nothing where all numbers are the same. Steps ascend. Of
    each column of dots the least and the greatest value are joined, so that peaks stay."""
    known = [(step, value) for step, value in points if math.isfinite(value)]
    low = min((value for _, value in known), default=0.0)
    high = max((value for _, value in known), default=0.0)
    if high == low:
        return
    first, last = known[0][0], known[-1][0]
    columns: dict[int, list[int]] = {}
    for (here, value), (there, following) in pairwise(known):
        begin, end = ((step - first) * (2 * width - 1) // (last - first) for step in (here, there))
        for column in range(begin, end + 1):
            part = (column - begin) / (end - begin) if end > begin else 1.0
            share = (high - value - part * (following - value)) / (high - low)
            columns.setdefault(column, []).append(round(share * (4 * height - 1)))
    cells = [[_BLANK] * width for _ in range(height)]
    for column, rows in columns.items():
        for row in range(min(rows), max(rows) + 1):
            cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    texts = f"{high:.4g}", f"{low:.4g}"
    margin = max(map(len, texts))
    beside = [texts[0], *[""] * (height - 2), texts[1]]
    for text, line in zip(beside, cells, strict=True):
        yield f"{text:>{margin}} {''.join(chr(cell) for cell in line)}".rstrip(chr(_BLANK))
    yield f"{'':{margin}} {first:<{width // 2}}{last:>{width - width // 2}}"
