"""Where components are imported from: `datasets/digits.py` of a project is
`xrun.components.datasets.digits`.

`__path__` holds the recipe's project, then this checkout, then the packaged copy, and the first
that has a file wins. The project's root and its `src/` are on sys.path as well, after everything
that is installed, so that its own packages can be imported and none stands before a library. The
project travels to child processes in the environment, so that workers under spawn and forkserver
find the same files.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

from ..environment import PROJECT

HERE = Path(__file__).resolve().parent


def roots(project: Path | None) -> list[Path]:
    """The folders that may hold models/ and datasets/, nearest first."""
    checkout = HERE.parents[2]
    # A checkout is known by its pyproject.toml: site-packages has a folder called datasets/ too.
    is_checkout = HERE.parents[1].name == "runner" and (checkout / "pyproject.toml").is_file()
    found = [project, checkout if is_checkout else None, HERE]
    return list(dict.fromkeys(root.resolve() for root in found if root))


def use_project(root: Path | str) -> None:
    """Afterwards components are imported from this project first, here and in child processes."""
    path = [str(folder) for folder in roots(Path(root))]
    if path != __path__:
        for name in [name for name in list(sys.modules) if name.startswith(__name__ + ".")]:
            del sys.modules[name]
            vars(sys.modules[__name__]).pop(name.split(".")[2], None)
        __path__[:] = path
        _make_rooms()
    os.environ[PROJECT.name] = path[0]
    _importable(path[0])


def _make_rooms() -> None:
    """`models` and `datasets` of all these folders, also where a project has a `models.py`."""
    for kind in ("models", "datasets"):
        spec = ModuleSpec(f"{__name__}.{kind}", None, is_package=True)
        spec.submodule_search_locations = [str(Path(root, kind)) for root in __path__]
        sys.modules[spec.name] = room = module_from_spec(spec)
        setattr(sys.modules[__name__], kind, room)


def _importable(project: str) -> None:
    """The project's own packages, in its folder or below `src/`, after everything that is
    installed."""
    for folder in (project, os.path.join(project, "src")):
        if folder not in sys.path and os.path.isdir(folder):
            sys.path.append(folder)


_project = PROJECT.of()
__path__ = [str(root) for root in roots(Path(_project) if _project else None)]
if _project:
    _importable(__path__[0])
_make_rooms()
