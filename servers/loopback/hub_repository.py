"""A repository of the loopback Hub: a real bare git repository, and the large files that its
pointers stand for.

What git does not know lies beside it: `hub.json` (visibility), `uploaded/SHA256` (large files that
were sent and that no commit has named yet) and `large/SHA256` (those that the repository keeps).
Both say where the content lies and belong to this repository alone, so an object that is deleted
here is still there in other repositories.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .hub_git import POINTER, Commit, File, data_of, entry, git, imported, quoted, tree
from .server import Refused, replace_file

LARGE = (
    "*.lfs.* *.safetensors *.bin *.pt *.pth *.ckpt *.npz *.npy *.h5 *.onnx *.parquet *.arrow *.zip"
    " *.gz *.tar *.pkl *.model".split()
)
"""What a new repository's .gitattributes says goes by LFS, whatever its size."""
BY_LFS = "filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Large:
    """A large file's content: a file of the content store (`xet`: its Xet hash) or of the LFS
    folder (`xet` is "")."""

    sha256: str
    size: int
    xet: str = ""
    filename: str = ""
    ref: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class Change:
    """What one commit does: files written (a large one as its SHA-256), deleted files, deleted
    folders."""

    title: str
    message: str = ""
    parent: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    large: Mapping[str, str] = field(default_factory=dict)
    deleted: Sequence[str] = ()
    deleted_folders: Sequence[str] = ()


def timestamp(seconds: float) -> str:
    """A date as the clients read it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Repository:
    """One repository; several threads may use it at once."""

    def __init__(self, folder: Path, kind: str, repo_id: str) -> None:
        self.folder, self.kind, self.id = folder, kind, repo_id
        self.lock = threading.RLock()

    # Its settings.

    @classmethod
    def create(
        cls, folder: Path, kind: str, repo_id: str, private: bool, gated: str, time: float
    ) -> Repository:
        """Make a repository whose branch `main` has one commit, with a .gitattributes; it appears
        when it is complete."""
        made = cls(folder.with_suffix(".new"), kind, repo_id)
        shutil.rmtree(made.folder, ignore_errors=True)
        for part in ("uploaded", "large"):
            (made.folder / part).mkdir(parents=True)
        git(made.folder, "init", "--quiet", "--bare", "--initial-branch=main", "--template=")
        git(
            made.folder, "config", "core.logAllRefUpdates", "always"
        )  # where a branch was before, for stale reads
        made.change(private=private, gated=gated, created=time)
        attributes = "".join(f"{pattern} {BY_LFS}" for pattern in LARGE)
        made.commit(
            "main",
            Change("initial commit", files={".gitattributes": attributes.encode()}),
            kind,
            time,
        )
        made.folder.rename(folder)
        return cls(folder, kind, repo_id)

    def settings(self) -> dict[str, Any]:
        """`private`, `gated` ("" or "auto" or "manual"), `created`."""
        path = self.folder / "hub.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def change(self, **settings: Any) -> None:
        """Change settings."""
        write(self.folder / "hub.json", self.settings() | settings)

    @property
    def owner(self) -> str:
        """The namespace: a user or an organisation."""
        return self.id.partition("/")[0]

    # Reading.

    def revision(self, name: str, stale: bool = False) -> str:
        """The commit of a branch, a tag or (the start of) a commit's id; `stale` takes where a
        branch was before."""
        if stale and self.head(name):
            found = [self.before(f"refs/heads/{name}")]
        else:
            names = [f"refs/heads/{name}", f"refs/tags/{name}"]
            names += [name] if re.fullmatch(r"[0-9a-f]{4,40}|refs/.*", name) else []
            stdin = "".join(f"{one}^{{commit}}\n" for one in names).encode()
            rows = [
                row.split()
                for row in git(self.folder, "cat-file", "--batch-check", stdin=stdin).splitlines()
            ]
            found = [row[0].decode() for row in rows if row[1:2] == [b"commit"]]
        if not any(found):
            raise Refused(404, f"Invalid rev id: {name}", {"X-Error-Code": "RevisionNotFound"})
        return found[0]

    def head(self, branch: str) -> str:
        """The commit of a branch, "" if there is no such branch."""
        return (
            git(self.folder, "rev-parse", "--quiet", "--verify", f"refs/heads/{branch}", fails=True)
            .decode()
            .strip()
        )

    def refs(self, stale: bool = False) -> dict[str, str]:
        """Every branch and tag by its full name -> commit."""
        fields = "%(refname)%00%(objectname)%00%(*objectname)"
        rows = [
            row.split("\0")
            for row in git(self.folder, "for-each-ref", f"--format={fields}").decode().splitlines()
        ]
        refs = {name: peeled or commit for name, commit, peeled in rows}
        branches = [name for name in refs if stale and name.startswith("refs/heads/")]
        refs |= {name: self.before(name) for name in branches}
        return {name: commit for name, commit in refs.items() if commit}

    def before(self, ref: str) -> str:
        """Where a branch was before its last change; "" if that was its beginning."""
        return (
            git(self.folder, "rev-parse", "--quiet", "--verify", f"{ref}@{{1}}", fails=True)
            .decode()
            .strip()
        )

    def tree(self, commit: str) -> dict[str, File]:
        """Every file of a commit by its path."""
        return tree(self.folder, commit)

    def blob(self, oid: str) -> bytes:
        """A blob's bytes."""
        return git(self.folder, "cat-file", "blob", oid)

    def log(self, commit: str, *options: str) -> list[Commit]:
        """A commit and those before it, newest first."""
        out = git(
            self.folder, "log", *options, "--format=%H%x00%T%x00%ct%x00%an%x00%s%x00%b%x01", commit
        ).decode()
        rows = [row.lstrip("\n").split("\0") for row in out.split("\x01") if row.strip()]
        return [Commit(row[0], row[1], int(row[2]), row[3], row[4], row[5].strip()) for row in rows]

    # Writing.

    def commit(self, branch: str, change: Change, author: str, time: float) -> str:
        """Commit on top of a branch and return the commit; 412 if `change.parent` is no longer its
        head."""
        with self.lock:
            head = self.head(branch)
            if not head and self.refs():
                raise Refused(
                    404, f"Invalid rev id: {branch}", {"X-Error-Code": "RevisionNotFound"}
                )
            if not head.startswith(change.parent):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            kept = {
                sha256: self.accept(sha256, path, head, time)
                for path, sha256 in change.large.items()
            }
            pointers = {
                path: POINTER.format(sha256=sha256, size=kept[sha256].size).encode()
                for path, sha256 in change.large.items()
            }
            attributes = self.attributes(head, change.large) if change.large else {}
            gone = (
                self.gone(change, self.tree(head))
                if change.deleted or change.deleted_folders
                else []
            )
            message = change.title + (f"\n\n{change.message}" if change.message else "")
            command = [
                *entry(branch, message, author, int(time), head),
                *[f"D {quoted(path)}\n".encode() for path in gone],
            ]
            for path, data in {**change.files, **pointers, **attributes}.items():
                command += [f"M 100644 inline {quoted(path)}\n".encode(), *data_of(data)]
            return imported(self.folder, command)

    def attributes(self, head: str, large: Iterable[str]) -> dict[str, bytes]:
        """A commit's .gitattributes with a line for each large file that no pattern of it names;
        none where that is not needed."""
        there = self.tree(head).get(".gitattributes")
        told = self.blob(there.oid).decode() if there else ""
        patterns = [line.split()[0] for line in told.splitlines() if line.strip()]
        missing = [path for path in large if not _named(path, patterns)]
        lines = "".join(f"{path} {BY_LFS}" for path in missing)
        return {".gitattributes": (told + lines).encode()} if missing else {}

    def gone(self, change: Change, files: Mapping[str, File]) -> list[str]:
        """The paths that a change deletes; 404 for one that is not there."""
        for path in change.deleted:
            if path not in files:
                raise Refused(
                    404,
                    f'A file with the name "{path}" does not exist',
                    {"X-Error-Code": "EntryNotFound"},
                )
        folders = tuple(folder.rstrip("/") + "/" for folder in change.deleted_folders)
        return [path for path in files if path in change.deleted or path.startswith(folders)]

    def point(self, ref: str, commit: str, message: str = "") -> None:
        """Make a branch or a tag (an annotated one with a message); 409 if it exists."""
        with self.lock:
            if ref in self.refs():
                raise Refused(409, f"Reference already exists: {ref}")
            if message:
                git(self.folder, "tag", "-m", message, ref.removeprefix("refs/tags/"), commit)
            else:
                git(self.folder, "update-ref", ref, commit, "0" * 40)

    def unpoint(self, ref: str) -> None:
        """Delete a branch or a tag; 404 if there is none."""
        with self.lock:
            if ref not in self.refs():
                raise Refused(
                    404, f"Reference does not exist: {ref}", {"X-Error-Code": "RevisionNotFound"}
                )
            git(self.folder, "update-ref", "-d", ref)

    def squash(self, branch: str, message: str, time: float) -> None:
        """Replace a branch's history by one commit of the same tree."""
        with self.lock:
            old = self.revision(branch)
            dated = {
                "GIT_AUTHOR_DATE": f"{int(time)} +0000",
                "GIT_COMMITTER_DATE": f"{int(time)} +0000",
            }
            new = (
                git(self.folder, "commit-tree", f"{old}^{{tree}}", "-m", message, environment=dated)
                .decode()
                .strip()
            )
            git(self.folder, "update-ref", f"refs/heads/{branch}", new, old)

    # Large files.

    def upload(self, large: Large) -> None:
        """A large file was sent; it is kept once a commit names it."""
        write(self.folder / "uploaded" / large.sha256, asdict(large))

    def accept(self, sha256: str, path: str, ref: str, time: float) -> Large:
        """A commit names a large file: keep it. 400 if it was not sent, or deleted for good."""
        uploaded = self.folder / "uploaded" / sha256
        found = self.large(sha256)
        if found is None:
            if not uploaded.exists():
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
            found = Large(
                **{**json.loads(uploaded.read_text()), "filename": path, "ref": ref, "time": time}
            )
            write(self.folder / "large" / sha256, asdict(found))
        uploaded.unlink(missing_ok=True)
        return found

    def large(self, sha256: str) -> Large | None:
        """A large file that the repository keeps."""
        try:
            return Large(**json.loads((self.folder / "large" / sha256).read_text()))
        except FileNotFoundError:
            return None

    def all_large(self) -> list[Large]:
        """All of them, in the order of their SHA-256."""
        names = sorted(
            path.name for path in (self.folder / "large").iterdir() if len(path.name) == 64
        )
        return [large for name in names if (large := self.large(name))]

    def forget(self, names: Iterable[str], rewrite: bool) -> None:
        """Delete large files for good; `rewrite` also takes their pointers out of every commit of
        every branch."""
        with self.lock:
            for name in names:
                (self.folder / "large" / name).unlink(missing_ok=True)
                (self.folder / "uploaded" / name).unlink(missing_ok=True)
            for ref in self.refs() if rewrite else ():
                if ref.startswith("refs/heads/"):
                    self.rewritten(ref.removeprefix("refs/heads/"), set(names))

    def rewritten(self, branch: str, lost: set[str]) -> None:
        """The same history of a branch without the pointers of these files; commits before the
        first of them stay as they are."""
        commands: list[bytes] = []
        parent = ""
        for commit in self.log(f"refs/heads/{branch}", "--reverse"):
            gone = [path for path, file in self.tree(commit.id).items() if file.sha256 in lost]
            if not commands and not gone:
                parent = commit.id
                continue
            message = commit.title + (f"\n\n{commit.message}" if commit.message else "")
            commands += entry(branch, message, commit.author, commit.time, parent)
            commands += [
                f'M 040000 {commit.tree} ""\n'.encode(),
                *[f"D {quoted(path)}\n".encode() for path in gone],
            ]
            parent = ":1"
        if commands:
            imported(self.folder, commands, "--force")


def write(path: Path, value: Any) -> None:
    """Replace a file by a JSON value."""
    replace_file(path, json.dumps(value).encode())


def _named(path: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern of .gitattributes, of a name or a whole path, is of this one."""
    names = path, Path(path).name
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in names)
