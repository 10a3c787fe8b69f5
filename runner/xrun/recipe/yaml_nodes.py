"""Text -> a tree of nodes that know where they were written.

PyYAML scans and composes; what a scalar means is decided here by the YAML 1.2 core schema. PyYAML
by itself follows YAML 1.1 and reads `3e-4` as text, `1:30` as 90, `on` as true, and takes the last
of two equal keys without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_NODES = 20_000
NULL = re.compile(r"|~|null|Null|NULL")
BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
# No leading zeros: 010 is 8 for YAML 1.1 and 10 for YAML 1.2, so it stays text and is refused where
# a number is due.
INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", re.ASCII)
FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Mark:
    """A place in a file; line and column count from 1, and 0 is no place in particular."""

    path: str
    line: int = 0
    column: int = 0

    def problem(self, key: str, what: str, got: str = "", hint: str = "") -> Problem:
        return Problem(self.path, self.line, self.column, key, what, got, hint)


class Unreadable(Exception):
    """The text is no tree of nodes."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True)
class Node:
    """A value and where it starts. In a mapping, `keys` holds where each key starts. `text` is a
    scalar as it was written."""

    value: Any
    mark: Mark
    text: str = ""
    keys: dict[str, Mark] = field(default_factory=dict)

    @property
    def mapping(self) -> dict[str, Node] | None:
        return self.value if isinstance(self.value, dict) else None

    def child(self, name: str | int) -> Node | None:
        """The node under a key or a list's index."""
        if isinstance(self.value, list):
            return self.value[name] if isinstance(name, int) and name < len(self.value) else None
        return self.value.get(name) if isinstance(self.value, dict) else None

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


class Loader(yaml.SafeLoader):
    """Composes only. A scalar's tag tells whether it was quoted; nothing is resolved and nothing is
    constructed."""

    depth = 0
    composed = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return "plain" if kind is yaml.ScalarNode and implicit[0] else "quoted"

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {MAX_DEPTH} deep", problem_mark=mark
            )
        self.composed += 1
        if self.composed > MAX_NODES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"it holds more than {MAX_NODES} keys and values", problem_mark=mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_nodes(text: str | bytes, path: str, positions: bool = True) -> tuple[Node, list[Problem]]:
    """The tree, and what is wrong in it without making it unreadable, such as a key that is given
    twice.

    Without positions, as for an override, all marks are the path alone. Raises Unreadable.
    """
    reader = _Reader(path, positions)
    root = reader.compose(reader.decode(text))
    return (reader.node(root, "") if root else Node(None, reader.mark(None))), reader.problems


class _Reader:
    def __init__(self, path: str, positions: bool) -> None:
        self.path, self.positions = path, positions
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.left = MAX_NODES

    def mark(self, mark: yaml.Mark | None) -> Mark:
        return (
            Mark(self.path, mark.line + 1, mark.column + 1)
            if mark and self.positions
            else Mark(self.path)
        )

    def decode(self, text: str | bytes) -> str:
        if len(text) > MAX_BYTES:
            raise Unreadable(
                Mark(self.path).problem(
                    "", f"it is larger than {MAX_BYTES // 1024} KiB, which no recipe is"
                )
            )
        try:
            return text if isinstance(text, str) else text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unreadable(
                self.at(
                    error.object[: error.start].decode("utf-8-sig"), "it is not UTF-8 text here"
                )
            ) from None

    def at(self, before: str, what: str) -> Problem:
        """A problem at the place that follows this text."""
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return (Mark(self.path, line, column) if self.positions else Mark(self.path)).problem(
            "", what
        )

    def compose(self, text: str) -> yaml.Node | None:
        try:
            return Loader(text).get_single_node()
        except yaml.reader.ReaderError as error:
            raise Unreadable(
                self.at(
                    text[: error.position],
                    f"the character U+{ord(text[error.position]):04X} is not allowed here",
                )
            ) from None
        except yaml.MarkedYAMLError as error:
            mark, what, hint = self.told(text, error)
            raise Unreadable(mark.problem("", what, hint=hint)) from None
        except (
            ValueError,
            OverflowError,
        ) as error:  # PyYAML on "\UFFFFFFFF" and on %YAML with a huge number
            raise Unreadable(
                Mark(self.path).problem("", "this is not YAML: it holds a number that is too large")
            ) from error

    def told(self, text: str, error: yaml.MarkedYAMLError) -> tuple[Mark, str, str]:
        """Where it goes wrong, what is wrong there, and the way out. PyYAML's own place is where
        it has noticed, which is often on a later line."""
        what, place, began = (
            error.problem or "this is not YAML",
            error.problem_mark,
            error.context_mark,
        )
        mark, lines = self.mark(place or began), text.splitlines()
        if str(self.path).endswith(".py"):
            return mark, what, "A recipe is a file of YAML; this one has the name of Python's."
        if "another document" in what:
            return mark, "a second document starts here; a recipe is one", ""
        if "cannot start any token" in what:
            hint = "YAML indents with spaces; text that starts with a special character goes in"
            return mark, what, f"{hint} quotes."
        no_colon, no_mapping = "expected ':'" in what, "mapping values are not allowed" in what
        if place and (no_colon or no_mapping):
            for number in (place.line, place.line - 1):
                line = lines[number] if 0 <= number < len(lines) else ""
                if close := re.fullmatch(r"( *(?:- +)?)(\w+):([^\s:/].*)", line):
                    here = self.mark(yaml.Mark("", 0, number, close.end(2), None, 0))
                    hint = f"Write `{close[2]}: {close[3].strip()}`."
                    return here, "there is no space after the colon", hint
        if no_colon and began:
            return self.mark(began), "no `: ` follows this", "A key and its value: `name: value`."
        if no_mapping:
            return mark, what, "Text with `: ` in it goes in quotes."
        if began and place and began.line < place.line and "flow" in (error.context or ""):
            open_, close_ = ("{", "}") if "mapping" in (error.context or "") else ("[", "]")
            hint = f"The `{open_}` of line {began.line + 1} may lack its `{close_}`."
            return mark, what, hint
        if began and "end of stream" in what:
            return self.mark(began), "the quotes that begin here have no end", ""
        return mark, what, ""

    def node(self, node: yaml.Node, key: str) -> Node:
        mark = self.mark(node.start_mark)
        self.left -= 1
        if self.left < 0:
            raise Unreadable(
                mark.problem(key, f"its aliases expand to more than {MAX_NODES} values")
            )
        if id(node) in self.open:
            raise Unreadable(mark.problem(key, "it contains itself through an alias"))
        if node.tag not in ("plain", "quoted", "tag:yaml.org,2002:str"):
            raise Unreadable(
                mark.problem(
                    key,
                    "tags are not used in recipes",
                    node.tag.replace("tag:yaml.org,2002:", "!!")[:60],
                    "Remove it.",
                )
            )
        self.open.add(id(node))
        made = (
            self.scalar(node, mark, key)
            if isinstance(node, yaml.ScalarNode)
            else self.collection(node, mark, key)
        )
        self.open.discard(id(node))
        return made

    def scalar(self, node: yaml.ScalarNode, mark: Mark, key: str) -> Node:
        text: str = node.value
        if SURROGATE.search(text):
            raise Unreadable(mark.problem(key, "it holds half a character (a surrogate)"))
        return Node(plain_value(text) if node.tag == "plain" else text, mark, text)

    def collection(self, node: yaml.Node, mark: Mark, key: str) -> Node:
        if isinstance(node, yaml.SequenceNode):
            return Node(
                [self.node(item, join(key, index)) for index, item in enumerate(node.value)], mark
            )
        made: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        merged: list[Node] = []
        for name_node, value_node in node.value:
            if name_node.tag == "plain" and name_node.value == "<<":
                merged += self.bases(value_node, key)
            elif (name := self.name(name_node, key, keys)) is not None:
                keys[name] = self.mark(name_node.start_mark)
                made[name] = self.node(value_node, join(key, name))
        every = {name: each for base in reversed(merged) for name, each in base.value.items()}
        places = {name: each for base in reversed(merged) for name, each in base.keys.items()}
        return Node({**every, **made}, mark, keys={**places, **keys})

    def name(self, node: yaml.Node, key: str, keys: dict[str, Mark]) -> str | None:
        """The key as text, or None after saying why it is none."""
        mark = self.mark(node.start_mark)
        if not isinstance(node, yaml.ScalarNode):
            raise Unreadable(
                mark.problem(
                    key,
                    "a list or a mapping cannot be a key",
                    hint="Text that starts with `{` or `[` goes in quotes.",
                )
            )
        name = self.scalar(node, mark, key)
        if not isinstance(name.value, str):
            hint = f"Write '{name.text}' in quotes."
            if type(name.value) is int and any(each.line == mark.line for each in keys.values()):
                hint += " Or, after a comma: a decimal number is written with a point and no comma."
            self.problems.append(mark.problem(key, "a key is text", name.text or "nothing", hint))
        elif name.value in keys:
            where = f" in line {keys[name.value].line}" if self.positions else ""
            self.problems.append(
                mark.problem(
                    join(key, name.value),
                    f"this key is already given{where}",
                    hint="Remove one of the two.",
                )
            )
        else:
            return name.value
        return None

    def bases(self, node: yaml.Node, key: str) -> Iterator[Node]:
        """The mappings that `<<` names, the strongest first."""
        made = self.node(node, join(key, "<<"))
        for base in made.value if isinstance(made.value, list) else [made]:
            if base.mapping is None:
                raise Unreadable(
                    base.mark.problem(key, "`<<` merges mappings, and this is not a mapping")
                )
            yield base


def plain_value(text: str) -> Any:
    """What a scalar without quotes means."""
    if NULL.fullmatch(text):
        return None
    if truth := BOOL.fullmatch(text):
        return truth[1] is not None
    if INT.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text)
    if special := INFINITE.fullmatch(text):
        return float("nan") if special[3] else float(special[1] + "inf")
    return text


def join(key: str, name: str | int) -> str:
    return f"{key}.{name}" if key else str(name)
