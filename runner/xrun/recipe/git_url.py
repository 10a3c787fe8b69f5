"""`RecipeURL`: a recipe in a repository elsewhere, as a person types or copies its address.

    https://github.com/OWNER/REPO/blob/REV/recipes/x.yaml        GitHub and the Hub, also /raw/
    https://gitlab.com/GROUP/REPO/-/blob/REV/recipes/x.yaml      GitLab
    git+https://HOST/REPO@REV#recipes/x.yaml                     any host; git+ssh://, git+file://

Nothing is asked here: which of several readings is meant, where a branch's name may hold a `/`, and
at which commit a branch is, only the server can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ..errors import Problem, RecipeError

_PAGE = re.compile(r"(?P<repository>/.+?)(?P<between>/(?:-/)?(?:blob|raw)/)(?P<rest>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)
_HOST = re.compile(
    r"(?:\w[\w.-]*@)?(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(?::\d+)?", re.ASCII
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SCHEMES = ("https", "ssh", "file", "http")
_FORMS = (
    "Type https://github.com/OWNER/REPO/blob/COMMIT/recipes/x.yaml, or for any host"
    " git+https://HOST/REPO@COMMIT#recipes/x.yaml."
)


@dataclass(frozen=True)
class RecipeURL:
    """`repository` is what git is asked; `readings` are the pairs of a revision and the recipe's
    path in the repository that are meant, one of them. `before` and `between` spell the URL."""

    typed: str
    repository: str
    readings: tuple[tuple[str, str], ...]
    before: str
    between: str

    def __str__(self) -> str:
        return self.typed

    @classmethod
    def parse(cls, text: str) -> RecipeURL:
        """Raises RecipeError."""
        plain = text.removeprefix("git+")
        try:
            parts = urlsplit(plain)
        except ValueError:
            raise _refused(text, "it is not a URL", _FORMS) from None
        _check_host(text, parts)
        return _of_repository(text, plain) if text != plain else _of_page(text, parts)

    @property
    def commit(self) -> str:
        """The commit that it names, in 40 hex digits; "" for a branch or a tag."""
        first = self.readings[0][0]
        return first if _COMMIT.fullmatch(first) else ""

    def at(self, commit: str, path: str) -> str:
        """The URL of a recipe in the same repository at this commit."""
        return f"{self.before}{commit}{self.between}{quote(path)}"


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL and not as a path."""
    return text.startswith(("git+", "git@", "http://", "https://", "ssh://"))


def _of_repository(text: str, plain: str) -> RecipeURL:
    whole, _, fragment = plain.partition("#")
    start = whole.find("/", whole.find("//") + 2) + 1
    place, at, revision = whole[start:].rpartition("@")
    repository = whole[:start] + (place if at else revision)
    revision = _commit_or_name(revision) if at else "HEAD"
    if not start or repository.endswith("/"):
        raise _refused(text, "it names no repository", _FORMS)
    if not fragment:
        hint = f"Type '{text}#recipes/x.yaml', with the recipe's path after the `#`."
        raise _refused(text, "it names no recipe in the repository", hint)
    reading = (_revision(text, revision), _path(text, fragment))
    return RecipeURL(text, repository, (reading,), f"git+{repository}@", "#")


def _of_page(text: str, parts: SplitResult) -> RecipeURL:
    if parts.scheme not in ("https", "http"):
        raise _refused(text, "the URL of a page begins with https://", _FORMS)
    page = _PAGE.fullmatch(parts.path)
    if page is None:
        raise _refused(text, "it is not the page of a file in a repository", _FORMS)
    host = f"{parts.scheme}://{parts.netloc}"
    readings = tuple(_readings(text, page["rest"]))
    if not readings:
        raise _refused(text, "it names no file after the branch or commit", _FORMS)
    before = f"{host}{page['repository']}{page['between']}"
    return RecipeURL(text, host + page["repository"], readings, before, "/")


def _readings(text: str, rest: str) -> Iterator[tuple[str, str]]:
    """A commit is all of the first part; a branch may have several, of which the longest that
    there is is meant, as on the hosts' own pages."""
    parts = rest.split("/")
    first = _commit_or_name(parts[0])
    most = 1 if _COMMIT.fullmatch(first) else len(parts) - 1
    for end in range(1, min(most, len(parts) - 1) + 1):
        revision = "/".join([first, *map(unquote, parts[1:end])])
        yield _revision(text, revision), _path(text, "/".join(parts[end:]))


def _commit_or_name(text: str) -> str:
    name = unquote(text)
    return name.lower() if _COMMIT.fullmatch(name.lower()) else name


def _revision(text: str, name: str) -> str:
    if not _REVISION.fullmatch(name) or ".." in name or name.endswith(("/", ".lock", ".")):
        raise _refused(text, f"`{name}` is not the name of a branch, a tag or a commit", _FORMS)
    return name


def _path(text: str, path: str) -> str:
    """The recipe's path in the repository, which it does not leave."""
    name = unquote(path)
    parts = name.split("/")
    if not name.endswith((".yaml", ".yml")):
        raise _refused(text, f"`{name}` is not a recipe: its name ends in .yaml", _FORMS)
    if {"", ".", "..", ".git"} & set(parts) or not name.isprintable() or "\\" in name:
        raise _refused(text, f"`{name}` is not a path inside of the repository", _FORMS)
    return name


def _check_host(text: str, parts: SplitResult) -> None:
    """What git would take for an option, a program or a password goes no further."""
    if parts.scheme not in _SCHEMES:
        known = "git+https://, git+ssh:// and git+file://"
        raise _refused(text, f"xrun fetches by {known} only", _FORMS)
    if parts.scheme == "file":
        if parts.netloc:
            raise _refused(text, "a local repository is git+file:///PATH@REV#recipes/x.yaml")
        return
    if parts.password is not None or (parts.username and parts.scheme != "ssh"):
        hint = "Remove it; git asks its credential helper for it."
        where = text.replace(f"{parts.netloc.rpartition('@')[0]}@", "***@")
        raise _refused(where, "a user or a password in a URL would be kept with the run", hint)
    if not _HOST.fullmatch(parts.netloc):
        raise _refused(text, "it names no host", _FORMS)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        hint = "Type https:// in place of http://."
        raise _refused(text, "anybody on the way could change what comes over plain http", hint)


def _refused(text: str, what: str, hint: str = "") -> RecipeError:
    return RecipeError([Problem(text, 0, 0, "", what, hint=hint)])
