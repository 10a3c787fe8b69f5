"""What the loopback Hub answers about one repository as a whole: its description, branches, tags,
history."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from .hub_access import page, reading, seeing, writing
from .hub_git import File
from .hub_repository import Repository, timestamp
from .server import Refused, Request


@seeing
def repository_info(
    hub: Any, request: Request, repository: Repository, revision: str = "main"
) -> Response:
    """The repository at a revision, with the names of its files; with `blobs` also their sizes,
    with `expand` what it stores."""
    commit = repository.revision(revision, request.stale)
    settings, newest = repository.settings(), repository.log(commit, "-1")[0]
    files = repository.tree(commit).values()
    blobs = "blobs" in request.query
    storage = "usedStorage" in request.query.getlist("expand")
    used = {"usedStorage": hub.stored_bytes(repository.id, repository.kind)} if storage else {}
    return JSONResponse(
        {
            "_id": repository.id,
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.owner,
            "sha": commit,
            "lastModified": timestamp(newest.time),
            "createdAt": timestamp(settings["created"]),
            "private": settings["private"],
            "gated": settings["gated"] or False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [sibling(file) if blobs else {"rfilename": file.path} for file in files],
            **used,
        }
    )


def sibling(file: File) -> dict[str, Any]:
    """A file in a repository's description."""
    large = (
        {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}}
        if file.sha256
        else {}
    )
    return {"rfilename": file.path, "size": file.size, "blobId": file.oid, **large}


@reading
def auth_check(hub: Any, request: Request, repository: Repository) -> Response:
    """Nothing, for whoever may read the files."""
    return JSONResponse({})


@writing
def write_check(hub: Any, request: Request, repository: Repository) -> Response:
    """Nothing, for whoever may write."""
    return JSONResponse({})


@writing
def change_settings(hub: Any, request: Request, repository: Repository) -> Response:
    """Change who may see and read the repository."""
    asked = request.json
    private = asked.get(
        "private",
        asked.get("visibility", "private" if repository.settings()["private"] else "") == "private",
    )
    repository.change(
        private=private, gated=asked.get("gated", repository.settings()["gated"]) or ""
    )
    return JSONResponse(asked)


@seeing
def list_refs(hub: Any, request: Request, repository: Repository) -> Response:
    """Branches and tags."""
    refs = repository.refs(request.stale)

    def under(prefix: str) -> list[dict[str, str]]:
        names = [name for name in refs if name.startswith(prefix)]
        return [
            {"name": name.removeprefix(prefix), "ref": name, "targetCommit": refs[name]}
            for name in names
        ]

    return JSONResponse(
        {
            "branches": under("refs/heads/"),
            "tags": under("refs/tags/"),
            "converts": [],
            "pullRequests": [],
        }
    )


@seeing
def list_commits(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """The history of a revision, newest first."""
    commits = repository.log(repository.revision(revision, request.stale))
    rows = [
        {
            "id": c.id,
            "title": c.title,
            "message": c.message,
            "date": timestamp(c.time),
            "authors": [{"user": c.author}],
        }
        for c in commits
    ]
    return page(hub, request, rows)


@writing
def create_branch(hub: Any, request: Request, repository: Repository, branch: str) -> Response:
    """A new branch, at a revision or at the head of `main`."""
    repository.point(
        f"refs/heads/{branch}", repository.revision(request.json.get("startingPoint") or "main")
    )
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
    repository.point(
        f"refs/tags/{asked['tag']}", repository.revision(revision), asked.get("message") or ""
    )
    return JSONResponse({})


@writing
def delete_tag(hub: Any, request: Request, repository: Repository, revision: str) -> Response:
    """Forget a tag."""
    repository.unpoint(f"refs/tags/{revision}")
    return JSONResponse({})


@writing
def super_squash(hub: Any, request: Request, repository: Repository, branch: str) -> Response:
    """One commit instead of a branch's history; it takes no parent, so it happens whatever was
    committed meanwhile."""
    repository.squash(
        branch, request.json.get("message") or f"Super-squash branch '{branch}'", hub.clock()
    )
    return JSONResponse({})
