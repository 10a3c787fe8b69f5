"""Git for the loopback Hub, by as few processes as possible: what a commit holds, and the language
of `git fast-import`."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
POINTED = r"version https://git-lfs.github.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "hub",
    "GIT_AUTHOR_EMAIL": "hub@localhost",
    "GIT_COMMITTER_NAME": "hub",
    "GIT_COMMITTER_EMAIL": "hub@localhost",
}
"""What git sees, so that nobody's settings change what it does."""


@dataclass(frozen=True)
class File:
    """A file of one commit: git's `oid`, the content's `size`; for a large file its SHA-256 and the
    size of its pointer."""

    path: str
    oid: str
    size: int
    sha256: str = ""
    pointer_size: int = 0


@dataclass(frozen=True)
class Commit:
    """A commit; `time` is in seconds, `message` what follows the title."""

    id: str
    tree: str
    time: int
    author: str
    title: str
    message: str


def git(
    folder: Path,
    *arguments: str,
    stdin: bytes = b"",
    fails: bool = False,
    environment: Mapping[str, str] = {},
) -> bytes:
    """Run git in a repository; b"" for a failure that may happen."""
    command = ["git", "-C", str(folder), "-c", "core.fsync=none", *arguments]
    done = subprocess.run(
        command, input=stdin, capture_output=True, env={**ENVIRONMENT, **environment}
    )
    if done.returncode and not fails:
        raise RuntimeError(f"git {arguments[0]}: {done.stderr.decode()}")
    return b"" if done.returncode else done.stdout


@functools.lru_cache(maxsize=512)
def tree(folder: Path, commit: str) -> dict[str, File]:
    """Every file of a commit by its path; pointers are read as what they point to. A commit never
    changes, so this is kept."""
    rows = [
        row.split(b"\t", 1)
        for row in git(folder, "ls-tree", "-r", "-l", "-z", commit).split(b"\0")
        if row
    ]
    files = [
        File(path.decode(), meta.split()[2].decode(), int(meta.split()[3])) for meta, path in rows
    ]
    pointed = pointers(folder, [file.oid for file in files if 100 < file.size < 200])
    return {file.path: resolved(file, pointed.get(file.oid)) for file in files}


def pointers(folder: Path, oids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Of these blobs the ones that are LFS pointers: blob -> (SHA-256, size)."""
    text = (
        git(folder, "cat-file", "--batch", stdin="\n".join(oids).encode()).decode(errors="replace")
        if oids
        else ""
    )
    return {
        oid: (sha256, int(size))
        for oid, sha256, size in re.findall(rf"([0-9a-f]{{40}}) blob \d+\n{POINTED}", text)
    }


def resolved(file: File, pointed: tuple[str, int] | None) -> File:
    """The file itself, or what its pointer points to."""
    return File(file.path, file.oid, pointed[1], pointed[0], file.size) if pointed else file


def entry(branch: str, message: str, author: str, time: int, parent: str) -> list[bytes]:
    """The beginning of a commit in fast-import's language; it is mark 1."""
    start = [
        f"commit refs/heads/{branch}\nmark :1\ncommitter {author} <{author}@localhost> {time}"
        " +0000\n".encode()
    ]
    return [*start, *data_of(message.encode()), *([f"from {parent}\n".encode()] if parent else [])]


def data_of(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Bytes in fast-import's language."""
    return f"data {len(data)}\n".encode(), data, b"\n"


def quoted(path: str) -> str:
    """A path in fast-import's language."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def imported(folder: Path, commands: Iterable[bytes], *options: str) -> str:
    """Run fast-import and return the commit that is mark 1. It updates the branch only if nobody
    else has moved it meanwhile."""
    stdin = b"feature done\n" + b"".join(commands) + b"get-mark :1\ndone\n"
    return git(folder, "fast-import", "--quiet", *options, stdin=stdin).decode().strip()
