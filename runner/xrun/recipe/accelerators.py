"""`Accelerators`: what one node has of them, as a person and every cloud writes it: `A100:8`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PATTERN = r"^[^:\s]+(:[1-9][0-9]{0,3})?$"


@dataclass(frozen=True)
class Accelerators:
    """So many of one kind. `str()` gives back the text it was made from."""

    name: str
    count: int = 1
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text or f"{self.name}:{self.count}"

    @classmethod
    def parse(cls, text: str) -> Accelerators:
        """`A100:8`, or `A100` for one. Raises ValueError for anything else."""
        if not re.fullmatch(PATTERN, text):
            raise ValueError(f"{text!r} is not a name and a count")
        name, _, count = text.partition(":")
        return cls(name, int(count or 1), text)
