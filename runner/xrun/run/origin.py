"""`Origin`: the repository, and the commit in it, that a run's recipe was fetched from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..files import typed


@dataclass(frozen=True)
class Origin:
    """`url` is the recipe's own at the commit. `revision` is what was typed, a branch or the commit
    itself; `path` the recipe in the repository. `here` is the folder that stands in for the
    recipe's project on the machine that it was typed on: its runs belong there, and not beside the
    fetched files."""

    url: str
    repository: str
    revision: str
    commit: str
    path: str
    here: str = ""

    def to_json(self) -> dict[str, str]:
        """As a plan has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Origin | None:
        """Read it; None for a recipe that lay here. Raises ValueError."""
        if not told:
            return None
        try:
            return cls(**typed(cls, told))
        except TypeError:
            raise ValueError("`origin` lacks keys") from None

    def is_of(self, other: Origin) -> bool:
        """Whether both name the same recipe at the same branch, whatever the commit."""
        return (self.repository, self.revision, self.path) == (
            other.repository,
            other.revision,
            other.path,
        )
