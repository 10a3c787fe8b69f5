"""A Weights & Biases that the real client accepts: GraphQL by operation name, file streams, stored
files, the public API.

The module has the name of the real package, which is never imported here.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, JSONResponse, Response

from .server import Refused, Request, Routes, Server
from .wandb_operations import OPERATIONS, Query
from .wandb_runs import Run, Runs


def key_of(user: str) -> str:
    """The API key of a user: 40 characters; the client counts them after the first dash."""
    return user + "_" * (40 - len(user.partition("-")[2] or user))


class Wandb(Server):
    """A loopback W&B whose state lies under `root`.

    `keys`: API key -> user; None takes the keys that `environ` gives and those of all members.
    `teams`: team -> its members. An entity is a user or a team; its projects are there for the user
    or the members and for nobody else. Projects in `read_only` (`entity/project`) refuse every
    write. `views` are saved views by entity, project and name. `unknown` lists the operations that
    clients asked for and that are not here. `clock` returns seconds since 1970: a run whose last
    sign of life is five minutes old has crashed.
    """

    def __init__(
        self,
        root: Path,
        keys: Mapping[str, str] | None = None,
        teams: Mapping[str, set[str]] | None = None,
    ) -> None:
        super().__init__()
        self.keys, self.teams = keys, dict(teams or {})
        self.users = set(keys.values() if keys else ()) | set().union(*self.teams.values())
        self.read_only: set[str] = set()
        self.unknown: list[str] = []
        self.views: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.clock = time.time
        self.store = Runs(root, lambda: self.clock())
        self.lock = threading.RLock()

    # What tests look at.

    def environ(self, user: str = "alice") -> dict[str, str]:
        """The environment of a client that is this user."""
        self.users.add(user)
        own = [key for key, owner in (self.keys or {}).items() if owner == user]
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": own[0] if own else key_of(user),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_SILENT": "true",
        }

    def run(self, entity: str, project: str, run: str) -> Run:
        """A run, by the id that the client gave it; KeyError if there is none."""
        with self.lock:
            if found := self.store.find(entity, project, run):
                return found
            raise KeyError(f"{entity}/{project}/{run}")

    def runs(self, entity: str, project: str) -> list[str]:
        """The ids of a project's runs, oldest first."""
        with self.lock:
            return [run.name for run in self.store.living(entity, project)]

    def history(self, entity: str, project: str, run: str) -> list[dict[str, Any]]:
        """The rows as they are stored."""
        with self.lock:
            return self.run(entity, project, run).rows()

    def config(self, entity: str, project: str, run: str) -> dict[str, Any]:
        """The configuration without the client's own entry."""
        with self.lock:
            config = self.run(entity, project, run).config
            return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}

    def summary(self, entity: str, project: str, run: str) -> dict[str, Any]:
        """The summary as it is stored."""
        with self.lock:
            return dict(self.run(entity, project, run).summary)

    def state(self, entity: str, project: str, run: str) -> str:
        """running, preempting, preempted, crashed, killed, failed or finished."""
        return self.run(entity, project, run).state(self.clock())

    def delete(self, entity: str, project: str, run: str) -> None:
        """Delete a run as the page does: its id can never be used again."""
        with self.lock, self.store.changing(found := self.run(entity, project, run)):
            found.deleted = True

    def stop(self, entity: str = "", project: str = "", run: str = "") -> None:
        """Press the page's stop button: the client hears of it with its next file_stream request.
        Without a run: an outage."""
        if not entity:
            super().stop()
            return
        with self.lock, self.store.changing(found := self.run(entity, project, run)):
            found.stopped = True

    # What clients ask.

    def respond(self, request: Request) -> Response:
        handler, found = ROUTES.find(request.method, request.path)
        with self.lock:
            return handler(self, request, **found)

    def line(self, request: Request) -> str:
        """`POST /graphql UpsertBucket`: faults can match the operation."""
        return (
            f"{request.line} {operation(request.json)}"
            if request.path == "/graphql"
            else request.line
        )

    def refusal(self, request: Request, error: Refused) -> Response:
        """Errors of GraphQL come with a status of their own and name the field that was asked
        for."""
        if request.path != "/graphql":
            return super().refusal(request, error)
        field = asked(request.json["query"])
        extensions = (
            {"extensions": {"code": "PERMISSION_ERROR"}} if error.status in (401, 403) else {}
        )
        body = {
            "errors": [{"message": error.message, "path": [field], **extensions}],
            "data": {field: None},
        }
        return JSONResponse(body, error.status, headers=error.headers)

    def user(self, request: Request) -> str:
        """Who sent this request; 401 if its key is nobody's."""
        key = key_in(request.headers.get("authorization", ""))
        keys = {key_of(user): user for user in self.users} if self.keys is None else self.keys
        if key not in keys:
            raise Refused(401, "user is not logged in")
        return keys[key]

    def teams_of(self, user: str) -> list[str]:
        """The teams that a user is a member of."""
        return sorted(team for team, members in self.teams.items() if user in members)

    def may_read(self, user: str, entity: str) -> bool:
        """Whether the entity's projects are the user's own or a team's of theirs."""
        return entity == user or user in self.teams.get(entity, ())

    def check_writable(self, user: str, entity: str, project: str) -> None:
        """Refuse, as the service does, a write where the user may not write."""
        if entity not in self.users and entity not in self.teams:
            raise Refused(404, f"entity {entity} not found during upsertBucket")
        if not self.may_read(user, entity) or f"{entity}/{project}" in self.read_only:
            raise Refused(403, "permission denied")


def graphql(server: Wandb, request: Request) -> Response:
    """One query or mutation, by its operation's name."""
    name, sent = operation(request.json), request.json
    query = Query(
        server, server.user(request), sent["query"], sent.get("variables") or {}, request.stale
    )
    if name not in OPERATIONS:
        server.unknown.append(name)
        raise Refused(400, f"UNKNOWN operation {name}")
    return JSONResponse({"data": OPERATIONS[name](query)})


def file_stream(server: Wandb, request: Request, entity: str, project: str, run: str) -> Response:
    """What a run has to tell since its last request; the answer may ask it to stop."""
    server.check_writable(server.user(request), entity, project)
    found = server.store.find(entity, project, run)
    if found is None:
        raise Refused(404, f"run {entity}/{project}/{run} not found")
    with server.store.changing(found):
        found.append(request.json)
        found.heartbeat = server.clock()
    return JSONResponse({"exitcode": None, "limits": {}, "stopped": found.stopped})


def put_file(
    server: Wandb, request: Request, entity: str, project: str, run: str, name: str
) -> Response:
    """Store a file under the URL that CreateRunFiles gave out; like a signed URL, it needs no
    key."""
    path = stored(server, entity, project, run, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(request.body)
    return Response()


def get_file(
    server: Wandb, request: Request, entity: str, project: str, run: str, name: str
) -> Response:
    """A stored file."""
    path = stored(server, entity, project, run, name)
    if not path.is_file():
        raise Refused(404, f"no file {name}")
    return FileResponse(path)


def stored(server: Wandb, entity: str, project: str, run: str, name: str) -> Path:
    """Where a run's file lies."""
    if found := server.store.find(entity, project, run):
        return server.store.file(found, name)
    raise Refused(404, f"run {entity}/{project}/{run} not found")


def operation(sent: dict[str, Any]) -> str:
    """The operation's name, from where the client says it or from the document; a query without one
    is called by its field."""
    found = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
    return sent.get("operationName") or (found[1] if found else asked(sent["query"]))


def asked(document: str) -> str:
    """The first field that a document asks for."""
    found = re.search(r"\{\s*(?:\w+\s*:\s*)?(\w+)", document)
    return found[1] if found else ""


def key_in(authorization: str) -> str:
    """The API key of a request: the password of basic authentication."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() != "basic":
        return value
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


FILE = "/storage/{entity}/{project}/{run}/{name*}"

ROUTES = Routes(
    [
        ("POST", "/graphql", graphql),
        ("POST", "/files/{entity}/{project}/{run}/file_stream", file_stream),
        ("PUT", FILE, put_file),
        ("GET HEAD", FILE, get_file),
    ]
)
