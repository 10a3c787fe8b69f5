"""The package as a house: its modules, its rooms, who imports whom, and a picture of all this.

`python3 tests/support/house.py docs/house.svg` (make docs) draws it, with nothing but Python.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "runner" / "xrun"
GROUND = (
    "errors",
    "environment",
    "clock",
    "signals",
    "terminal",
    "bar",
    "streams",
    "files",
    "lock",
    "backoff",
    "libraries",
)
"""What everybody may import; they import nothing of the package."""
DOORS = ("__main__", "entrypoint", "attempt", "arrive")
"""What is started by name and leads into a room; the last three are names of old."""


@cache
def modules() -> Mapping[str, Path]:
    """The package's modules: `xrun.store.directory` -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("xrun", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST, *, typing: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import in a file, lazy ones too; with `typing` also those that only a type checker
    sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            seen = [*child.orelse, *(child.body if typing else ())]
            yield from statements(ast.Module(body=seen, type_ignores=[]), typing=typing)
        else:
            yield from statements(child, typing=typing)


@cache
def imports(module: str) -> frozenset[str]:
    """The full names of the modules that this one imports: ours to the module, the others as they
    are written."""
    known = modules()
    path = known[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for statement in statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        parts = package.split(".")
        base = parts[: len(parts) - statement.level + 1] if statement.level else []
        source = ".".join([*base, *filter(None, [statement.module])])
        inner = {f"{source}.{alias.name}" for alias in statement.names} & known.keys()
        found |= inner or {source}
    return frozenset(found - {module})


def reached(*starts: str) -> set[str]:
    """The package's modules that these import, directly or through one another, with themselves."""
    known, found, todo = modules(), set(), list(starts)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += [name for name in imports(module) if name in known]
    return found


def room(module: str) -> str:
    """The file or folder of the package that a module lies in: `xrun.store.directory` ->
    `store`."""
    return module.split(".")[1]


def in_rooms(*rooms: str) -> list[str]:
    """The modules of these rooms."""
    return [module for module in modules() if module != "xrun" and room(module) in rooms]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports, the ground left out."""
    found: dict[str, set[str]] = {}
    for module in modules():
        if module != "xrun":
            ours = {room(name) for name in imports(module) if name.startswith("xrun.")}
            found.setdefault(room(module), set()).update(ours)
    return {name: to - {name, *GROUND} for name, to in found.items()}


# The picture

WIDTH, MARGIN, LINE, GAP = 1180, 24, 15, 46
COLUMNS = {
    "cli": 0, "drill": 0, "launcher": 0, "pages": 0, "sweep": 0,
    "handle": 1, "run": 1, "recipe": 1, "component": 1, "components": 1, "store": 1,
    "supervisor": 2, "machine": 2, "tracker": 2, "alerts": 2,
    "training": 3, "checkpoint": 3, "data": 3,
}  # fmt: skip
"""Where a room stands: the launcher half to the left, what both halves stand on in the middle."""
HALVES = {"launcher half": (0, 0), "both": (1, 1), "container half": (2, 3)}
COLOURS = ("#e8f0fb", "#f4f4f1", "#eaf6ea", "#eaf6ea")
BOX = 256


def floors(to: Mapping[str, set[str]]) -> dict[str, int]:
    """Each room one floor above the highest that it imports, from 1."""
    height: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((of(other) for other in to[name]), default=0)
        return height[name]

    return {name: of(name) for name in to}


def drawn(to: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows without those that others lead to as well."""

    def below(name: str) -> set[str]:
        return to[name] | {far for other in to[name] for far in below(other)}

    return [
        (name, other)
        for name in to
        for other in sorted(to[name])
        if not any(other in below(between) for between in to[name] - {other})
    ]


def contents(name: str) -> list[str]:
    """A room's modules as lines of text, a folder in it with its name before."""
    groups: dict[str, list[str]] = {}
    for module in in_rooms(name):
        inner = module.split(".")[2:]
        if inner and modules()[module].name != "__init__.py":
            groups.setdefault("/".join(inner[:-1]), []).append(inner[-1])
    lines = []
    for folder, names in groups.items():
        line = f"{folder}/ " if folder else ""
        for each in names:
            if len(line) + len(each) > 40:
                lines.append(line.rstrip())
                line = "    " if folder else ""
            line += f"{each}  "
        lines.append(line.rstrip())
    return lines


Place = tuple[float, float, int]
"""Where a box stands: its left, its top, its height."""


def places(to: Mapping[str, set[str]], text: Mapping[str, Sequence[str]]) -> dict[str, Place]:
    """A box for each room: floors from the top down, rooms of one floor and column one above the
    other."""
    floor, step = floors(to), (WIDTH - 2 * MARGIN - BOX) / 3
    found: dict[str, Place] = {}
    top = MARGIN + 40.0
    for level in range(max(floor.values()), 0, -1):
        ends = dict.fromkeys(range(4), top)
        for name in (name for name in sorted(to) if floor[name] == level):
            column, height = COLUMNS[name], 30 + LINE * len(text[name])
            found[name] = (MARGIN + column * step, ends[column], height)
            ends[column] += height + 12
        top = max(ends.values()) - 12 + GAP
    return found


def picture() -> str:
    """The house as SVG: rooms by floor, what they hold, and the arrows between them."""
    to = {name: rooms for name, rooms in arrows().items() if name not in (*GROUND, *DOORS)}
    text = {name: contents(name) for name in to}
    place = places(to, text)
    bottom = max(y + height for _, y, height in place.values()) + 16
    parts = [_head(bottom + 50)]
    parts += [_half(words, *columns, bottom) for words, columns in HALVES.items()]
    parts += [_arrow(place[name], place[other], place.values()) for name, other in drawn(to)]
    parts += [_box(name, place[name], text[name]) for name in to]
    return "\n".join([*parts, _ground(bottom + 20), "</svg>", ""])


def _head(height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}"'
        f' viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" font-size="11">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#777"/></marker></defs>\n'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )


def _half(words: str, first: int, last: int, bottom: float) -> str:
    step = (WIDTH - 2 * MARGIN - BOX) / 3
    left, width = MARGIN + first * step - 8, (last - first) * step + BOX + 16
    return (
        f'<rect x="{left:.0f}" y="{MARGIN}" width="{width:.0f}" height="{bottom - MARGIN:.0f}"'
        f' rx="8" fill="{COLOURS[first]}"/>\n'
        f'<text x="{left + 10:.0f}" y="{MARGIN + 18}" font-weight="bold" fill="#555">{words}</text>'
    )


def _box(name: str, place: Place, lines: Sequence[str]) -> str:
    x, y, height = place
    frame = f'width="{BOX}" height="{height}" rx="5" fill="#fff" stroke="#555"'
    end = "/" if modules()[f"xrun.{name}"].name == "__init__.py" else ".py"
    title = f'y="{y + 18:.0f}" font-size="14" font-weight="bold">{name}{end}'
    parts = [
        f'<rect x="{x:.0f}" y="{y:.0f}" {frame}/>',
        f'<text x="{x + 10:.0f}" {title}</text>',
    ]
    parts += [
        f'<text x="{x + 10:.0f}" y="{y + 35 + LINE * number:.0f}" xml:space="preserve"'
        f' fill="#333">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
    return "\n".join(parts)


def _arrow(above: Place, below: Place, boxes: Iterable[Place]) -> str:
    """From the foot of one box to the head of another; around what stands between them."""
    x, y, to_x, to_y = above[0], above[1] + above[2], below[0], below[1]
    if any(box[0] == x == to_x and y < box[1] < to_y - 12 for box in boxes):
        side, out = x + BOX, x + BOX + 22
        begin, end = above[1] + above[2] - 12, to_y + 12
        curve = f"M{side:.0f} {begin:.0f}C{out:.0f} {begin + 20:.0f} {out:.0f} {end - 20:.0f}"
        return _path(f"{curve} {side + 2:.0f} {end:.0f}")
    shift = max(-90.0, min(90.0, (to_x - x) / 5))
    bend = max(18.0, (to_y - y) / 2)
    x, to_x = x + BOX / 2 + shift, to_x + BOX / 2 - shift
    curve = f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f}"
    return _path(f"{curve} {to_x:.0f} {to_y - 2:.0f}")


def _path(curve: str) -> str:
    line = 'fill="none" stroke="#777" stroke-width="1.3" marker-end="url(#tip)"'
    return f'<path d="{curve}" {line}/>'


def _ground(y: float) -> str:
    names = "   ".join(f"{name}.py" for name in GROUND)
    return (
        f'<rect x="{MARGIN - 8}" y="{y - 10:.0f}" width="{WIDTH - 2 * MARGIN + 16}" height="34"'
        ' rx="5" fill="#eee" stroke="#999"/>\n'
        f'<text x="{MARGIN + 10}" y="{y + 11:.0f}" xml:space="preserve"><tspan'
        f' font-weight="bold">the ground, on which every room stands:   </tspan>{names}</text>'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture())
