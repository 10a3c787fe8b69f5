"""Which packages this process computes with: those of all that is imported, and what they need."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def packages_here() -> dict[str, str]:
    """Their versions by their names, sorted."""
    tops = frozenset(name for name in list(sys.modules) if "." not in name)
    return dict(_versions(tops))


def python_here() -> str:
    """The version of Python."""
    return platform.python_version()


@functools.cache
def _versions(tops: frozenset[str]) -> tuple[tuple[str, str], ...]:
    owners = packages_distributions()
    imported = {owner for top in tops for owner in owners.get(top, ())}
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
