"""Who watches the clients of huggingface_hub. The library is imported by the first who asks it
anything: most ranks never do, and would have 9 MB of it for nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_HTTP = "huggingface_hub.utils._http"
"""The library's module that makes its clients."""
_watch: list[Callable[[Any], Any]] = []


def watch_clients(watch: Callable[[Any], Any]) -> None:
    """From now on `watch` gets each client of the library's, in this process and those that it
    forks, and returns the one to be used; who watched before does no longer."""
    _watch.append(watch)
    if library := sys.modules.get(_HTTP):
        library.set_client_factory(_made)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def watched(client: Any) -> Any:
    """The client as whoever watches wants it."""
    return _watch[-1](client) if _watch else client


def _made() -> Any:
    from .client import made  # which imports the library: it is there by now

    return made()


class _Finder(MetaPathFinder):
    """Tells the library who makes its clients as soon as it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _HTTP:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_tell(module: ModuleType) -> None:
            run(module)
            module.__dict__["set_client_factory"](_made)

        spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]  # of this one alone
        return spec
