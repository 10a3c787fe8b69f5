"""Arguments of components that are paths: relative ones begin at the recipe's project, wherever the
command is typed, and on a job's machine as here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..component import Expected, Signature, shown
from ..errors import Problem

_BEGINS = re.compile(r"\.\.?/|~/")
_OF_PATHS = {"Path", "PathLike", "PosixPath"}


def path_of(value: Any, project: Path) -> Path | None:
    """The path that an argument may mean; None for what cannot be one."""
    if not isinstance(value, str) or not value or "\0" in value or "://" in value:
        return None
    return project / Path(value).expanduser() if _has_a_home(value) else None


def missing_paths(build: Signature, args: Mapping[str, Any], project: Path) -> Iterator[Problem]:
    """Arguments that are paths, by their look or by the annotation, and lead nowhere; absolute ones
    may be there on another machine."""
    annotated = {
        parameter.name
        for parameter in build.parameters
        if Expected(parameter.annotation).names & _OF_PATHS
    }
    for name, value in args.items():
        path = path_of(value, project)
        is_meant = path is not None and (name in annotated or _BEGINS.match(value))
        if path is not None and is_meant and not value.startswith("/") and not _is_there(path):
            hint = f"A relative path begins at the recipe's project, {project}."
            yield Problem("", 0, 0, name, "there is no such file or folder", shown(value), hint)


def _has_a_home(value: str) -> bool:
    """Not `~somebody/` whom this machine does not know."""
    try:
        Path(value).expanduser()
    except RuntimeError:
        return False
    return True


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False
