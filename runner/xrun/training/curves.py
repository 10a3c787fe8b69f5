"""A run's losses as a picture, for the page of its model: an SVG by hand, the same for the same
points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT, _EDGE = 640, 320, 48
_MOST = 400
"""Points of one line; of more every n-th is drawn, and the last."""
_LINES = (("train/loss", "#1f77b4"), ("val/loss", "#d62728"))
Line = list[tuple[int, float]]


def curves(points: Sequence[Mapping[str, Any]]) -> str:
    """The picture; "" where nothing was logged that could be drawn."""
    lines = {name: _drawn(points, name) for name, _ in _LINES}
    every = [value for line in lines.values() for value in line]
    if not every:
        return ""
    steps, values = zip(*every, strict=True)
    scale = (min(steps), max(steps), min(values), max(values))
    drawn = "".join(_line(lines[name], colour, scale) for name, colour in _LINES if lines[name])
    names = "".join(
        _name(i, name, colour) for i, (name, colour) in enumerate(_LINES) if lines[name]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' font-family="sans-serif" font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}"'
        f' fill="white"/>{_axes(scale)}{drawn}{names}</svg>\n'
    )


def _drawn(points: Sequence[Mapping[str, Any]], name: str) -> Line:
    found = [(int(each["step"]), each[name]) for each in points if name in each]
    line = [
        (step, float(y)) for step, y in found if isinstance(y, int | float) and math.isfinite(y)
    ]
    every = math.ceil(len(line) / _MOST) or 1
    return [*line[::every], *line[-1:]]


def _line(line: Line, colour: str, scale: tuple[float, ...]) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(point, scale) for point in line))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{places}"/>'


def _place(point: tuple[float, float], scale: tuple[float, ...]) -> tuple[float, float]:
    left, right, low, high = scale
    x = (point[0] - left) / ((right - left) or 1)
    y = (point[1] - low) / ((high - low) or 1)
    return _EDGE + x * (_WIDTH - 2 * _EDGE), _HEIGHT - _EDGE - y * (_HEIGHT - 2 * _EDGE)


def _axes(scale: tuple[float, ...]) -> str:
    left, right, low, high = scale
    bottom, end = _HEIGHT - _EDGE, _WIDTH - _EDGE
    frame = f'<path d="M{_EDGE} {_EDGE}V{bottom}H{end}" fill="none" stroke="#999"/>'
    texts = (
        (_EDGE, bottom + 18, "start", f"step {left:.0f}"),
        (end, bottom + 18, "end", f"step {right:.0f}"),
        (_EDGE - 4, bottom, "end", f"{low:.3g}"),
        (_EDGE - 4, _EDGE + 4, "end", f"{high:.3g}"),
    )
    told = (f'<text x="{x}" y="{y}" text-anchor="{at}">{text}</text>' for x, y, at, text in texts)
    return frame + "".join(told)


def _name(number: int, name: str, colour: str) -> str:
    return f'<text x="{_EDGE + 8 + 110 * number}" y="{_EDGE - 16}" fill="{colour}">{name}</text>'
