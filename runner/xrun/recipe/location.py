"""`Location`: where data lie that go along, a path here or a bucket; and where on a machine they
will be.

A bucket's address is spelled as SkyPilot 0.14 spells it in `file_mounts`.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass

from ..errors import did_you_mean

SCHEMES = ("s3", "gs", "r2", "https", "hf", "cos", "oci", "nebius", "cw", "vastdata")
AZURE = "https://ACCOUNT.blob.core.windows.net/CONTAINER"
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*)://(.*)")
_AZURE = re.compile(r"[a-z0-9]{3,24}\.blob\.core\.windows\.net(/[^/]+)+")
_NAMES_OF_AZURE = ("az", "azure", "abfs", "abfss", "wasb", "wasbs", "http")


class NoLocationError(ValueError):
    """A text that names no place of data: what is wrong with it, and the way out."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True)
class Location:
    """`scheme` is "" for a path here, `name` the path, or what follows the scheme."""

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}" if self.scheme else self.name

    @classmethod
    def parse(cls, text: str) -> Location:
        """Raises `NoLocationError`."""
        address = _ADDRESS.fullmatch(text)
        if address is None:
            return cls("", text)
        scheme, name = address[1], address[2].rstrip("/")
        _check(scheme, name)
        return cls(scheme, name)

    @property
    def is_whole(self) -> bool:
        """Whether it is a bucket and not a part of one, where SkyPilot mounts only the whole."""
        parts = {"https": 99, "hf": 99, "cos": 2}.get(self.scheme, 1)
        return len(self.name.split("/")) <= parts

    def path(self, project: str | os.PathLike[str]) -> str | None:
        """Where it is here, which begins at the project's folder; None for a bucket."""
        if self.scheme:
            return None
        return os.path.abspath(os.path.join(project, os.path.expanduser(self.name)))


def _check(scheme: str, name: str) -> None:
    if scheme in _NAMES_OF_AZURE:
        raise NoLocationError("there is no such kind of bucket", f"Azure's are {AZURE}.")
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        hint = did_you_mean(scheme, SCHEMES) or f"Known are {known}; a path has none."
        raise NoLocationError("there is no such kind of bucket", hint)
    if scheme == "https" and not _AZURE.fullmatch(name):
        hint = "Download other addresses in the component, or in `setup`."
        raise NoLocationError(f"of https, only Azure's containers are mounted: {AZURE}", hint)
    if not name:
        raise NoLocationError("it names no bucket", f"Write {scheme}://BUCKET/PREFIX.")


def target_there(target: str) -> str:
    """The path on a machine that a key of `files` means: from its home folder, if it does not say
    from where."""
    return posixpath.normpath(target if target.startswith(("/", "~")) else f"~/{target}")


def is_within(path: str, folder: str) -> bool:
    """Whether a path on a machine is this folder, or lies in it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
