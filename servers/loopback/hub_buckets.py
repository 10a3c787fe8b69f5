"""The loopback Hub's buckets: files by Xet hash, the last writer wins, no history."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from .hub_access import page
from .hub_files import served
from .hub_repository import timestamp, write
from .hub_xet import xet_token
from .server import Refused, Request

Bucket = dict[str, Any]
"""`id`, `private`, `created`, and `files`: path -> its row."""


def path_of(hub: Any, bucket_id: str) -> Path:
    """Where a bucket lies."""
    owner, name = bucket_id.split("/")
    return Path(hub.root) / "buckets" / f"{owner}--{name}.json"


def load(hub: Any, bucket_id: str) -> Bucket:
    """A bucket; 404 if there is none."""
    try:
        return json.loads(path_of(hub, bucket_id).read_bytes())
    except FileNotFoundError:
        raise Refused(404, "Bucket not found", {"X-Error-Code": "RepoNotFound"}) from None


def seeing(handler: Callable[..., Response]) -> Callable[..., Response]:
    """The handler gets the bucket that the address names, if the user may see it."""

    @functools.wraps(handler)
    def wrapped(hub: Any, request: Request, owner: str, name: str, **rest: str) -> Response:
        bucket = load(hub, f"{hub.user_of(request) if owner == 'me' else owner}/{name}")
        hub.may_see(request, bucket["id"], bucket["private"])
        return handler(hub, request, bucket, **rest)

    return wrapped


def writing(handler: Callable[..., Response]) -> Callable[..., Response]:
    """Likewise, if the user may write there."""

    def wrapped(hub: Any, request: Request, bucket: Bucket, **rest: str) -> Response:
        hub.may_write(request, bucket["id"])
        return handler(hub, request, bucket, **rest)

    return seeing(wrapped)


def create(hub: Any, request: Request, owner: str, name: str) -> Response:
    """A new bucket; 409 if it exists."""
    bucket_id = f"{hub.signed_in(request) if owner == 'me' else owner}/{name}"
    hub.may_write(request, bucket_id)
    asked, path = request.json, path_of(hub, bucket_id)
    url = f"{hub.url}/buckets/{bucket_id}"
    with hub.lock:
        if path.exists():
            return JSONResponse({"error": "You already created this bucket", "url": url}, 409)
        private = bool(asked.get("private", asked.get("visibility") == "private"))
        write(path, {"id": bucket_id, "private": private, "created": hub.clock(), "files": {}})
    return JSONResponse({"url": url, "id": bucket_id, "name": bucket_id})


@seeing
def info(hub: Any, request: Request, bucket: Bucket) -> Response:
    """The bucket's size."""
    size = sum(row["size"] for row in bucket["files"].values())
    shown = {
        "id": bucket["id"],
        "private": bucket["private"],
        "createdAt": timestamp(bucket["created"]),
    }
    return JSONResponse({**shown, "size": size, "totalFiles": len(bucket["files"])})


@writing
def delete(hub: Any, request: Request, bucket: Bucket) -> Response:
    """Forget the bucket."""
    path_of(hub, bucket["id"]).unlink()
    return JSONResponse({})


@seeing
def list_tree(hub: Any, request: Request, bucket: Bucket, path: str = "") -> Response:
    """The files below a prefix; without `recursive` those of one folder, and its folders."""
    inside = f"{path.strip('/')}/" if path.strip("/") else ""
    deep = request.query.get("recursive", "").lower() in ("true", "1")
    below = {
        name: row
        for name, row in bucket["files"].items()
        if name.startswith(inside) or name == path
    }
    folders = {
        name[: name.index("/", len(inside))]
        for name in below
        if not deep and "/" in name[len(inside) :]
    }
    rows = [
        {"type": "file", "path": name, **row}
        for name, row in below.items()
        if deep or "/" not in name[len(inside) :]
    ]
    return page(
        hub, request, [*rows, *[{"type": "directory", "path": name} for name in sorted(folders)]]
    )


@seeing
def paths_info(hub: Any, request: Request, bucket: Bucket) -> Response:
    """Of these paths the ones that are there."""
    files = bucket["files"]
    return JSONResponse(
        [
            {"type": "file", "path": path, **files[path]}
            for path in request.json["paths"]
            if path in files
        ]
    )


@writing
def batch(hub: Any, request: Request, bucket: Bucket) -> Response:
    """Add, copy and delete files, in this order of lines; what fails is named and the rest
    happens."""
    failed, lines = [], request.json_lines
    with hub.lock:
        bucket = load(hub, bucket["id"])
        for line in lines:
            size = hub.content.size(line["xetHash"]) if line["type"] != "deleteFile" else 0
            if line["type"] == "deleteFile":
                bucket["files"].pop(line["path"], None)
            elif size is None:
                failed.append({"path": line["path"], "error": "unknown Xet hash"})
            else:
                bucket["files"][line["path"]] = row_of(hub, line, size)
        write(path_of(hub, bucket["id"]), bucket)
    return JSONResponse(
        {"success": not failed, "failed": failed},
        422 if failed and len(failed) == len(lines) else 200,
    )


def row_of(hub: Any, line: dict[str, Any], size: int) -> dict[str, Any]:
    """What a bucket says of a file; `mtime` came in milliseconds."""
    mtime = timestamp(line["mtime"] / 1000) if line.get("mtime") else timestamp(hub.clock())
    return {
        "size": size,
        "xetHash": line["xetHash"],
        "mtime": mtime,
        "uploadedAt": timestamp(hub.clock()),
    }


@seeing
def read_token(hub: Any, request: Request, bucket: Bucket) -> Response:
    """A token to read from the content store."""
    return xet_token(hub, f"read:bucket:{bucket['id']}")


@writing
def write_token(hub: Any, request: Request, bucket: Bucket) -> Response:
    """A token to write to the content store."""
    return xet_token(hub, f"write:bucket:{bucket['id']}")


@seeing
def resolve(hub: Any, request: Request, bucket: Bucket, path: str) -> Response:
    """A file's content, whole or a range."""
    row = bucket["files"].get(path)
    if row is None:
        raise Refused(404, "Entry not found", {"X-Error-Code": "EntryNotFound"})
    token = f"{hub.url}/api/buckets/{bucket['id']}/xet-read-token"
    headers = {
        "ETag": f'"{row["xetHash"]}"',
        "X-Linked-Size": str(row["size"]),
        "X-Xet-Hash": row["xetHash"],
    }
    return served(
        hub.content.content(row["xetHash"]), headers | {"Link": f'<{token}>; rel="xet-auth"'}
    )
