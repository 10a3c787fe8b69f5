"""What the loopback Hub answers about one repository: its history, its files, uploads, commits."""

from __future__ import annotations

import base64
import fnmatch
import functools
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from starlette.responses import FileResponse, JSONResponse, Response

from .hub_git import File
from .hub_repository import LARGE, Change, Large, Repository, timestamp
from .hub_xet import xet_token
from .server import Refused, Request, replace_file

LARGE_SIZE = 10 << 20
"""Files from this size on go by LFS or Xet, whatever their name."""
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


def seeing(handler: Callable[..., Response]) -> Callable[..., Response]:
    """The handler gets the repository that the address names, if the user may see it."""

    @functools.wraps(handler)
    def wrapped(hub: Any, request: Request, owner: str, name: str, kind: str = "models", **rest: str) -> Response:
        repository = hub.repository(f"{owner}/{name}", KINDS.get(kind, kind))
        hub.may_see(request, repository.id, repository.settings()["private"])
        return handler(hub, request, repository, **rest)

    return wrapped


def reading(handler: Callable[..., Response]) -> Callable[..., Response]:
    """Likewise, if the user may read the files as well."""

    def wrapped(hub: Any, request: Request, repository: Repository, **rest: str) -> Response:
        hub.may_read(request, repository)
        return handler(hub, request, repository, **rest)

    return seeing(wrapped)


def writing(handler: Callable[..., Response]) -> Callable[..., Response]:
    """Likewise, if the user may write there."""

    def wrapped(hub: Any, request: Request, repository: Repository, **rest: str) -> Response:
        hub.may_write(request, repository.id)
        return handler(hub, request, repository, **rest)

    return seeing(wrapped)


def page(hub: Any, request: Request, rows: Sequence[Any]) -> Response:
    """One page of a list, and where the next one is."""
    start = int(request.query.get("cursor", 0))
    end = start + min(int(request.query.get("limit", hub.page)), hub.page)
    query = urllib.parse.urlencode({**request.query, "cursor": end})
    link = {"Link": f'<{hub.url}{request.path}?{query}>; rel="next"'} if end < len(rows) else {}
    return JSONResponse(list(rows[start:end]), headers=link)


# The repository and its history.


@seeing
def repository_info(hub: Any, request: Request, repository: Repository, revision: str = "main") -> Response:
    """The repository at a revision, with the names of its files; with `blobs` also their sizes."""
    commit = repository.revision(revision, request.stale)
    settings, newest = repository.settings(), repository.log(commit, "-1")[0]
    files = repository.tree(commit).values()
    blobs = "blobs" in request.query
    return JSONResponse(
        {
            "_id": repository.id, "id": repository.id, "modelId": repository.id, "author": repository.owner, "sha": commit,
            "lastModified": timestamp(newest.time), "createdAt": timestamp(settings["created"]), "private": settings["private"],
            "gated": settings["gated"] or False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "usedStorage": hub.stored_bytes(repository.id, repository.kind),
            "siblings": [sibling(file) if blobs else {"rfilename": file.path} for file in files],
        }
    )  # fmt: skip


def sibling(file: File) -> dict[str, Any]:
    """A file in a repository's description."""
    large = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}} if file.sha256 else {}
    return {"rfilename": file.path, "size": file.size, "blobId": file.oid, **large}


@reading
def auth_check(hub: Any, request: Request, repository: Repository) -> Response:
    """Nothing, for whoever may read the files."""
    return JSONResponse({})


@writing
def change_settings(hub: Any, request: Request, repository: Repository) -> Response:
    """Change who may see and read the repository."""
    asked = request.json
    private = asked.get("private", asked.get("visibility", "private" if repository.settings()["private"] else "") == "private")
    repository.change(private=private, gated=asked.get("gated", repository.settings()["gated"]) or "")
    return JSONResponse(asked)


@seeing
def list_refs(hub: Any, request: Request, repository: Repository) -> Response:
    """Branches and tags."""
    refs = repository.refs(request.stale)

    def under(prefix: str) -> list[dict[str, str]]:
        names = [name for name in refs if name.startswith(prefix)]
        return [{"name": name.removeprefix(prefix), "ref": name, "targetCommit": refs[name]} for name in names]

    return JSONResponse({"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": [], "pullRequests": []})


@seeing
def list_commits(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """The history of a revision, newest first."""
    commits = repository.log(repository.revision(revision, request.stale))
    rows = [
        {"id": c.id, "title": c.title, "message": c.message, "date": timestamp(c.time), "authors": [{"user": c.author}]}
        for c in commits
    ]
    return page(hub, request, rows)


@writing
def create_branch(hub: Any, request: Request, repository: Repository, branch: str) -> Response:
    """A new branch, at a revision or at the head of `main`."""
    repository.point(f"refs/heads/{branch}", repository.revision(request.json.get("startingPoint") or "main"))
    return JSONResponse({})


@writing
def delete_branch(hub: Any, request: Request, repository: Repository, branch: str) -> Response:
    """Forget a branch."""
    if branch == "main":
        raise Refused(400, "Cannot delete the default branch")
    repository.unpoint(f"refs/heads/{branch}")
    return JSONResponse({})


@writing
def create_tag(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """A new tag at a revision."""
    asked = request.json
    repository.point(f"refs/tags/{asked['tag']}", repository.revision(revision), asked.get("message") or "")
    return JSONResponse({})


@writing
def delete_tag(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """Forget a tag."""
    repository.unpoint(f"refs/tags/{revision}")
    return JSONResponse({})


@writing
def super_squash(hub: Any, request: Request, repository: Repository, branch: str) -> Response:
    """One commit instead of a branch's history; it takes no parent, so it happens whatever was committed meanwhile."""
    repository.squash(branch, request.json.get("message") or f"Super-squash branch '{branch}'", hub.clock())
    return JSONResponse({})


# Files.


def described(repository: Repository, file: File) -> dict[str, Any]:
    """A file as the tree shows it."""
    row: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
    if file.sha256:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
        large = repository.large(file.sha256)
        row |= {"xetHash": large.xet} if large and large.xet else {}
    return row


def folder(path: str) -> dict[str, Any]:
    """A folder as the tree shows it."""
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}


@seeing
def list_tree(hub: Any, request: Request, repository: Repository, revision: str, path: str = "") -> Response:
    """The files and folders of a folder, or with `recursive` everything below it."""
    files = repository.tree(repository.revision(revision, request.stale))
    inside = f"{path.strip('/')}/" if path.strip("/") else ""
    below = [file for name, file in files.items() if name.startswith(inside)]
    if not below and inside:
        raise Refused(404, f"{path} does not exist on {revision}", {"X-Error-Code": "EntryNotFound"})
    depth = inside.count("/")
    deep = request.query.get("recursive", "").lower() in ("true", "1")
    parents = {parent.as_posix() for file in below for parent in Path(file.path).parents}
    folders = [name for name in sorted(parents) if name.startswith(inside) and name != "." and (deep or name.count("/") == depth)]
    shown = [file for file in below if deep or file.path.count("/") == depth]
    return page(hub, request, [*map(folder, folders), *[described(repository, file) for file in shown]])


@seeing
def paths_info(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """Of these paths the ones that are there."""
    files = repository.tree(repository.revision(revision, request.stale))
    form = "json" not in request.headers.get("content-type", "")
    asked = (urllib.parse.parse_qs(request.body.decode()) if form else request.json).get("paths", [])
    rows = []
    for path in [asked] if isinstance(asked, str) else asked:
        if path in files:
            rows.append(described(repository, files[path]))
        elif any(name.startswith(path.rstrip("/") + "/") for name in files):
            rows.append(folder(path))
    return JSONResponse(rows)


@reading
def resolve(hub: Any, request: Request, repository: Repository, revision: str, path: str) -> Response:
    """A file's content, whole or a range."""
    commit = repository.revision(revision, request.stale)
    headers = {"X-Repo-Commit": commit}
    file = repository.tree(commit).get(path)
    if file is None:
        raise Refused(404, "Entry not found", headers | {"X-Error-Code": "EntryNotFound"})
    if not file.sha256:
        return served(regular_content(hub, repository, file), headers | {"ETag": f'"{file.oid}"'})
    large = repository.large(file.sha256)
    if large is None:
        raise Refused(404, "This file was deleted for good", headers | {"X-Error-Code": "EntryNotFound"})
    headers |= {"ETag": f'"{file.sha256}"', "X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if large.xet:
        token = f"{hub.url}/api/{repository.kind}s/{repository.id}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": large.xet, "Link": f'<{token}>; rel="xet-auth"'}
    return served(hub.content.content(large.xet, large.sha256), headers)


def regular_content(hub: Any, repository: Repository, file: File) -> Path:
    """A regular file's bytes, as a file that can be served by ranges."""
    path: Path = hub.blobs / file.oid
    if not path.exists():
        replace_file(path, repository.blob(file.oid))
    return path


def served(path: Path, headers: dict[str, str]) -> Response:
    """A file, with ranges."""
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


# Uploads and commits.


@seeing
def read_token(hub: Any, request: Request, repository: Repository, revision: str = "main") -> Response:
    """A token to read from the content store."""
    hub.may_read(request, repository)
    return xet_token(hub, f"read:{repository.kind}:{repository.id}")


@writing
def write_token(hub: Any, request: Request, repository: Repository, revision: str = "main") -> Response:
    """A token to write to the content store."""
    return xet_token(hub, f"write:{repository.kind}:{repository.id}")


def is_large(path: str, size: int, sample: bytes) -> bool:
    """True for what goes by LFS or Xet: by name, size, or because it is no text."""
    named = any(fnmatch.fnmatch(Path(path).name, pattern) for pattern in LARGE)
    return size > 0 and (named or size >= LARGE_SIZE or b"\0" in sample)


@writing
def preupload(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """How each file has to be sent, and what is there now under its name."""
    files = repository.tree(repository.revision(revision, request.stale))
    rows = []
    for asked in request.json["files"]:
        there = files.get(asked["path"])
        large = is_large(asked["path"], asked["size"], base64.b64decode(asked.get("sample", "")))
        oid = (there.sha256 or there.oid) if there else None
        rows.append({"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return JSONResponse({"files": rows})


@writing
def lfs_batch(hub: Any, request: Request, repository: Repository) -> Response:
    """Where to send the large files that the repository does not have; a client that speaks Xet is asked to."""
    base = f"{hub.url}/lfs/{repository.kind}/{repository.id}"
    rows = []
    for asked in request.json["objects"]:
        href = f"{base}/{asked['oid']}"
        actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify"}}
        there = repository.large(asked["oid"])
        rows.append({"oid": asked["oid"], "size": asked["size"], **({} if there else {"actions": actions})})
    return JSONResponse({"transfer": "xet" if "xet" in request.json.get("transfers", ()) else "basic", "objects": rows})


def lfs_put(hub: Any, request: Request, kind: str, owner: str, name: str, sha256: str) -> Response:
    """A large file's content; the address is enough, as with the service's signed ones."""
    if hub.content.put_plain(request.body) != sha256:
        raise Refused(400, "The content has another SHA-256")
    hub.repository(f"{owner}/{name}", kind).upload(Large(sha256, len(request.body)))
    return JSONResponse({})


def lfs_verify(hub: Any, request: Request, kind: str, owner: str, name: str, sha256: str) -> Response:
    """Nothing, if the content has come."""
    if not (hub.content.plain / sha256).exists():
        raise Refused(404, "The content has not come")
    return JSONResponse({})


@writing
def commit(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """One commit; everything that it names must have been sent before."""
    if request.query.get("create_pr"):
        raise Refused(501, "This Hub has no pull requests")
    oid = repository.commit(revision, change_of(request.json_lines), hub.user(request), hub.clock())
    url = f"{hub.url}/{repository.id}/commit/{oid}"
    return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def change_of(lines: Sequence[dict[str, Any]]) -> Change:
    """What a commit's lines ask for."""

    def values(key: str) -> list[dict[str, Any]]:
        return [line["value"] for line in lines if line["key"] == key]

    header = values("header")[0]
    return Change(
        title=header["summary"],
        message=header.get("description") or "",
        parent=header.get("parentCommit") or "",
        files={value["path"]: base64.b64decode(value["content"]) for value in values("file")},
        large={value["path"]: value["oid"] for value in values("lfsFile")},
        deleted=[value["path"] for value in values("deletedFile")],
        deleted_folders=[value["path"] for value in values("deletedFolder")],
    )


@seeing
def list_large(hub: Any, request: Request, repository: Repository) -> Response:
    """The large files that the repository keeps, whether or not a commit still names them."""
    rows = [
        {
            "fileOid": large.sha256, "oid": large.sha256, "filename": large.filename, "size": large.size,
            "pushedAt": timestamp(large.time), "ref": large.ref or None, "xetHash": large.xet or None,
        }
        for large in repository.all_large()
    ]  # fmt: skip
    return page(hub, request, rows)


@writing
def delete_large(hub: Any, request: Request, repository: Repository) -> Response:
    """Delete large files of this repository for good."""
    asked = request.json["deletions"]
    repository.forget(asked["sha"], asked.get("rewriteHistory", True))
    return JSONResponse({})


@reading
def duplicate_large(hub: Any, request: Request, repository: Repository) -> Response:
    """Let another repository name this one's large files in a commit."""
    target = request.json["target"]
    hub.may_write(request, target["name"])
    to, failed = hub.repository(target["name"], target["type"]), []
    for asked in request.json["files"]:
        if large := repository.large(asked["sha256"]):
            to.upload(large)
        else:
            failed.append({"sha256": asked["sha256"], "error": "not found"})
    return JSONResponse({"failed": failed})


def validate_yaml(hub: Any, request: Request) -> Response:
    """What is wrong with a model card's metadata."""
    text = request.json["content"]
    try:
        yaml.safe_load(text.split("---\n")[1] if text.startswith("---\n") else "")
    except yaml.YAMLError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})
