"""`Address`: where a run's state lives, as a recipe writes it and a plan carries it along.

`local` and a path are folders; `hub` is a repository of whoever launches, which is named like the
run; `hub://owner/name` and `hub-bucket://owner/name` are one and the same place for everybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import did_you_mean

Kind = Literal["local", "folder", "hub", "hub-bucket"]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PATH = re.compile(r"[./~$]|\w+/")


class NoAddressError(ValueError):
    """A text that is no address: what is wrong with it, and the way out."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True)
class Address:
    """`name` is a folder's path or a repository's `owner/name`; "" where that is not said."""

    kind: Kind
    name: str = ""

    def __str__(self) -> str:
        if self.kind in ("local", "folder"):
            return self.name or "local"
        return f"{self.kind}://{self.name}" if self.name else self.kind

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises `NoAddressError`."""
        scheme, colon, rest = text.partition("://")
        if colon:
            return cls(_far_away(scheme, rest), rest)
        if text in ("local", "hub"):
            return cls("local") if text == "local" else cls("hub")
        if not _PATH.match(text):
            hint = did_you_mean(text, ("local", "hub")) or f"A folder is written `./{text}`."
            raise NoAddressError("it is neither `local`, `hub` nor a path", hint)
        return cls("folder", text)

    @property
    def durable(self) -> bool:
        """Whether what is stored there outlives the machine."""
        return self.kind in ("hub", "hub-bucket")

    @property
    def shared(self) -> bool:
        """Whether every node finds the same place there."""
        return self.durable or self.name.startswith(("/", "~"))

    @property
    def owner(self) -> str:
        """The user or organisation that a repository belongs to."""
        return self.name.partition("/")[0]

    def of_run(self, owner: str, run: str) -> Address:
        """The address for everybody: a place that is named by its run gets the name of this one."""
        return replace(self, name=f"{owner}/{run}") if self.durable and not self.name else self


def _far_away(scheme: str, name: str) -> Kind:
    if scheme != "hub" and scheme != "hub-bucket":
        hint = "Use a path, `hub`, `hub://owner/name` or `hub-bucket://owner/name`."
        raise NoAddressError("there is no such kind of store", hint)
    if not _REPOSITORY.fullmatch(name):
        raise NoAddressError(f"a repository there is `{scheme}://owner/name`")
    return "hub" if scheme == "hub" else "hub-bucket"
