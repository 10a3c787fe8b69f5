"""A component's name -> its file, the signature of its `build`, and `build` itself.

Everything but `load_build` reads files without importing them, so the launcher half needs none of
their libraries.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from . import components
from .errors import ComponentError, Problem, did_you_mean
from .libraries import how_to_install

Kind = Literal["models", "datasets"]
LARGEST = 2**20
"""Bytes of a component's file; more is data."""
MOST_PROBLEMS = 200
DEEPEST = 100
"""Levels of an annotation or a default; people write five."""
CLONE = "xrun-clone.json"
"""What lies beside a repository that was fetched here; a project in it ends where it begins."""
MOST_FOLDERS = 10_000
"""So many folders of a project are looked through for a module that is not found."""


class _Required:
    """There is no default, or none that can be read without running the file."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """One parameter of `build`. `default` is the literal, or its source text where it is an
    expression (`is_literal` tells)."""

    name: str
    required: bool
    default: Any = REQUIRED
    annotation: str = ""
    is_literal: bool = False


@dataclass(frozen=True)
class Signature:
    """What `build` in this file takes."""

    path: Path
    line: int
    parameters: tuple[Parameter, ...]
    has_kwargs: bool
    docstring: str

    def takes_number(self, argument: str) -> bool:
        """Whether the argument's annotation names a kind of number."""
        found = (p for p in self.parameters if p.name == argument)
        return any(Expected(parameter.annotation).names & {"int", "float"} for parameter in found)


def project_root(recipe_path: Path | str) -> Path:
    """The project of a recipe: the nearest parent with a pyproject.toml, else the parent of its
    `recipes/`, else its folder."""
    folder = Path(recipe_path).resolve().parent
    around = (folder, *folder.parents)
    if (clone := clone_around(folder)) is not None:
        around = around[: around.index(clone) + 1]
    for parent in around:
        if (parent / "pyproject.toml").is_file():
            return parent
    inner = around if clone is None else around[:-1]
    return next((parent.parent for parent in inner if parent.name == "recipes"), folder)


def clone_around(folder: Path) -> Path | None:
    """The repository, fetched here by xrun, that a folder is or lies in; None for all others."""
    around = (folder, *folder.parents)
    return next((each for each in around if (each.parent / CLONE).is_file()), None)


def find(kind: Kind, name: str, project: Path) -> Path:
    """The file of a component: the recipe's project first, then this checkout, then the installed
    package."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,99}", name, re.ASCII):
        raise ComponentError(
            f"{shown(name)} is not a component's name.",
            "At most 100 lower-case letters, digits and `_`: it is the name of a file.",
        )
    folders = [root / kind for root in components.roots(project)]
    refuse_packages(folders[0].parent)
    found = next(
        (folder / f"{name}.py" for folder in folders if (folder / f"{name}.py").is_file()), None
    )
    if found is None:
        known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
        searched = ", ".join(str(folder) for folder in folders)
        raise ComponentError(
            f"there is no {kind}/{name}.py.",
            f"{did_you_mean(name, known)} Searched: {searched}.".strip(),
        )
    return found


def refuse_packages(project: Path) -> None:
    """A project's models/ and datasets/ are no Python packages of their own."""
    for kind in ("models", "datasets"):
        marker = project / kind / "__init__.py"
        if marker.exists():
            other = (
                "Hugging Face's `datasets`"
                if kind == "datasets"
                else "another package called `models`"
            )
            raise ComponentError(
                f"{marker} turns {kind}/ into a Python package, which would hide {other}.",
                "Delete this file.",
            )


def signature(path: Path) -> Signature:
    """The parameters of `def build(...)`, read without importing the file."""
    module = parse(path)
    build = next((node for node in reversed(module.body) if "build" in names_bound_by(node)), None)
    if build is None:
        raise ComponentError(
            f"{path}: it has no `build`.",
            "A component is a file with `def build(...)` at its top level.",
        )
    if not isinstance(build, ast.FunctionDef):
        raise ComponentError(
            f"{path}:{build.lineno}: `build` is not a plain `def` here, so its arguments can only"
            " be read by running the file.",
            "Write `def build(...)` in this file and call the other one from it.",
        )
    if build.args.posonlyargs or build.args.vararg:
        raise ComponentError(
            f"{path}:{build.lineno}: `build` is called with names only.", "Remove `*args` and `/`."
        )
    if too_deep(build.args):
        raise ComponentError(
            f"{path}:{build.lineno}: an annotation or a default of `build` has more than {DEEPEST}"
            " levels.",
            "Give it a name above `build`, and write the name here.",
        )
    return Signature(
        path,
        build.lineno,
        tuple(parameters(build.args)),
        build.args.kwarg is not None,
        ast.get_docstring(build) or "",
    )


def parse(path: Path, source: bytes | None = None) -> ast.Module:
    """The file's syntax tree; `source` is what it holds, where that has been read already. Raises
    ComponentError."""
    try:
        text = _read(path) if source is None else source
        if len(text) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST // 1024} KiB, so it holds data")
        return ast.parse(text, str(path))
    except SyntaxError as error:
        raise ComponentError(
            f"{path}:{error.lineno or 1}: {error.msg}.", "The file is not Python."
        ) from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ComponentError(f"{path}: it cannot be read: {error}.") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def names_bound_by(node: ast.stmt) -> set[str]:
    """The names that a statement at the top level binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }


def too_deep(tree: ast.AST) -> bool:
    """Whether a tree has more levels than whoever goes down in it by recursion can bear."""
    level = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


def parameters(arguments: ast.arguments) -> Iterator[Parameter]:
    places: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    defaults = [*places, *arguments.defaults, *arguments.kw_defaults]
    for argument, default in zip([*arguments.args, *arguments.kwonlyargs], defaults, strict=True):
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        value, is_literal = (REQUIRED, False) if default is None else read_literal(default)
        yield Parameter(argument.arg, default is None, value, annotation, is_literal)


def read_literal(expression: ast.expr) -> tuple[Any, bool]:
    """The value of a literal, or the text of what is none."""
    try:
        return ast.literal_eval(expression), True
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.unparse(expression), False


def check_args(signature: Signature, args: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with these arguments, as far as anybody reads; `key` is the argument's name,
    and "" where one is missing. Problems have no place."""
    return list(islice(wrong_args(signature, args), MOST_PROBLEMS))


def wrong_args(signature: Signature, args: Mapping[str, Any]) -> Iterator[Problem]:
    """All that is wrong with them, found as it is asked for."""
    known = {parameter.name: parameter for parameter in signature.parameters}
    for name, value in args.items():
        if name not in known and not signature.has_kwargs:
            hint = did_you_mean(name, known) or (
                f"It takes {', '.join(islice(known, 30))}." if known else "It takes no arguments."
            )
            what = f"`build` in {signature.path.name} has no such argument"
            yield Problem("", 0, 0, name, what, hint=hint)
        elif name in known and not (expected := Expected(known[name].annotation)).accepts(value):
            what = f"`build` in {signature.path.name} takes {expected}"
            yield Problem("", 0, 0, name, what, shown(value))
    for parameter in signature.parameters:
        if parameter.required and parameter.name not in args:
            what = f"`build` in {signature.path.name} needs the argument `{parameter.name}`"
            yield Problem("", 0, 0, "", what, hint=f"Add `args: {{{parameter.name}: ...}}`.")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Expected:
    """A simple annotation. One that is not simple accepts everything."""

    def __init__(self, annotation: str) -> None:
        self.text = annotation
        self.tree = expression(annotation)

    def __str__(self) -> str:
        return f"`{self.text}`"

    @property
    def names(self) -> set[str]:
        """The names of the types in it."""
        nodes = ast.walk(self.tree) if self.tree is not None else ()
        return {node.id for node in nodes if isinstance(node, ast.Name)}

    def accepts(self, value: Any) -> bool:
        return self.tree is None or accepts(self.tree, value)


@cache
def expression(text: str) -> ast.expr | None:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return None if too_deep(tree) else tree


SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "dict": (dict,),
    "Mapping": (dict,), "list": (list,), "tuple": (list,), "Sequence": (list,),
    "Iterable": (list,), "set": (list,), "None": (type(None),),
}  # fmt: skip


def accepts(tree: ast.expr, value: Any) -> bool:
    """Whether a value from YAML can be meant by an annotation; in doubt, yes."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        inner = expression(tree.value)
        return inner is None or accepts(inner, value)
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        return accepts(tree.left, value) or accepts(tree.right, value)
    if isinstance(tree, ast.Subscript):
        return accepts_generic(last_name(tree.value), tree.slice, value)
    return accepts_plain(last_name(tree), value)


def accepts_plain(name: str, value: Any) -> bool:
    if name not in SIMPLE:
        return True
    # A bool is an int for Python, and never meant as one in a recipe.
    return isinstance(value, SIMPLE[name]) and (not isinstance(value, bool) or name == "bool")


def accepts_generic(name: str, inside: ast.expr, value: Any) -> bool:
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        choices = [read_literal(part)[0] for part in parts]
        return any(choice == value and type(choice) is type(value) for choice in choices)
    if name in ("Optional", "Union"):
        return (name == "Optional" and value is None) or any(accepts(part, value) for part in parts)
    if name in ("list", "List", "Sequence", "Iterable", "set"):
        return isinstance(value, list) and all(accepts(parts[0], item) for item in value)
    if name in ("tuple", "Tuple"):
        return isinstance(value, list) and accepts_tuple(parts, value)
    return accepts_plain(name.lower() if name == "Dict" else name, value)


def accepts_tuple(parts: list[ast.expr], value: list[Any]) -> bool:
    if parts and isinstance(parts[-1], ast.Constant) and parts[-1].value is ...:
        return all(accepts(parts[0], item) for item in value)
    return len(parts) == len(value) and all(
        accepts(part, item) for part, item in zip(parts, value, strict=True)
    )


def last_name(tree: ast.expr) -> str:
    """`Literal` of `typing.Literal`; "" for what has no name."""
    if isinstance(tree, ast.Constant):
        return "None" if tree.value is None else ""
    return (
        tree.attr
        if isinstance(tree, ast.Attribute)
        else tree.id
        if isinstance(tree, ast.Name)
        else ""
    )


def load_build(kind: Kind, name: str, project: Path) -> Callable[..., Any]:
    """The component's `build`, imported as `xrun.components.<kind>.<name>` so that workers can
    import it as well."""
    path = find(kind, name, project)
    components.use_project(project)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(f"xrun.components.{kind}.{name}")
    except (
        BaseException
    ) as error:  # argparse in a copied script leaves; others raise what they like
        raise ComponentError(
            f"{place(error, path)}: {type(error).__name__}: {error}.",
            missing_module(error, kind, project),
        ) from error
    build = getattr(module, "build", None)
    if not callable(build):
        raise ComponentError(
            f"{path}: it has no `build`.",
            "A component is a file with `def build(...)` at its top level.",
        )
    return build


def place(error: BaseException, path: Path) -> str:
    """The line of the component's file that an error came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 1}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def missing_module(error: BaseException, kind: Kind, project: Path) -> str:
    """What to do about a module that is not there. A library that an extra of xrun has comes with
    it. No other name of a package to install is guessed: it may be a stranger's, and what is
    missing may be the project's own."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    name = error.name.rpartition(".")[2]
    found = own_file(name, project)
    if found is None:
        return how_to_install(error.name)
    place = found.relative_to(project)
    dotted = ".".join(place.with_suffix("").parts)
    if place.parts[0] in ("models", "datasets"):
        dotted = f"..{dotted}".replace(f"..{kind}.", ".")
    return f"It is the project's own {place}. Write `from {dotted} import ...`."


def own_file(name: str, project: Path) -> Path | None:
    """Where the project has a module or a package of this name, if it has one."""
    for visited, (folder, folders, files) in enumerate(os.walk(project)):
        if visited == MOST_FOLDERS:
            break
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = sorted(each for each in folders if each[0] not in "._")
        if f"{name}.py" in files:
            return Path(folder, f"{name}.py")
        if name in folders and any(Path(folder, name).glob("*.py")):
            return Path(folder, name)
    return None
