"""What the loopback Hub answers about a repository's files: listing, reading, uploading,
committing, deleting for good."""

from __future__ import annotations

import base64
import fnmatch
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from starlette.responses import FileResponse, JSONResponse, Response

from .hub_access import page, reading, seeing, writing
from .hub_git import File
from .hub_repository import LARGE, Change, Large, Repository, timestamp
from .hub_xet import xet_token
from .server import Refused, Request, replace_file

LARGE_SIZE = 10 << 20
"""Files from this size on go by LFS or Xet, whatever their name."""


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
def list_tree(
    hub: Any, request: Request, repository: Repository, revision: str, path: str = ""
) -> Response:
    """The files and folders of a folder, or with `recursive` everything below it."""
    files = repository.tree(repository.revision(revision, request.stale))
    inside = f"{path.strip('/')}/" if path.strip("/") else ""
    below = [file for name, file in files.items() if name.startswith(inside)]
    if not below and inside:
        raise Refused(
            404, f"{path} does not exist on {revision}", {"X-Error-Code": "EntryNotFound"}
        )
    depth = inside.count("/")
    deep = request.query.get("recursive", "").lower() in ("true", "1")
    parents = {parent.as_posix() for file in below for parent in Path(file.path).parents}
    folders = [
        name
        for name in sorted(parents)
        if name.startswith(inside) and name != "." and (deep or name.count("/") == depth)
    ]
    shown = [file for file in below if deep or file.path.count("/") == depth]
    return page(
        hub, request, [*map(folder, folders), *[described(repository, file) for file in shown]]
    )


@seeing
def paths_info(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """Of these paths the ones that are there."""
    files = repository.tree(repository.revision(revision, request.stale))
    form = "json" not in request.headers.get("content-type", "")
    asked = (urllib.parse.parse_qs(request.body.decode()) if form else request.json).get(
        "paths", []
    )
    rows = []
    for path in [asked] if isinstance(asked, str) else asked:
        if path in files:
            rows.append(described(repository, files[path]))
        elif any(name.startswith(path.rstrip("/") + "/") for name in files):
            rows.append(folder(path))
    return JSONResponse(rows)


@reading
def resolve(
    hub: Any, request: Request, repository: Repository, revision: str, path: str
) -> Response:
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
        raise Refused(
            404, "This file was deleted for good", headers | {"X-Error-Code": "EntryNotFound"}
        )
    headers |= {
        "ETag": f'"{file.sha256}"',
        "X-Linked-ETag": f'"{file.sha256}"',
        "X-Linked-Size": str(file.size),
    }
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
def read_token(
    hub: Any, request: Request, repository: Repository, revision: str = "main"
) -> Response:
    """A token to read from the content store."""
    hub.may_read(request, repository)
    return xet_token(hub, f"read:{repository.kind}:{repository.id}")


@writing
def write_token(
    hub: Any, request: Request, repository: Repository, revision: str = "main"
) -> Response:
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
        rows.append(
            {
                "path": asked["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }
        )
    return JSONResponse({"files": rows})


@writing
def lfs_batch(hub: Any, request: Request, repository: Repository) -> Response:
    """Where to send the large files that the repository does not have; a client that speaks Xet is
    asked to."""
    base = f"{hub.url}/lfs/{repository.kind}/{repository.id}"
    rows = []
    for asked in request.json["objects"]:
        href = f"{base}/{asked['oid']}"
        actions = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify"}}
        there = repository.large(asked["oid"])
        rows.append(
            {"oid": asked["oid"], "size": asked["size"], **({} if there else {"actions": actions})}
        )
    return JSONResponse(
        {
            "transfer": "xet" if "xet" in request.json.get("transfers", ()) else "basic",
            "objects": rows,
        }
    )


def lfs_put(hub: Any, request: Request, kind: str, owner: str, name: str, sha256: str) -> Response:
    """A large file's content; the address is enough, as with the service's signed ones."""
    if hub.content.put_plain(request.body) != sha256:
        raise Refused(400, "The content has another SHA-256")
    hub.repository(f"{owner}/{name}", kind).upload(Large(sha256, len(request.body)))
    return JSONResponse({})


def lfs_verify(
    hub: Any, request: Request, kind: str, owner: str, name: str, sha256: str
) -> Response:
    """Nothing, if the content has come."""
    if not (hub.content.plain / sha256).exists():
        raise Refused(404, "The content has not come")
    return JSONResponse({})


@writing
def commit(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """One commit; everything that it names must have been sent before."""
    if request.query.get("create_pr"):
        raise Refused(501, "This Hub has no pull requests")
    oid = repository.commit(
        revision, change_of(request.json_lines), hub.user_of(request), hub.clock()
    )
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
            "fileOid": large.sha256,
            "oid": large.sha256,
            "filename": large.filename,
            "size": large.size,
            "pushedAt": timestamp(large.time),
            "ref": large.ref or None,
            "xetHash": large.xet or None,
        }
        for large in repository.all_large()
    ]
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
