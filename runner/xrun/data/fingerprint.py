"""What Hugging Face's `datasets` has made by a component's code is found again by that code.

The library keeps on the disk what `map`, `filter` and `from_generator` make, by a hash of the
function. Of a function that stands in a module, as a component's do, it hashes the name alone: a
component that was edited would get, without a word, the rows that its older code has made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

_IMPORTS = re.compile(rb"^\s*(import|from) datasets\b", re.MULTILINE)
_KEEPS = re.compile(rb"\.(map|filter|from_generator)\(")


def imports_datasets(files: Iterable[bytes]) -> bool:
    """Whether one of these source files imports the library."""
    return any(_IMPORTS.search(file) for file in files)


def keeps_rows(files: Collection[bytes]) -> bool:
    """Whether these source files may have the library keep what a function makes; the others need
    not wait a second for its import."""
    return imports_datasets(files) and any(_KEEPS.search(file) for file in files)


def count_code(places: Iterable[str], digest: str) -> None:
    """From now on what this process hashes for the library has this digest with it, where a module
    of these places (`datasets/mine.py`, `src/tools/text.py`) is named in it."""
    from datasets.fingerprint import Hasher, dumps

    names = [_module(place).encode() for place in places]

    def hash_of(value: Any) -> str:
        data = dumps(value)
        counts = any(name in data for name in names)
        return str(Hasher.hash_bytes([data, digest.encode()] if counts else data))

    Hasher.hash = staticmethod(hash_of)


def _module(place: str) -> str:
    """The name that a module of this place has for pickle."""
    name = place.removeprefix("src/").removesuffix(".py").removesuffix("/__init__")
    own = name.startswith(("datasets/", "models/"))
    return f"xrun.components.{name}".replace("/", ".") if own else name.replace("/", ".")
