"""Which packages this process computes with: those of all that is imported, and what they need."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def packages_here() -> dict[str, str]:
    """Their versions by their names, sorted. The first call reads what is installed, which takes a
    fifth of a second."""
    owners, imported = _owners(), [name for name in list(sys.modules) if "." not in name]
    return dict(_versions(frozenset(owner for name in imported for owner in owners.get(name, ()))))


def python_here() -> str:
    """The version of Python."""
    return platform.python_version()


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()


@functools.cache
def _versions(imported: frozenset[str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, each.version) for name, each in _closure(imported).items()))


def _closure(names: Iterable[str]) -> dict[str, Distribution]:
    waiting, found = [*names], dict[str, Distribution]()
    while waiting:
        name = str(canonicalize_name(waiting.pop()))
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # what the environment does without
            continue
        needs = (Requirement(line) for line in found[name].requires or [])
        waiting += [need.name for need in needs if not need.marker or need.marker.evaluate()]
    return found
