"""A component's name -> the files that it consists of: its own and, through all imports, those of
the project that it cannot do without.

Files are read and never imported. What counts follows from the project alone and not from what is
installed: a file of the project counts also where a library of its name would be imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import component, components
from ..component import Kind, find, parse
from ..errors import ComponentError

_COMPONENTS = ("xrun", "components")
_ROOMS = (("models",), ("datasets",))
"""Folders and no modules, whatever lies beside them: see `components`."""
_BY_NAME = {"import_module", "__import__"}
Name = tuple[str, ...]
"""A module's whole name, in parts."""


@dataclass(frozen=True)
class _Module:
    """A file by its place in the project (`models/vit.py`), and the package that its relative
    imports begin at."""

    place: str
    path: Path
    package: Name


def sources(kind: Kind, name: str, project: Path, *, own: bool = True) -> dict[str, bytes]:
    """The component's file and, through all imports, the components that it imports; with `own`
    also every other module of the project's. By place, like `models/vit.py`, and sorted.

    Raises ComponentError.
    """
    waiting = [_component(find(kind, name, project), (kind, name))]
    found: dict[str, bytes] = {}
    while waiting:
        module = waiting.pop()
        if module.place not in found:
            found[module.place] = module.path.read_bytes()
            for wanted in _imports(module, found[module.place]):
                waiting += _files(wanted, project, own=own)
    return dict(sorted(found.items()))


def _component(path: Path, parts: Name) -> _Module:
    is_package = path.name == "__init__.py"
    place = "/".join(parts) + ("/__init__.py" if is_package else ".py")
    return _Module(place, path, (*_COMPONENTS, *(parts if is_package else parts[:-1])))


def _imports(module: _Module, source: bytes) -> Iterator[Name]:
    """What a file imports, anywhere in it; `from .a import b` may mean `a` or `a.b`."""
    try:
        tree = parse(module.path, source)
    except ComponentError:
        if module.package[:2] == _COMPONENTS:
            raise
        return  # nobody knows whether it is ever imported; its bytes count
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module.package, node.level, node.module or "")
            yield base
            yield from ((*base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and (named := _named(node)):
            dots = len(named) - len(named.lstrip("."))
            yield _absolute(module.package, dots, named[dots:])


def _absolute(package: Name, level: int, name: str) -> Name:
    base = package[: len(package) + 1 - level] if level else ()
    return (*base, *(name.split(".") if name else ()))


def _named(call: ast.Call) -> str:
    """The module that `importlib.import_module("a.b")` names; "" where it is no such call."""
    first = call.args[0] if call.args else None
    by_name = component.last_name(call.func) in _BY_NAME
    known = by_name and isinstance(first, ast.Constant) and isinstance(first.value, str)
    return str(first.value) if known and isinstance(first, ast.Constant) else ""


def _files(name: Name, project: Path, *, own: bool) -> Iterator[_Module]:
    """The file of a module, and the `__init__.py` of the packages around it, which run when it is
    imported; nothing for a module that is not the project's."""
    if not all(map(str.isidentifier, name)):
        return
    if name[:2] == _COMPONENTS:
        yield from _of_components(name[2:], components.roots(project), 1 if own else 2)
    elif own and name and name[0] not in {"xrun", *sys.stdlib_module_names}:
        yield from _of_project(name, project.resolve())


def _of_components(parts: Name, roots: list[Path], depth: int) -> Iterator[_Module]:
    for end in range(depth, len(parts) + 1):
        if parts[:end] not in _ROOMS and (path := _first(roots, parts[:end])):
            yield _component(path, parts[:end])


def _of_project(name: Name, project: Path) -> Iterator[_Module]:
    for end in range(1, len(name) + 1):
        if path := _first([project, project / "src"], name[:end]):
            package = name[:end] if path.name == "__init__.py" else name[: end - 1]
            yield _Module(path.relative_to(project).as_posix(), path, package)


def _first(roots: list[Path], parts: Name) -> Path | None:
    """A package comes before a module of the same name, as for Python."""
    for folder in (root.joinpath(*parts) for root in roots):
        for path in (folder / "__init__.py", folder.with_suffix(".py")):
            if path.is_file():
                return path
    return None
