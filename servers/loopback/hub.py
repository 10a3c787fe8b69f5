"""A loopback Hugging Face Hub: repositories as real git with LFS and Xet, buckets, permissions; the
real clients accept it.

    with Hub(tmp_path) as hub:
        environment = os.environ | hub.environ("alice")

The token `hf_alice` is alice's. Everything lies under `root`, so a second Hub there knows what the
first one was told.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from starlette.responses import JSONResponse, Response

from . import hub_buckets as buckets
from . import hub_files as files
from . import hub_history as history
from . import hub_xet as xet
from .hub_accounts import Accounts, whoami
from .hub_files import is_large
from .hub_git import Commit
from .hub_repository import Change, Large, Repository
from .server import Refused, Request, Routes


def create_repository(hub: Hub, request: Request) -> Response:
    """A new repository; 409 if it exists."""
    asked = request.json
    kind = asked.get("type") or "model"
    repo_id = f"{asked.get('organization') or hub.signed_in(request)}/{asked['name']}"
    hub.may_write(request, repo_id)
    private = bool(asked.get("private", asked.get("visibility") == "private"))
    answer = {
        "url": f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}",
        "name": repo_id,
        "id": repo_id,
    }
    if not hub.made(repo_id, kind, private, ""):
        return JSONResponse({"error": f"You already created this {kind} repo", **answer}, 409)
    return JSONResponse(answer)


def list_models(hub: Hub, request: Request) -> Response:
    """The repositories of models of an `author` that the user may see."""
    author = request.query.get("author", "")
    found = []
    for folder in sorted(hub.folder(f"{author}/x", "model").parent.glob("*.git")):
        repo_id = f"{author}/{folder.name.removesuffix('.git')}"
        with contextlib.suppress(Refused):
            private = hub.repository(repo_id).settings()["private"]
            hub.may_see(request, repo_id, private)
            found.append({"id": repo_id, "modelId": repo_id, "private": private, "tags": []})
    return JSONResponse(found)


def delete_repository(hub: Hub, request: Request) -> Response:
    """Forget a repository."""
    asked = request.json
    repo_id = f"{asked.get('organization') or hub.signed_in(request)}/{asked['name']}"
    repository = hub.repository(repo_id, asked.get("type") or "model")
    hub.may_see(request, repo_id, repository.settings()["private"])
    hub.may_write(request, repo_id)
    hub.forget(repository)
    return JSONResponse({})


def nothing(hub: Hub, request: Request, **_: str) -> Response:
    """An empty object: telemetry, and what the client asks about the program that it runs in."""
    return JSONResponse({})


ROUTES = Routes(
    [
        ("GET", "/api/whoami-v2", whoami),
        ("GET", "/api/agent-harnesses", nothing),
        ("HEAD GET POST", "/api/telemetry/{what*}", nothing),
        ("POST", "/v1/telemetry", nothing),
        ("POST", "/api/validate-yaml", files.validate_yaml),
        ("POST", "/api/repos/create", create_repository),
        ("DELETE", "/api/repos/delete", delete_repository),
        ("GET", "/api/models", list_models),
        # the content store
        ("POST", "/cas/v1/xorbs/default/{xorb}", xet.upload_xorb),
        ("POST", "/cas/v1/shards", xet.upload_shard),
        ("GET", "/cas/v1/reconstructions/{xet}", xet.reconstruct),
        ("GET", "/cas/xorb/{xorb}", xet.download_xorb),
        # buckets
        ("POST", "/api/buckets/{owner}/{name}", buckets.create),
        ("GET", "/api/buckets/{owner}/{name}", buckets.info),
        ("DELETE", "/api/buckets/{owner}/{name}", buckets.delete),
        ("GET", "/api/buckets/{owner}/{name}/tree", buckets.list_tree),
        ("GET", "/api/buckets/{owner}/{name}/tree/{path*}", buckets.list_tree),
        ("POST", "/api/buckets/{owner}/{name}/paths-info", buckets.paths_info),
        ("POST", "/api/buckets/{owner}/{name}/batch", buckets.batch),
        ("GET", "/api/buckets/{owner}/{name}/xet-read-token", buckets.read_token),
        ("GET", "/api/buckets/{owner}/{name}/xet-write-token", buckets.write_token),
        ("HEAD GET", "/buckets/{owner}/{name}/resolve/{path*}", buckets.resolve),
        # a repository and its history
        ("GET", "/api/{kind}/{owner}/{name}", history.repository_info),
        ("GET", "/api/{kind}/{owner}/{name}/revision/{revision}", history.repository_info),
        ("GET", "/api/{kind}/{owner}/{name}/auth-check", history.auth_check),
        ("GET", "/api/{kind}/{owner}/{name}/auth-check/write", history.write_check),
        ("PUT", "/api/{kind}/{owner}/{name}/settings", history.change_settings),
        ("GET", "/api/{kind}/{owner}/{name}/refs", history.list_refs),
        ("GET", "/api/{kind}/{owner}/{name}/commits/{revision}", history.list_commits),
        ("POST", "/api/{kind}/{owner}/{name}/branch/{branch}", history.create_branch),
        ("DELETE", "/api/{kind}/{owner}/{name}/branch/{branch}", history.delete_branch),
        ("POST", "/api/{kind}/{owner}/{name}/tag/{revision}", history.create_tag),
        ("DELETE", "/api/{kind}/{owner}/{name}/tag/{revision}", history.delete_tag),
        ("POST", "/api/{kind}/{owner}/{name}/super-squash/{branch}", history.super_squash),
        # its files
        ("GET", "/api/{kind}/{owner}/{name}/tree/{revision}", files.list_tree),
        ("GET", "/api/{kind}/{owner}/{name}/tree/{revision}/{path*}", files.list_tree),
        ("POST", "/api/{kind}/{owner}/{name}/paths-info/{revision}", files.paths_info),
        ("HEAD GET", "/{kind}/{owner}/{name}/resolve/{revision}/{path*}", files.resolve),
        ("HEAD GET", "/{owner}/{name}/resolve/{revision}/{path*}", files.resolve),
        # uploads and commits
        ("GET", "/api/{kind}/{owner}/{name}/xet-read-token", files.read_token),
        ("GET", "/api/{kind}/{owner}/{name}/xet-read-token/{revision}", files.read_token),
        ("GET", "/api/{kind}/{owner}/{name}/xet-write-token/{revision}", files.write_token),
        ("POST", "/api/{kind}/{owner}/{name}/preupload/{revision}", files.preupload),
        ("POST", "/{kind}/{owner}/{name}.git/info/lfs/objects/batch", files.lfs_batch),
        ("POST", "/{owner}/{name}.git/info/lfs/objects/batch", files.lfs_batch),
        ("PUT", "/lfs/{kind}/{owner}/{name}/{sha256}", files.lfs_put),
        ("POST", "/lfs/{kind}/{owner}/{name}/{sha256}/verify", files.lfs_verify),
        ("POST", "/api/{kind}/{owner}/{name}/commit/{revision}", files.commit),
        ("GET", "/api/{kind}/{owner}/{name}/lfs-files", files.list_large),
        ("POST", "/api/{kind}/{owner}/{name}/lfs-files/batch", files.delete_large),
        ("POST", "/api/{kind}/{owner}/{name}/lfs-files/duplicate", files.duplicate_large),
    ]
)


class Hub(Accounts):
    """The server; see `Accounts` for who may do what, `Server` for requests and faults.

    `clock` dates commits and large files; `page` is how many rows a list has before the client has
    to ask for more.
    """

    def __init__(self, root: Path, users: Mapping[str, str] | None = None) -> None:
        super().__init__(users)
        self.root = Path(root).resolve()
        self.page = 1000
        self.lock = threading.RLock()
        self.content = xet.ContentStore(self.root / "content")
        self.blobs = self.root / "blobs"
        self.repositories: dict[Path, Repository] = {}
        for path in (self.blobs, self.root / "buckets"):
            path.mkdir(parents=True, exist_ok=True)
        self.unlock()

    def unlock(self) -> None:
        """Remove the locks of a git that was killed together with the server that was here
        before."""
        for pattern in ("*.lock", "refs/**/*.lock"):
            for lock in self.root.glob(f"repositories/*/*/*.git/{pattern}"):
                lock.unlink()

    def respond(self, request: Request) -> Response:
        """Answer by the table of routes."""
        handler, arguments = ROUTES.find(request.method, request.path)
        return handler(self, request, **arguments)

    def refusal(self, request: Request, error: Refused) -> Response:
        """An error; the client reads its text and its kind in headers."""
        line = " ".join(error.message.encode("ascii", "replace").decode().split())
        return JSONResponse(
            {"error": error.message},
            error.status,
            headers={"X-Error-Message": line} | error.headers,
        )

    def environ(self, user: str = "alice") -> dict[str, str]:
        """What makes Hugging Face's libraries talk to this server as a user."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token(user),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }

    # Repositories.

    def folder(self, repo_id: str, kind: str) -> Path:
        """Where a repository lies."""
        owner, _, name = repo_id.partition("/")
        return self.root / "repositories" / kind / owner / f"{name}.git"

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        """A repository; 404 if there is none."""
        folder = self.folder(repo_id, kind)
        if not folder.exists():
            raise Refused(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        with self.lock:
            return self.repositories.setdefault(folder, Repository(folder, kind, repo_id))

    def made(self, repo_id: str, kind: str, private: bool, gated: str) -> bool:
        """Make a repository; False if it is there already."""
        folder = self.folder(repo_id, kind)
        with self.lock:
            if folder.exists():
                return False
            folder.parent.mkdir(parents=True, exist_ok=True)
            Repository.create(folder, kind, repo_id, private, gated, self.clock())
            return True

    def forget(self, repository: Repository) -> None:
        """Delete a repository."""
        with self.lock, repository.lock:
            self.repositories.pop(repository.folder, None)
            shutil.rmtree(repository.folder)

    def uploaded(self, scope: list[str], sent: list[tuple[str, str, int]]) -> None:
        """Large files came to the content store with a token for this scope: a kind of repository
        and its name."""
        kind, repo_id = scope
        if kind != "bucket":
            for xet_hash, sha256, size in sent:
                self.repository(repo_id, kind).upload(Large(sha256, size, xet_hash))

    # For tests: prepare, and look inside.

    def create_repo(
        self,
        repo_id: str,
        kind: str = "model",
        private: bool = True,
        gated: bool | str = False,
        files: Mapping[str, bytes] = {},
    ) -> None:
        """Make a repository with these files on `main`."""
        assert self.made(repo_id, kind, private, "auto" if gated is True else gated or ""), (
            f"{repo_id} exists"
        )
        if files:
            self.write(repo_id, files, kind)

    def write(
        self, repo_id: str, files: Mapping[str, bytes], kind: str = "model", branch: str = "main"
    ) -> str:
        """Commit files, large ones as such; returns the commit."""
        repository = self.repository(repo_id, kind)
        large = {
            path: self.content.put_plain(data)
            for path, data in files.items()
            if is_large(path, len(data), data[:512])
        }
        for path, sha256 in large.items():
            repository.upload(Large(sha256, len(files[path])))
        regular = {path: data for path, data in files.items() if path not in large}
        return repository.commit(
            branch, Change("Add files", files=regular, large=large), repository.owner, self.clock()
        )

    def history(self, repo_id: str, branch: str = "main", kind: str = "model") -> list[Commit]:
        """The commits of a branch, newest first."""
        repository = self.repository(repo_id, kind)
        return repository.log(repository.revision(branch))

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "model") -> bytes:
        """A file's content; `Refused` if it is not there."""
        repository = self.repository(repo_id, kind)
        file = repository.tree(repository.revision(revision)).get(path)
        large = repository.large(file.sha256) if file and file.sha256 else None
        if file is None or (file.sha256 and large is None):
            raise Refused(404, f"{path} is not at {revision} of {repo_id}")
        return (
            self.content.content(large.xet, large.sha256).read_bytes()
            if large
            else repository.blob(file.oid)
        )

    def stored_bytes(self, repo_id: str, kind: str = "model") -> int:
        """Bytes of the large files that a repository keeps, once each, whether or not a commit
        still names them."""
        return sum(large.size for large in self.repository(repo_id, kind).all_large())
