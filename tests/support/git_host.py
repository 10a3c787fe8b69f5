"""A host of git repositories on loopback: real bare repositories, served by git's own
`http-backend`, public or for those who know a password; and a repository of a stranger's recipe.

`GitHost.page` is a file's page as GitHub and the Hub spell it, `GitHost.recipe` the spelling for
any host.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from starlette.responses import Response

from loopback.server import Refused, Request, Server

from .running import DATASET, MODEL, RECIPE

PASSWORD = "read"
STRANGER = {
    "recipes/tiny.yaml": RECIPE.replace("train:\n", "train:\n  num_workers: 0\n"),
    "models/line.py": "from own.width import WIDTH\n\n" + MODEL.replace("= 8", "= WIDTH"),
    "datasets/points.py": DATASET,
    "own/__init__.py": "",
    "own/width.py": "WIDTH = 8\n",
    "pyproject.toml": "[project]\nname = 'stranger'\n",
}


def git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder; it has no settings of this machine's."""
    who = ("-c", "user.name=s", "-c", "user.email=s@example.com", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(folder: Path, files: Mapping[str, str]) -> str:
    """The new commit of a working repository with these files, pushed where it was cloned from."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a change")
    git(folder, "push", "--quiet", "origin", "HEAD:main")
    return git(folder, "rev-parse", "HEAD")


def bare(path: Path, files: Mapping[str, str] = STRANGER) -> Path:
    """A bare repository with one commit on `main`; `PATH.work` beside it is where it is edited."""
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--bare")
    work = path.with_name(f"{path.name}.work")
    git(path.parent, "clone", "--quiet", str(path), str(work))
    commit(work, files)
    return work


class GitHost(Server):
    """Serves the bare repositories below `root`; those whose name begins with `private` ask for a
    password."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def recipe(self, name: str, revision: str, path: str = "recipes/tiny.yaml") -> str:
        """A recipe as `git+http://`."""
        return f"git+{self.url}/{name}@{revision}#{path}"

    def page(self, name: str, revision: str, path: str = "recipes/tiny.yaml") -> str:
        """A recipe as the page of a file."""
        return f"{self.url}/{name}/blob/{revision}/{path}"

    def respond(self, request: Request) -> Response:
        """What `git http-backend` answers, by CGI (RFC 3875)."""
        if "/private" in request.path:
            self._refuse_strangers(request)
        done = subprocess.run(
            ["git", "http-backend"],
            env=self._cgi(request),
            input=request.body,
            capture_output=True,
            check=False,  # it ends with 1 where it refuses, and has answered
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        return Response(body, status, headers)

    def _refuse_strangers(self, request: Request) -> None:
        known = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {known}":
            raise Refused(401, "Who are you?", {"WWW-Authenticate": 'Basic realm="git"'})

    def _cgi(self, request: Request) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": str(request.query),
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }


@contextlib.contextmanager
def strangers_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    """With the repository `stranger`, and somebody who stands in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    bare(tmp_path / "git" / "stranger")
    with GitHost(tmp_path / "git") as made:
        yield made
