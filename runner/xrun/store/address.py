"""`Address`: where a run's state lives, as a recipe writes it and a plan carries it along.

`local` and a path are folders; `hub` is a repository of whoever launches, which is named like the
run; `hub://owner/name` and `hub-bucket://owner/name` are one and the same place for everybody.
`s3://bucket/prefix`, `gs://bucket/prefix` and `az://container/prefix` hold any number of runs, each
under its id, as a folder of runs does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import did_you_mean

Kind = Literal["local", "folder", "hub", "hub-bucket", "s3", "gs", "az"]
_HUB: tuple[Kind, ...] = ("hub", "hub-bucket")
_BUCKETS: tuple[Kind, ...] = ("s3", "gs", "az")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9](/[\w.=+-]+)*", re.ASCII)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PATH = re.compile(r"[./~$]|\w+/")


class NoAddressError(ValueError):
    """A text that is no address: what is wrong with it, and the way out."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True)
class Address:
    """`name` is a folder's path, a repository's `owner/name` or a bucket with a prefix; "" where
    that is not said."""

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
            return _far_away(scheme, rest)
        if text in ("local", "hub"):
            return cls("local") if text == "local" else cls("hub")
        if not _PATH.match(text):
            hint = did_you_mean(text, ("local", "hub")) or f"A folder is written `./{text}`."
            raise NoAddressError("it is neither `local`, `hub` nor a path", hint)
        return cls("folder", text)

    @property
    def durable(self) -> bool:
        """Whether what is stored there outlives the machine."""
        return self.on_hub or self.in_bucket

    @property
    def on_hub(self) -> bool:
        """Whether it is on the Hugging Face Hub."""
        return self.kind in _HUB

    @property
    def in_bucket(self) -> bool:
        """Whether it is in S3, Google Cloud Storage, Azure or what speaks S3."""
        return self.kind in _BUCKETS

    @property
    def shared(self) -> bool:
        """Whether every node finds the same place there."""
        return self.durable or self.name.startswith(("/", "~"))

    @property
    def owner(self) -> str:
        """The user or organisation that a repository belongs to."""
        return self.name.partition("/")[0]

    def of_run(self, owner: str, run: str) -> Address:
        """The address for everybody: a repository that is named by its run gets the name of this
        one."""
        return replace(self, name=f"{owner}/{run}") if self.on_hub and not self.name else self

    def place_of(self, run: str) -> Address:
        """Where the state of this run is: below a bucket's prefix under its id."""
        return replace(self, name=f"{self.name}/{run}") if self.in_bucket else self


def _far_away(scheme: str, name: str) -> Address:
    for kind in _BUCKETS:
        if scheme == kind:
            return Address(kind, _bucket(scheme, name.removesuffix("/")))
    for kind in _HUB:
        if scheme == kind:
            if not _REPOSITORY.fullmatch(name):
                raise NoAddressError(f"a repository there is `{scheme}://owner/name`")
            return Address(kind, name)
    raise NoAddressError(
        "there is no such kind of store",
        "Use a path, `hub`, `hub://owner/name`, `hub-bucket://owner/name`, `s3://bucket/prefix`,"
        " `gs://bucket/prefix` or `az://container/prefix`.",
    )


def _bucket(scheme: str, name: str) -> str:
    """The bucket's name and prefix. What a server, a shell or a URL may read in another way is no
    prefix."""
    if not _BUCKET.fullmatch(name) or {".", ".."} & set(name.split("/")):
        raise NoAddressError(
            f"a bucket there is `{scheme}://bucket/prefix`",
            "A bucket's name has 3 to 223 small letters, digits and any of . _ -; a prefix has"
            " letters, digits and any of . _ - = +",
        )
    return name
