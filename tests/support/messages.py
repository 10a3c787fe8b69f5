"""Every message of the package that people may read: errors, hints, notes, questions, help texts.

`make messages` prints them with file and line, so that they can be read as one text. What is said
is not kept anywhere: it is found anew in the sources.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.paths import ROOT

PACKAGES = (ROOT / "runner" / "xrun", ROOT / "runner" / "xrun_sky")
WORDS = 3
"""Shorter texts are names, keys and fragments of tables."""


class Message(NamedTuple):
    """A text in the sources; what is computed stands in braces, as in an f-string."""

    path: Path
    line: int
    text: str


def messages() -> Iterator[Message]:
    """Those of all modules, file by file, in the order of the lines."""
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            yield from messages_of(path, path.read_text())


def messages_of(path: Path, source: str) -> list[Message]:
    """What `source` may say; of its docstrings only those that click prints as help."""
    tree = ast.parse(source)
    silent = {id(each) for each in _docstrings(tree)}
    found = [
        Message(path, node.lineno, re.sub(r"\s+", " ", text).strip())
        for node, text in _texts(tree, silent)
    ]
    return sorted(each for each in found if _is_said(each.text))


def _is_said(text: str) -> bool:
    words = re.sub(r"\{[^{}]*\}", "0", text).split()
    return len(words) >= WORDS and sum(bool(re.search("[A-Za-z]{2}", each)) for each in words) > 1


def _texts(node: ast.AST, silent: set[int]) -> Iterator[tuple[ast.expr, str]]:
    """The largest expressions that are texts, never a part of one by itself."""
    if id(node) in silent:
        return
    text = _text(node)
    if text is not None:
        yield node, text  # type: ignore[misc]  # only an expression has a text
    if not isinstance(node, ast.Constant):
        for child in _inner(node) if text is not None else ast.iter_child_nodes(node):
            yield from _texts(child, silent)


def _text(node: ast.AST) -> str | None:
    """What an expression says, or nothing if it is no text."""
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.JoinedStr(values=values):
            return "".join(
                _text(each) or "" if isinstance(each, ast.Constant) else _code(each)
                for each in values
            )
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [_text(left), _text(right)]
            if any(part is not None for part in parts):
                sides = zip((left, right), parts, strict=True)
                return "".join(_code(e) if p is None else p for e, p in sides)
    return None


def _inner(node: ast.AST) -> Iterator[ast.AST]:
    """What a text computes: there may be texts in it, which are said only at times."""
    match node:
        case ast.JoinedStr(values=values):
            yield from (each.value for each in values if isinstance(each, ast.FormattedValue))
        case ast.BinOp(left=left, right=right):
            for side in (left, right):
                yield from [side] if _text(side) is None else _inner(side)


def _code(node: ast.AST) -> str:
    value = node.value if isinstance(node, ast.FormattedValue) else node
    return f"{{{ast.unparse(value)}}}"


def _docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    """Texts that are statements by themselves, but for the help of a command."""
    nodes = list(ast.walk(tree))
    commands = [each for each in nodes if isinstance(each, ast.FunctionDef) and _is_command(each)]
    help_texts = {id(each.body[0]) for each in commands}
    for each in nodes:
        if isinstance(each, ast.Expr) and id(each) not in help_texts and _text(each.value):
            yield each


def _is_command(node: ast.FunctionDef) -> bool:
    names = (ast.unparse(each) for each in node.decorator_list)
    return any(re.search(r"\b(command|group)\b", name) for name in names)


if __name__ == "__main__":
    listed = list(messages())
    for path, line, text in listed:
        print(f"{path.relative_to(ROOT)}:{line}: {text}")
    print(f"{len(listed)} messages", file=sys.stderr)
