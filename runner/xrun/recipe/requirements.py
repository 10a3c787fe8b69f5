"""`requirements:` of a recipe -> the libraries that it names (PEP 508), each where it was written,
and what is wrong with them. Nothing is installed, and no network is asked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..errors import Problem, RecipeError, did_you_mean
from ..files import read_small
from . import secret_text
from .rules import BETRAYED
from .yaml_nodes import Mark, Node

KEY = "requirements"
PINS = Path(__file__).resolve().parents[1] / "launcher" / "arrival" / "container.txt"
"""What every machine has, in these very versions."""
MACHINE = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.9",
    "python_version": "3.11",
    "sys_platform": "linux",
    "extra": "",
}
"""What environment markers see: a machine of a cloud."""
_OWN = re.compile(r"\.(\[(?P<extras>[^\]]*)\])?")
_COMMENT = re.compile(r"(^|\s)#.*$")
_HASHES = re.compile(r"\s+--hash[= ]\S+")


@dataclass(frozen=True)
class Line:
    """One requirement as it was written, and where."""

    text: str
    mark: Mark
    key: str = KEY

    def problem(self, what: str, hint: str = "") -> Problem:
        return self.mark.problem(self.key, what, self.text, hint)


class _Unusable(Exception):
    """What `requirements` names as a whole cannot be read."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def requirement_problems(node: Node, project: Path) -> Iterator[Problem]:
    """What is wrong with the value of `requirements`; what is no list and no text is left to the
    schema."""
    try:
        lines = list(_lines(node, project))
    except _Unusable as error:
        yield node.mark.problem(KEY, error.what, node.text, error.hint)
        return
    for line in lines:
        if secret_text.betrays(line.key, line.text):
            if line.key == KEY:  # of the recipe's own values a rule says so
                yield line.problem(BETRAYED, "Remove it from the file.")
        elif wrong := _wrong(line.text):
            yield line.problem(*wrong)


def wanted(given: str | Sequence[str], project: Path, path: str) -> tuple[str, ...]:
    """The requirements for a machine, xrun itself and what is for other systems left out.

    Raises:
        RecipeError: the file or the extra that the recipe at `path` names is not there.
    """
    node = _node(given, path)
    if problems := list(requirement_problems(node, project)):
        raise RecipeError(problems)
    parsed = [Requirement(line.text) for line in _lines(node, project)]
    return tuple(str(each) for each in parsed if applies(each, MACHINE) and each.name != "xrun")


@cache
def pins() -> dict[str, str]:
    """The pinned version of each library, by its normalized name."""
    lines = PINS.read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): pinned.strip() for name, pinned in pairs}


def _node(given: str | Sequence[str], path: str) -> Node:
    """What was read, as a tree without places."""
    mark = Mark(path)
    if isinstance(given, str):
        return Node(given, mark, given)
    return Node([Node(text, mark, text) for text in given], mark)


def _lines(node: Node, project: Path) -> Iterator[Line]:
    if isinstance(node.value, list):
        for number, child in enumerate(node.value):
            if isinstance(child.value, str):
                yield Line(child.value, child.mark, f"{KEY}.{number}")
    elif isinstance(node.value, str):
        own = _OWN.fullmatch(node.value)
        yield from _of_project(own["extras"] or "", project) if own else _of_file(node, project)


def _of_file(node: Node, project: Path) -> Iterator[Line]:
    """The lines of a requirements.txt; hashes are made anew when versions are fixed."""
    path = (project / node.value).resolve()
    if not path.is_relative_to(project.resolve()):
        raise _Unusable("it is not below the project", f"The project is {project}.")
    if not path.is_file():
        hint = f"Write `[{node.value}]`, if a library is meant." if _parses(node.value) else ""
        raise _Unusable(f"there is no file {path}", hint)
    whole, first = "", 1
    for number, raw in enumerate(_read(path).splitlines(), 1):
        whole += raw.removesuffix("\\")
        if raw.endswith("\\"):
            continue
        if line := _HASHES.sub("", _COMMENT.sub("", whole)).strip():
            yield Line(line, Mark(str(path), first, 1))
        whole, first = "", number + 1


def _of_project(extras: str, project: Path) -> Iterator[Line]:
    """What the project itself needs, and its extras, as its pyproject.toml says."""
    path = project / "pyproject.toml"
    if not path.is_file():
        raise _Unusable(f"there is no {path}", "Name the libraries in a list.")
    try:
        table = tomllib.loads(text := _read(path)).get("project", {})
        needs, optional = table.get("dependencies", []), table.get("optional-dependencies", {})
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise _Unusable(f"{path} cannot be read: {error}") from None
    names = {canonicalize_name(name): each for name, each in optional.items()}
    own, found = canonicalize_name(str(table.get("name", ""))), list(needs)
    left, seen = [extra.strip() for extra in extras.split(",") if extra.strip()], set[str]()
    while left:
        extra = canonicalize_name(left.pop(0))
        if extra not in names:
            hint = did_you_mean(extra, names) or f"It has {', '.join(names) or 'none'}."
            raise _Unusable(f"{path} has no extra `{extra}`", hint)
        for need in names[extra] if extra not in seen else ():
            same = _extras_of(need, own)
            left += same
            found += [] if same else [need]
        seen.add(extra)
    for need in dict.fromkeys(found):
        yield Line(need, _place(need, text, path))


def _extras_of(need: str, own: str) -> list[str]:
    """The extras, where a project's extra is made of others of it: `all = ["project[train]"]`."""
    if not _parses(need) or canonicalize_name((parsed := Requirement(need)).name) != own:
        return []
    return sorted(parsed.extras)


def _place(need: str, text: str, path: Path) -> Mark:
    before, found, _ = text.partition(need)
    if not found:
        return Mark(str(path))
    return Mark(str(path), before.count("\n") + 1, len(before) - before.rfind("\n"))


def _read(path: Path) -> str:
    try:
        return read_small(path).decode()
    except (OSError, ValueError) as error:
        raise _Unusable(f"{path} cannot be read: {error}") from None


def _parses(text: str) -> bool:
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True


def _wrong(text: str) -> tuple[str, str] | None:
    """What is wrong with one requirement, and the way out."""
    if text.startswith("-"):
        what = "options, other requirements files and editable projects are not supported here"
        return what, "Name the libraries themselves; a machine asks the index that is set up on it."
    try:
        parsed = Requirement(text)
    except InvalidRequirement as error:
        what = str(error).splitlines()[0].rstrip(".:")
        return f"it is not a requirement: {what}", "Write a name and versions, like `timm>=1.0`."
    if parsed.url and not re.match(r"https?://[^\s]+\.whl(#.*)?$", parsed.url):
        what = "of all addresses only that of a wheel can be fixed to a hash"
        return what, "Install it under `setup`, or take it from an index."
    return _contradiction(parsed) if applies(parsed, MACHINE) else None


def _contradiction(parsed: Requirement) -> tuple[str, str] | None:
    """A version that cannot be had beside what every machine has."""
    name = canonicalize_name(parsed.name)
    pinned = installed("xrun") if name == "xrun" else pins().get(name)
    if not pinned or parsed.specifier.contains(pinned, prereleases=True):
        return None
    what = f"it contradicts {name}=={pinned}, which xrun installs on every machine"
    return what, "Allow this version, or remove the line."


def applies(parsed: Requirement, environment: dict[str, str]) -> bool:
    """Whether the requirement holds for such a machine."""
    return parsed.marker is None or parsed.marker.evaluate(environment)


def installed(name: str) -> str:
    """The version that is installed here; "" if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
