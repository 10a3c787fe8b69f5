"""The libraries that a run needs beside the pins: as its recipe names them, and the exact versions
that a launch has made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_BEGINS = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?:==(?P<version>[^\s;\\]+)| @ \S+)")
_NAMED = re.compile(r"^[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Requirements:
    """`wanted` is what the recipe names (PEP 508), `text` a requirements.txt with exact versions
    and hashes, and `made_of` tells from what it was made."""

    wanted: tuple[str, ...] = ()
    made_of: str = ""
    text: str = ""

    @property
    def versions(self) -> dict[str, str]:
        """The locked version of each library; "" for one that is locked by its address."""
        found = map(_BEGINS.match, self.text.splitlines())
        return {line["name"]: line["version"] or "" for line in found if line}

    def fixed(self) -> dict[str, str]:
        """The same of those that have a version."""
        return {name: number for name, number in self.versions.items() if number}

    def installed(self) -> str:
        """Those of them that are installed here, as `einops 0.8.1, timm 1.0.9`: results depend on
        them."""
        named = (match[0] for text in self.wanted if (match := _NAMED.match(text)))
        names = sorted({name.lower().replace("_", "-") for name in (*named, *self.versions)})
        return ", ".join(f"{name} {here}" for name in names if (here := _version(name)))

    def of(self, wanted: Sequence[str]) -> Requirements:
        """What a recipe that names these goes on from: versions that are fixed already."""
        return replace(self, wanted=tuple(wanted))

    def to_json(self) -> dict[str, Any]:
        """As a plan holds it; empty where the recipe names nothing."""
        return {**vars(self), "wanted": list(self.wanted)} if self.wanted else {}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Requirements:
        """Read it; what a newer xrun has added is ignored. Raises ValueError."""
        wanted, rest = told.get("wanted", []), [told.get(key, "") for key in ("made_of", "text")]
        texts = isinstance(wanted, list | tuple) and [*wanted, *rest]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("`requirements` is of another type than a plan's")
        return cls(tuple(wanted), *rest)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
