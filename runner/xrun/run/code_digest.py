"""A component's source -> a digest of what it computes, and the register of the components that
xrun brings along.

A shipped component that computes differently gets a new name or a new argument, so another text of
it that computes the same is listed in `components/shipped.json`, and counts as the first one: a run
that uses it keeps its id over new versions of xrun.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from blake3 import blake3

from .. import component
from ..errors import ComponentError

REGISTER = Path(component.__file__).parent / "components" / "shipped.json"
_UNSEEN = {"ctx", "kind", "type_comment", "type_ignores"}
"""Fields of syntax trees that change nothing: `kind` is the u of u"text"."""


def code_digest(place: str, source: bytes) -> str:
    """Hex BLAKE3 of what the file at `place` (`models/vit.py`) computes: comments, docstrings and
    layout do not count.

    Of a file that is not Python, which a component cannot be, every byte counts.
    """
    try:
        tree = component.parse(Path(place), source)
    except ComponentError:
        return blake3(source).hexdigest()
    found = blake3(canonical(tree).encode()).hexdigest()
    shipped = _register().get(place, {"code": []})
    return shipped["code"][0] if found in shipped["code"] else found


def digest_of_all(files: Mapping[str, bytes]) -> str:
    """Hex BLAKE3 of what files compute together, by their places."""
    told = {place: code_digest(place, source) for place, source in sorted(files.items())}
    return blake3(json.dumps(told).encode()).hexdigest()


def bytes_digest(place: str, source: bytes) -> str:
    """Hex BLAKE3 of a file as it is; of a shipped one as it was when the first rule was made."""
    shipped = _register().get(place)
    if shipped is not None and code_digest(place, source) == shipped["code"][0]:
        return str(shipped["bytes"])
    return blake3(source).hexdigest()


def canonical(tree: ast.AST) -> str:
    """The tree as text that is the same for every version of Python and every layout: names of
    nodes, and fields that are set.

    A text that stands alone as a statement does nothing: a docstring, of a function or of the
    constant above it.
    """
    parts: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:  # not by recursion, which a long sum of a file's would exhaust
        item = waiting.pop()
        if isinstance(item, ast.AST):
            waiting += [")", *reversed(list(_fields(item))), f"({type(item).__name__}"]
        elif isinstance(item, list):
            waiting += ["]", *reversed([part for part in item if not _is_text(part)]), "["]
        else:
            parts.append(item if isinstance(item, str) else repr(item))
    return " ".join(parts)


def _fields(node: ast.AST) -> Iterator[Any]:
    if isinstance(node, ast.Constant):
        yield f"{type(node.value).__name__}:{node.value!r}"
        return
    for name, value in sorted(ast.iter_fields(node)):
        if name not in _UNSEEN and value is not None and value != []:
            yield f"{name}="
            yield value


def _is_text(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@cache
def _register() -> dict[str, Any]:
    """By place: `bytes`, the file's BLAKE3 under rule 1, and `code`, digests of all texts of it
    that compute the same."""
    return dict(json.loads(REGISTER.read_text()))
